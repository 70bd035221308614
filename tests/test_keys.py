"""Every key of a row is read, named or refused by name, wherever it stands and however late it comes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from timeit import timeit
from typing import Any

import pytest
from click.testing import Result
from tokenizers import Tokenizer

import registry
from compiler.conversation import Call, Conversation, Kind
from compiler.formats import FORMATS
from compiler.formats.kinds import columns_for, kind_of_row
from compiler.options import DatasetOptions, UnitOptions
from compiler.rows.lift import Preparer
from compiler.rows.validate import Validator
from schemas.errors import Reject, RowError
from schemas.reader import CompiledSet
from tests.support.sets import Row, entry, rejects, write

Run = Callable[..., Result]

DATA = Path(__file__).parent / "data"
CHAT: Row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def test_an_unknown_key_is_named_with_its_rows_everywhere(run: Run, tmp_path: Path) -> None:
    odd = [CHAT | {"persona_description": "grumpy"}, CHAT | {"persona_description": None}]
    file, out = write(tmp_path / "x.jsonl", CHAT, *odd, CHAT), tmp_path / "out"
    said = "not read: persona_description (1 of 4 rows)"
    assert f"x: {said}" in run("compile", file, "-o", out).stdout
    assert entry(out)["unread"] == {"persona_description": 1}
    assert said in (out / "README.md").read_text("utf-8")
    summary = json.loads(run("compile", file, "-o", out, "--json").stdout)
    assert summary["datasets"][0]["unread"] == {"persona_description": 1}


def test_a_key_inside_the_last_message_of_the_last_row_is_named(run: Run, tmp_path: Path) -> None:
    messages = [CHAT["messages"][0], CHAT["messages"][1] | {"mood": "good"}]
    write(tmp_path / "x.jsonl", *[CHAT] * 600, {"messages": messages})
    assert (
        "not read: messages[].mood (1 of 601 rows)" in run("compile", tmp_path / "x.jsonl", "-o", tmp_path / "o").stdout
    )


def test_keys_of_parts_and_calls_are_named(run: Run, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Hi", "cache_hint": 1}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"anything": 1}, "strict_mode": True}}
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    file = write(tmp_path / "x.jsonl", {"messages": messages, "tools": [{"name": "f", "anything": 2}]})
    run("compile", file, "--format", "openai", "-o", tmp_path / "out")
    unread = {"messages[].content[].cache_hint": 1, "messages[].tool_calls[].function.strict_mode": 1}
    assert entry(tmp_path / "out")["unread"] == unread


def test_ids_sources_and_scores_need_no_word(run: Run, tmp_path: Path) -> None:
    row = CHAT | {"id": 7, "source": "web", "language": "en", "score": 0.5, "timestamp": "now"}
    assert "not read" not in run("compile", write(tmp_path / "x.jsonl", row), "-o", tmp_path / "out").stdout


@pytest.mark.parametrize("name", ["mood", "messages[].mood"])
def test_ignored_keys_are_counted_and_not_named(run: Run, tmp_path: Path, name: str) -> None:
    row = {"messages": [CHAT["messages"][0] | {"mood": "good"}, CHAT["messages"][1]]}
    file, out = write(tmp_path / "x.jsonl", row, CHAT), tmp_path / "out"
    result = run("compile", file, "-o", out, "--ignore", name, "--unknown-keys", "error")
    assert "not read" not in result.stdout
    assert entry(out)["ignored"] == {name: 1}


def test_ignoring_a_key_that_no_row_has_is_said(run: Run, tmp_path: Path) -> None:
    result = run("compile", write(tmp_path / "x.jsonl", CHAT), "-o", tmp_path / "out", "--ignore", "modo,messages")
    assert "--ignore modo,messages: no effect" in result.stdout


def test_unknown_keys_can_be_an_error_that_names_them(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", CHAT, CHAT | {"mood": "good"})
    result = run("compile", file, "-o", tmp_path / "out", "--unknown-keys", "error", code=2)
    assert "--unknown-keys error: x: not read: mood (1 of 2 rows)" in result.stderr
    assert "--ignore mood" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"history": [["a", "b"]]}, "/history"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "/chat_template_kwargs"),
        ({"rejected_images": ["a.png"]}, "/rejected_images"),
        ({"audios": ["a.wav"]}, "/audios"),
        ({"train": False}, "/train"),
        ({"sample_weight": 0.5}, "/sample_weight"),
    ],
)
def test_a_key_that_changes_what_is_trained_is_a_reject_that_names_it(
    run: Run, tmp_path: Path, more: Row, pointer: str
) -> None:
    file, out = write(tmp_path / "x.jsonl", *[CHAT] * 20, CHAT | more), tmp_path / "out"
    run("compile", file, "--max-rejects", "1", "-o", out)
    (reject,) = rejects(out / "rejects.jsonl")
    key = pointer.removeprefix("/")
    assert (reject["reason"], reject["pointer"]) == ("unread_key", pointer)
    assert repr(key) in reject["message"]
    run("compile", file, "--ignore", key, "-o", out)
    assert rejects(out / "rejects.jsonl") == []
    assert entry(out)["ignored"] == {key: 1}


@pytest.mark.parametrize("value", [None, "", [], {}])
def test_an_empty_value_is_no_value(run: Run, tmp_path: Path, value: Any) -> None:
    row = CHAT | {"system_prompt": value, "objects": value, "mood": value}
    result = run("compile", write(tmp_path / "x.jsonl", row), "-o", tmp_path / "out", "--unknown-keys", "error")
    assert "not read" not in result.stdout


def test_a_column_that_a_card_leaves_out_is_named_and_not_refused(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", CHAT | {"system": "Be brief."})
    card = {"file_name": "x.jsonl", "formatting": "openai", "columns": {"messages": "messages"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"x": card}))
    result = run("compile", "--registry", tmp_path, "--mix", "x", "-o", tmp_path / "out")
    assert "x: not read: system (1 of 1 row)" in result.stdout


# -- every value is in the ids, in a reject, or named --


def places(value: Any) -> Iterator[Row]:
    """Every object of a row."""
    if isinstance(value, dict):
        yield value
    for held in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from places(held)


NEED_IMAGES = ("screen_history", "agentnet", "android_control")


def rows_of(name: str) -> list[Row]:
    file = DATA / name / "rows.jsonl"
    if file.exists():
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return list(FORMATS[name].about["examples"])


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in NEED_IMAGES])
def test_every_value_is_in_the_ids_or_in_a_reject_or_its_key_is_named(run: Run, tmp_path: Path, name: str) -> None:
    chance, table, rows, keys = random.Random(name), registry.keys(), [], []
    known = [*table["row"], *table["message"], *(f"unheard_of_{i}" for i in range(20))]
    is_session = FORMATS[name].session  # a file is one row: its lines
    for number in range(80):
        row = json.loads(json.dumps(chance.choice(rows_of(name))))
        place = chance.choice(list(places(row["lines"] if is_session else row)))
        key = chance.choice([key for key in known if key not in place])
        place[key] = f"MARK{number}X"
        rows.append(row)
        keys.append(key)
    out, source = tmp_path / "out", tmp_path / "x.jsonl"
    if is_session:
        source = tmp_path / "x"
        source.mkdir()
        for number, row in enumerate(rows):
            write(source / f"{number}.jsonl", *row["lines"])
    else:
        write(source, *rows)
    run(
        "compile",
        source,
        "--format",
        name,
        "--max-rejects",
        "100%",
        "-o",
        out,
        "--no-shuffle",
    )
    found = CompiledSet.open(out).table("train")
    tokenizer = Tokenizer.from_file(str(registry.DEMO_TOKENIZER / "tokenizer.json"))

    def number_of(one: Row) -> int:
        return int(Path(one["file"]).stem) if is_session else int(one["row"])

    said = {number_of(reject): "" for reject in rejects(out / "rejects.jsonl")}
    for one in found.select(["file", "row", "input_ids"]).to_pylist():
        row, ids = number_of(one), one["input_ids"]
        said[row] = said.get(row, "") + tokenizer.decode(ids, skip_special_tokens=False)
    named = {path.rpartition(".")[2] for path in entry(out)["unread"]}
    refused = {number_of(reject) for reject in rejects(out / "rejects.jsonl")}
    for number, key in enumerate(keys):
        assert number in refused or f"MARK{number}X" in said[number] or key in named, (key, rows[number])


def schema_keys(node: Any) -> Iterator[str]:
    """Every key that a schema names, at any depth."""
    if isinstance(node, dict):
        yield from node.get("properties", {})
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from schema_keys(part)


def preparer(name: str, row: Any) -> Preparer:
    """What prepares rows like this one of a format. Images are not looked at."""
    format_ = FORMATS[name]
    kind = kind_of_row(row) if isinstance(row, dict) else Kind.SFT
    kind = kind if kind in format_.kinds else Kind(format_.kinds[0])
    columns = columns_for(format_, kind, [row])
    found = Preparer(DatasetOptions(name, columns, dict(format_.tags), "none", kind), UnitOptions(), None)
    found.media.look = lambda *_: None  # type: ignore[method-assign]
    return found


def is_accounted_for(name: str, row: Any, key: str, mark: str) -> bool:
    """Whether a text of a row is in every conversation that it makes, or in a reject, or named by its key."""
    rows = preparer(name, row)
    made = rows.conversations(row)
    refused = [one for one in made if isinstance(one, Reject)]
    said = len(refused) == len(made) or any(mark in repr(one) for one in made)
    said |= any(key in one.message for one in refused)  # a step that is one, and those after it
    paths = (*rows.unread, *rows.ignored)
    return said or key in {part.removesuffix("[]") for path in paths for part in path.split(".")}


FORMS: tuple[Callable[[str], Any], ...] = (
    str,
    lambda mark: [mark],
    lambda mark: {"text": mark},
    lambda mark: [{"name": mark, "arguments": {}}],
    lambda mark: [{"type": "text", "text": mark}],
)
"""What a value may look like."""


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "codex"])  # its events hold what items hold
def test_every_value_at_every_place_is_in_the_conversation_or_in_a_reject_or_named(name: str) -> None:
    """Also under keys that the schema names for another kind of message or part: known keys are read or refused."""
    chance, table = random.Random(name), registry.keys()
    ignorable = {*table["ignorable"], *FORMATS[name].ignorable}
    named = set(schema_keys(FORMATS[name].schema)) | {*table["row"], *table["message"]}
    keys = sorted((named | {"unheard_of"}) - ignorable)
    rows = [
        row
        for row in rows_of(name)
        if not any(isinstance(one, Reject) for one in preparer(name, row).conversations(row))
    ]
    assert rows
    untold = {"tool_call_id", "call_id", "tool_use_id", "toolCallId", "type"}  # they say which result is whose
    if name == "screen_history":
        untold |= {"status", "plan", "sensitive"}  # the answer format says which of them a reply has
    if name == "oasst":
        untold.add("text")  # messages off the path are left out, and counted
    if name == "toolbench":
        untold |= {"content", "name"}  # its lists repeat one another
    if FORMATS[name].session:
        untold |= {
            "message",
            "payload",
            "sessionId",
            "parentUuid",
        }  # what joins lines; lines of other types are left out
    lost = set()
    for number in range(1000):
        row = json.loads(json.dumps(chance.choice(rows)))
        place = chance.choice(list(places(row)))
        mark, there = f"MARK{number}X", [key for key, held in place.items() if isinstance(held, str)]
        if number % 4 == 0 and there:
            key = chance.choice(there)
            value = place[key] + mark
        else:
            key = chance.choice([key for key in keys if key not in place])
            value = chance.choice(FORMS)(mark)
        if key in untold or key in ignorable:
            continue
        place[key] = value
        if not is_accounted_for(name, row, key, mark):
            lost.add((key, json.dumps(row)))
    assert not lost, f"{len(lost)}: {sorted({key for key, _ in lost})} {min(lost, key=lambda one: len(one[1]))}"


def test_looking_at_the_keys_of_an_ordinary_row_costs_a_fraction_of_preparing_it() -> None:
    """Run in turn, so that a busy machine slows down both. Measured: between a tenth and a fifth."""
    row = {"id": 1, "source": "web", "messages": CHAT["messages"] * 2}
    rows = preparer("openai", row)
    keys = rows._keys
    assert keys.covers(row)
    times = [
        (timeit(lambda: keys.covers(row), number=500), timeit(lambda: rows.conversations(row), number=500))
        for _ in range(15)
    ]
    looked, prepared = map(min, zip(*times, strict=True))
    assert looked < prepared / 2


# -- keys of messages that are read wherever they stand --


def lifted(name: str, row: Row) -> Conversation:
    format_ = FORMATS[name]
    columns, tags = dict[str, str | None](format_.columns), dict[str, str | None](format_.tags)
    assert Validator(format_, columns, tags, name).check(row) is None
    found = format_.lift(row, columns, tags)
    assert isinstance(found, Conversation)
    return found


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize(
    ("name", "column", "role", "text", "user", "reply"),
    [
        ("openai", "messages", "role", "content", "user", "assistant"),
        ("conversations_messages", "conversations", "role", "content", "user", "assistant"),
        ("sharegpt", "conversations", "from", "value", "human", "gpt"),
        ("ms_agent", "conversations", "from", "value", "user", "assistant"),
    ],
)
def test_the_reasoning_of_a_reply_is_read_under_every_name(
    name: str, column: str, role: str, text: str, user: str, reply: str, key: str
) -> None:
    asked, said = {role: user, text: "7 * 8?", key: ""}, {role: reply, text: "56", key: "Seven eights."}
    assert lifted(name, {column: [asked, said]}).messages[1].reasoning == "Seven eights."
    assert lifted(name, {column: [asked, said | {key: ""}]}).messages[1].reasoning is None
    with pytest.raises(RowError, match=r"expected .* in a reply, found it in a message of user"):
        lifted(name, {column: [asked | {key: "Hm."}, said]})
    other = "thinking" if key != "thinking" else "reasoning"
    with pytest.raises(RowError, match="expected the reasoning once"):
        lifted(name, {column: [asked, said | {other: "Something else."}]})


def test_the_text_of_a_refusal_is_the_reply(run: Run, tmp_path: Path) -> None:
    asked = CHAT["messages"][0]
    rows = [
        {"messages": [asked, {"role": "assistant", "content": said, "refusal": "I cannot."}]} for said in (None, "Yes")
    ]
    run("compile", write(tmp_path / "x.jsonl", *rows), "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["pointer"]) == ("unread_key", "/messages/1/refusal")
    assert lifted("openai", rows[0]).messages[1].content == "I cannot."


def test_tools_and_calls_in_messages_are_read_as_json_text(run: Run, tmp_path: Path) -> None:
    """As minimind has them: empty texts are absent."""
    none = {"tools": "", "tool_calls": "", "reasoning_content": ""}
    calls = json.dumps([{"name": "dig", "arguments": {"x": 3}}])
    row = {
        "conversations": [
            {"role": "system", "content": "Helper.", **none, "tools": json.dumps([{"name": "dig"}])},
            {"role": "user", "content": "Dig at 3.", **none},
            {"role": "assistant", "content": "", **none, "tool_calls": calls},
        ]
    }
    found = lifted("conversations_messages", row)
    assert found.tools == [{"type": "function", "function": {"name": "dig"}}]
    assert found.messages[2].calls == [Call("dig", {"x": 3})]
    said = run("compile", write(tmp_path / "x.jsonl", row), "-o", tmp_path / "out").output
    assert "recognised as conversations_messages" in said
    assert "not read" not in said


def test_plain_rows_of_chatglm3_stay_its_own(run: Run, tmp_path: Path) -> None:
    row = {"conversations": CHAT["messages"]}
    assert "recognised as chatglm3" in run("compile", write(tmp_path / "x.jsonl", row), "-o", tmp_path / "out").output
