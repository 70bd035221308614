"""Source rows to compile, and what a compiled set holds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from schemas.reader import CompiledSet

Row = dict[str, Any]


def write(path: Path, *rows: Row | str) -> Path:
    """Write rows as JSON Lines; a string is written as a line of its own, unchanged."""
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def qa(question: str, answer: str = "an answer", **more: Any) -> Row:
    return {"instruction": question, "output": answer, **more}


def chat(*turns: tuple[str, str] | tuple[str, str, Row]) -> Row:
    """A sharegpt row of (who, text) or (who, text, more keys of the message)."""
    names = {"u": "human", "a": "gpt", "s": "system", "c": "function_call", "o": "observation"}
    return {
        "conversations": [{"from": names[who], "value": said} | dict(*more) for who, said, *more in turns],
    }


def rows(out: Path, split: str = "train") -> list[Row]:
    return list(CompiledSet.open(out).rows(split))


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text("utf-8"))


def entry(out: Path) -> dict[str, Any]:
    """What the manifest says of the first dataset."""
    return manifest(out)["datasets"][0]


def rejects(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]  # only "\n" ends a line of bytes here


@cache
def tokenizer_of(json_text: str) -> Tokenizer:
    return Tokenizer.from_str(json_text)


def decode(out: Path, ids: list[int]) -> str:
    """The text of ids, control tokens included."""
    tokenizer = tokenizer_of((out / "tokenizer" / "tokenizer.json").read_text("utf-8"))
    return tokenizer.decode(ids, skip_special_tokens=False)


def text(out: Path, row: Row) -> str:
    """An example as text."""
    return decode(out, row["input_ids"])


def trained(out: Path, row: Row) -> list[str]:
    """The trained stretches of an example as text."""
    stretches: list[list[int]] = [[]]
    for label in row["labels"]:
        if label != -100:
            stretches[-1].append(label)
        elif stretches[-1]:
            stretches.append([])
    return [decode(out, ids) for ids in stretches if ids]


def one_message(stderr: str) -> str:
    """The one error message on stderr. Asserts that there is no second one and no traceback."""
    assert stderr.count("error:") == 1, stderr
    assert "Traceback" not in stderr
    return stderr[stderr.index("error:") :]
