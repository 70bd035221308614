"""A realistic corpus of any size, in which no two rows are equal.

40% alpaca, 40% sharegpt with tools, 20% ReAct, as in the published comparison. Rows are recombined from the embedded
samples and, where it is beside the project, from the real rows of ../shared/data: the sentences of a text are
shuffled within it and a number is woven in, so that no two rows are equal and lengths stay those of real data.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import registry

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s*")


def write(folder: Path, rows: int, seed: int = 0) -> list[Path]:
    """Write the corpus as three JSON Lines files; return them."""
    folder.mkdir(parents=True, exist_ok=True)
    shares = {"alpaca": rows * 4 // 10, "sharegpt": rows * 4 // 10, "react": rows - 2 * (rows * 4 // 10)}
    paths = []
    for name, count in shares.items():
        path = folder / f"{name}.jsonl"
        rng = random.Random(f"{seed}:{name}")
        sources = _SOURCES[name]()
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                row = _vary(copy.deepcopy(sources[number % len(sources)]), number, rng)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        paths.append(path)
    return paths


def write_short(folder: Path, rows: int) -> list[Path]:
    """Write rows of about forty tokens as one JSON Lines file; return it in a list."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "short.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            row = {"instruction": f"Add {n} and {n * 7 % 1009}.", "output": f"That is {n + n * 7 % 1009}."}
            file.write(json.dumps(row) + "\n")
    return [path]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _alpaca() -> list[dict[str, Any]]:
    path = SHARED / "llamafactory" / "alpaca_en_demo.json"
    real = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    own = []
    for row in _lines(registry.SAMPLES / "bench.jsonl"):
        turns = [turn["value"] for turn in row["conversations"] if turn["from"] != "system"]
        own += [{"instruction": q, "input": "", "output": a} for q, a in zip(turns[::2], turns[1::2], strict=True)]
    return [*real, *own]


def _sharegpt() -> list[dict[str, Any]]:
    path = SHARED / "llamafactory" / "glaive_toolcall_en_demo.json"
    if path.exists():
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return rows
    roles = {"user": "human", "assistant": "gpt", "system": "system"}
    return [
        {"conversations": [{"from": roles[turn["from"]], "value": turn["value"]} for turn in row["conversations"]]}
        for row in _lines(registry.SAMPLES / "bench.jsonl")
    ]


def _react() -> list[dict[str, Any]]:
    return _lines(registry.SAMPLES / "agent.jsonl")


_SOURCES: dict[str, Callable[[], list[dict[str, Any]]]] = {"alpaca": _alpaca, "sharegpt": _sharegpt, "react": _react}


def _vary(row: dict[str, Any], number: int, rng: random.Random) -> dict[str, Any]:
    if "output" in row:
        row["instruction"] = _reword(row["instruction"], number, rng)
        row["output"] = _reword(row["output"], number, rng)
        return row
    for turn in row["conversations"]:
        if turn["from"] in ("human", "user", "gpt"):
            turn["value"] = _reword(turn["value"], number, rng)
    return row


def _reword(text: str, number: int, rng: random.Random) -> str:
    """The text with its sentences in another order and a number woven in."""
    if "```" in text or "\n" in text:
        return f"{text} ({number})"
    sentences = [part for part in _SENTENCE.split(text) if part]
    rng.shuffle(sentences)
    return " ".join([*sentences, f"({number}-{rng.randrange(10**6)})"])


def rendered(folder: Path) -> Iterator[str]:
    """The text of every example of a compiled set, for the raw encoder."""
    from compiler.tokenizer.tokenizer import Tokenizer
    from schemas.reader import CompiledSet

    tokenizer = Tokenizer.load(folder / "tokenizer")
    for row in CompiledSet.open(folder).rows("train"):
        yield tokenizer.decode(row["input_ids"])
