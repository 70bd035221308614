"""`cli convert --to messages`: the conversations of a set as text. Compiled again, they are the same ids and labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import jsonschema
import pytest
from click.testing import Result
from hypothesis import given, settings

import compiler
import registry
from compiler.conversation import Conversation
from compiler.convert.messages import row_of
from schemas import schema
from tests.support.conversations import conversations
from tests.support.families import FAMILIES, family_folder, official_source
from tests.support.goldens import lifted
from tests.support.sets import Row, write
from tests.support.shared import shared

Run = Callable[..., Result]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1.50, "b": "é"}'}}
REACT = "Thought: a\nAction: b\nAction Input: {}\nObservation: c\nFinal Answer: d"


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def reply(text: str, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


ROWS: dict[str, list[Row]] = {
    "sft": [
        {"messages": [user("hi"), reply("yes", weight=0), user("and?"), reply("no ☃\u2028.")]},
        {"messages": [{"role": "system", "content": "be brief"}, user("1 + 1"), reply("2", reasoning_content="easy")]},
        {"messages": [user("add"), reply("", tool_calls=[CALL]), {"role": "tool", "content": "3", "tool_call_id": "c1"},
                      reply("three", reasoning_content="so")], "tools": [TOOL]},
    ],
    "preference": [
        {"messages": [user("hi"), reply("well"), user(f"say {i}")], "chosen": reply(f"{i}!"), "rejected": reply("no")}
        for i in range(4)
    ],
    "kto": [{"messages": [user(f"say {i}"), reply(f"{i}!")], "kto_tag": i % 2 == 0} for i in range(4)],
    "pretrain": [{"text": f"The {i}th text.\n"} for i in range(4)],
}  # fmt: skip


def words(out: Path, split: str = "train") -> Counter[str]:
    """The rows of a split, as what is trained of them."""
    names = ("input_ids", "labels", "rejected_input_ids", "rejected_labels", "desirable")
    return Counter(json.dumps({n: row[n] for n in names if n in row}) for row in compiler.open(out).rows(split))


def without_weight(message: Row) -> Row:
    return {key: value for key, value in message.items() if key != "weight"}


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with Qwen3's template, which leaves earlier thinking out of history."""
    family = FAMILIES["qwen3"]
    return family_folder(
        tmp_path_factory.mktemp("qwen3") / "model", official_source("qwen3"), family.tokens.split(), family.eos, None,
        registry.DEMO_TOKENIZER, marks=family.marks.split(),
    )  # fmt: skip


@pytest.fixture
def and_back(run: Run, tmp_path: Path) -> Callable[..., tuple[Path, Path, Path]]:
    """Compile, convert to messages, and compile these: the first set, the messages, the second set."""

    def compile_twice(*given: object, kind: str = "sft", convert: tuple[str, ...] = ()) -> tuple[Path, Path, Path]:
        first, said, second = (tmp_path / name for name in ("first", "said", "second"))
        options = [one for one in given if not isinstance(one, Path) or one.is_dir()]
        run("compile", *given, "--kind", kind, "-o", first)
        run("convert", first, "--to", "messages", "-o", said, *convert)
        tokenizer = [options[options.index("--tokenizer") + i] for i in range(2)] if "--tokenizer" in options else []
        run("compile", said / "train.jsonl", *tokenizer, "--kind", kind, "-o", second)
        return first, said, second

    return compile_twice


@pytest.mark.parametrize("kind", ROWS)
def test_the_messages_of_a_set_compile_to_its_ids_and_labels(
    and_back: Callable[..., tuple[Path, Path, Path]], tmp_path: Path, thinker: Path, kind: str
) -> None:
    file = write(tmp_path / "rows.jsonl", *ROWS[kind], *ROWS[kind][:2])
    first, said, second = and_back(file, "--tokenizer", thinker, kind=kind)
    assert words(first) == words(second)
    jsonschema.validate(json.loads((said / "conversion.json").read_text()), schema("conversion"))
    loaded = datasets.load_dataset(str(said), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].num_rows == len(compiler.open(first).rows("train"))


def test_they_are_openais_messages(
    and_back: Callable[..., tuple[Path, Path, Path]], tmp_path: Path, thinker: Path
) -> None:
    _, said, _ = and_back(write(tmp_path / "rows.jsonl", *ROWS["sft"]), "--tokenizer", thinker, "--no-shuffle")
    one, two, step, three = lines(said / "train.jsonl")
    assert one == {"messages": [user("hi"), reply("yes", weight=0), user("and?"), reply("no ☃\u2028.")]}
    assert two == ROWS["sft"][1]
    assert step["messages"] == [*three["messages"][:1], without_weight(three["messages"][1])]
    call = three["messages"][1]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == json.loads(CALL["function"]["arguments"])
    assert call["id"] == three["messages"][2]["tool_call_id"] == "c1"
    assert three["tools"] == [TOOL]


def test_each_reply_with_its_own_history_is_a_row_of_its_own(
    and_back: Callable[..., tuple[Path, Path, Path]], tmp_path: Path, thinker: Path
) -> None:
    turns = [m for i in range(3) for m in (user(f"say {i}"), reply(f"{i}", reasoning_content=f"think {i}"))]
    first, said, second = and_back(write(tmp_path / "rows.jsonl", {"messages": turns}), "--tokenizer", thinker)
    assert words(first) == words(second)
    weights = [[m.get("weight", 1) for m in row["messages"][1::2]] for row in lines(said / "train.jsonl")]
    assert sorted(weights) == [[0, 0, 1], [0, 1], [1]]


def test_packs_repeats_and_splits_are_those_of_the_set(run: Run, tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{n}.jsonl", *({"instruction": f"{n} {i}", "output": n} for i in range(9))) for n in "ab"
    ]
    run(
        "compile",
        *files,
        "--mix",
        "a:3,b:1",
        "--max-repeats",
        "9",
        "--val-size",
        4,
        "--pack",
        64,
        "-o",
        tmp_path / "set",
    )
    run("convert", tmp_path / "set", "--to", "messages", "--unpack", "-o", tmp_path / "said")
    for split, name in (("train", "train"), ("val", "validation")):
        packs = compiler.open(tmp_path / "set").rows(split)
        wanted = [(file, row) for pack in packs for file, row in zip(pack["file"], pack["row"], strict=True)]
        content = [row["messages"][0]["content"] for row in lines(tmp_path / "said" / f"{name}.jsonl")]
        assert content == [f"{Path(file).stem} {row}" for file, row in wanted]


@pytest.mark.parametrize(
    ("rows", "options", "wanted"),
    [
        ([{"messages": [user("hi"), reply("no", weight=0.5)]}], (), "x.jsonl:1: it has loss weights other than 1"),
        ([{"messages": [user("hi") | {"train": True}, reply("no")]}], (), "a message of which a part is trained"),
        ([{"instruction": "hi", "output": REACT}], ("--weights", "react"), "Add --drop-weights"),
        ([{"tools": ["add: adds"], "conversations": [user("hi"), reply("no")]}], (), "its tools are texts"),
        ([{"text": "many words " * 9}], ("--kind", "pretrain", "--max-length", 8), "cut into pieces at --max-length"),
    ],
)  # fmt: skip
def test_what_they_cannot_say_is_refused(
    run: Run, tmp_path: Path, rows: list[Row], options: tuple[object, ...], wanted: str
) -> None:
    run("compile", write(tmp_path / "x.jsonl", *rows), *options, "-o", tmp_path / "set")
    done = run("convert", tmp_path / "set", "--to", "messages", "-o", tmp_path / "said", code=2)
    assert wanted in done.stderr
    assert not (tmp_path / "said").exists()


def test_a_source_that_changed_is_named_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", *ROWS["kto"])
    run("compile", file, "--kind", "kto", "-o", tmp_path / "set")
    write(file, *ROWS["kto"][1:])
    done = run("convert", tmp_path / "set", "--to", "messages", "-o", tmp_path / "said", code=5)
    assert "its conversations cannot be read again" in done.stderr
    assert "x.jsonl is not the file that was compiled" in done.stderr
    assert not (tmp_path / "said").exists()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(conversation=conversations())
def test_any_conversation_is_read_back_as_it_was(conversation: Conversation) -> None:
    row = json.loads(json.dumps(row_of(conversation, set(range(99))), ensure_ascii=False))
    assert lifted(row, "openai").fingerprint() == conversation.fingerprint()


@pytest.mark.parametrize(
    "name", ["alpaca_en_demo.json", "dpo_en_demo.json", "glaive_toolcall_en_demo.json", "kto_en_demo.json"]
)
def test_published_rows_keep_their_ids_and_labels(and_back: Callable[..., tuple[Path, Path, Path]], name: str) -> None:
    file = shared("data", "llamafactory", name)
    kind = {"dpo": "preference", "kto": "kto"}.get(name[:3], "sft")
    first, _, second = and_back(file, "--tokenizer", shared("tokenizers", "qwen2.5"), kind=kind)
    assert words(first) == words(second)
