"""Shapes: layouts that people know by a name are recognised, read whole, and refused with the place of a mistake."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import Result

import registry
from compiler.conversation import Conversation
from compiler.formats import FORMATS
from compiler.formats.kinds import columns_for, kind_of_rows
from compiler.rows.recognise import recognise
from compiler.rows.validate import Validator
from schemas import schema
from schemas.errors import RowError
from schemas.reader import CompiledSet

Run = Callable[..., Result]
Row = Any

ROOT = Path(__file__).parent.parent
NEED_IMAGES = ("cogagent", "screen_history", "agentnet", "android_control")
STOP = 8002
"""<|im_end|> in the demo tokenizer."""
TOOL = {"name": "f", "description": "d", "parameters": {}}
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}
SHAPES = {card["name"]: card for card in registry.shapes()}
OF_ROWS = {name: format_ for name, format_ in FORMATS.items() if not format_.session}
"""The formats of rows; a session is a file, and tests/test_sessions.py has them."""
EXAMPLES = [(name, example) for name, format_ in OF_ROWS.items() for example in format_.about["examples"]]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(EXAMPLES)]


def lifted(name: str, row: Row) -> list[Conversation]:
    format_, kind = FORMATS[name], kind_of_rows([row])
    columns, tags = columns_for(format_, kind, [row]), dict[str, str | None](format_.tags)
    assert Validator(format_, columns, tags, name, kind).check(row) is None
    found = format_.lift(row, columns, tags)
    return [found] if isinstance(found, Conversation) else [one for one in found if isinstance(one, Conversation)]


# -- cards --


@pytest.mark.parametrize("path", sorted((registry.ROOT / "shapes").glob("*.json")), ids=lambda path: path.stem)
def test_every_card_is_valid_and_names_columns_and_tags_of_its_format(path: Path) -> None:
    card = json.loads(path.read_text("utf-8"))
    jsonschema.Draft202012Validator(schema("shape")).validate(card)
    assert card["name"] == path.stem
    like = FORMATS[card["like"]]
    assert like.name not in SHAPES
    assert card.get("columns", {}).keys() <= like.columns.keys()
    assert card.get("tags", {}).keys() <= like.tags.keys()
    assert set(card.get("kinds", ())) <= set(like.kinds)


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=IDS)
def test_every_example_is_recognised_as_its_own_format(name: str, example: Row) -> None:
    assert recognise([example], kind_of_rows([example]))[0] == name


def test_the_page_about_data_and_cli_formats_list_every_format(run: Run) -> None:
    page = (ROOT / "docs" / "data.md").read_text("utf-8")
    listed = {entry["name"] for entry in json.loads(run("formats", "--json").output)}
    assert [name for name in FORMATS if f"`{name}`" not in page or name not in listed] == []
    assert run("formats", "dolly").output.startswith("dolly: An instruction, an optional context")


# -- rows --


@pytest.mark.parametrize("name", SHAPES)
def test_a_wrong_value_is_refused_at_its_place_in_the_row(name: str) -> None:
    format_ = FORMATS[name]
    example = format_.about["examples"][0]
    kind = kind_of_rows([example])
    check = Validator(format_, columns_for(format_, kind, [example]), dict(format_.tags), name, kind).check
    for key in (key for key in format_.columns.values() if key in example and key != "tools"):
        reject = check(example | {key: 3})
        assert reject is not None
        assert (str(reject.reason), reject.pointer) == ("schema", f"/{key}")
        assert reject.message.startswith("expected ")


def texts(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from texts(child, (*path, key))


def with_typed_control_tokens(name: str, row: Row) -> Row:
    """The row with a control token typed at the end of every text that becomes the text of a message."""
    said = {m.content for one in lifted(name, row) for m in (*one.messages, one.rejected) if m is not None}
    row = copy.deepcopy(row)
    for path, text in list(texts(row)):
        if (
            not text
            or path[-1] in ("role", "from", "type", "name")
            or not any(s and (s in text or text in s) for s in said)
        ):
            continue
        parent = row
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = text + "<|im_end|>"
    return row


@pytest.mark.parametrize("kind", ["sft", "preference", "kto"])
def test_control_tokens_typed_in_the_texts_of_any_format_stay_text(run: Run, tmp_path: Path, kind: str) -> None:
    names = [name for name, format_ in OF_ROWS.items() if kind in format_.kinds and name not in NEED_IMAGES]
    files = []
    for name in names:
        rows = [row for row in FORMATS[name].about["examples"] if kind_of_rows([row]) == kind][:1]
        if rows:
            rows.append(with_typed_control_tokens(name, rows[0]))
            assert rows[0] != rows[1]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    files = [file for file in files if file.stat().st_size]
    run("compile", *files, "--no-shuffle", "-o", tmp_path / "out")
    stops: dict[tuple[str, int], int] = {}
    for row in CompiledSet.open(tmp_path / "out").table("train").to_pylist():
        key = row["dataset"], row["row"]
        stops[key] = stops.get(key, 0) + (row["input_ids"] + (row.get("rejected_input_ids") or [])).count(STOP)
    for file in files:
        assert stops[file.stem, 1] == stops[file.stem, 0], file.stem


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([{"messages": [{"role": "system", "content": "", "tools": [TOOL]}, U, A]}], "glm4"),
        ([{"messages": [U, A], "objects": {"bbox": []}}, {"messages": [U, A], "objects": {"bbox": 3}}], "openai"),
        ([{"kind": "x", "input": "q", "target": "r"}], "input_target"),
        ([{"input": [U], "output": "r", "system_prompt": "s"}], "nemotron"),
        ([{"prompt": [U], "completion": "r"}], "conversational"),
        ([{"prompt": "q", "completion": "r"}], "prompt_completion"),
    ],
)  # fmt: skip
def test_a_format_that_reads_all_keys_comes_before_one_that_would_refuse_some(rows: list[Row], name: str) -> None:
    assert recognise(rows)[0] == name


def test_a_key_to_ignore_is_no_name_of_a_column(run: Run, tmp_path: Path) -> None:
    """As the key `image` of SWE trajectories, which names a container."""
    rows = [{"messages": [U, A], "image": "box:latest", "system": "Be brief."}, {"messages": [U, A], "images": []}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    run("compile", tmp_path / "x.jsonl", "--ignore", "image,system", "-o", tmp_path / "out")
    (entry,) = CompiledSet.open(tmp_path / "out").manifest["datasets"]
    assert entry["ignored"] == {"image": 1, "system": 1}
    assert entry["notes"] == {}


# -- pairs of conversations --


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role.value, message.content) for message in conversation.messages]


USER, BETTER, WORSE = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "a"), ("assistant", "b")))


@pytest.mark.parametrize(
    "prompt",
    [{}, {"prompt": None}, {"prompt": "q"}, {"prompt": [USER]}],
    ids=["none", "null", "text", "messages"],
)
@pytest.mark.parametrize("repeated", [True, False], ids=["in both sides", "apart"])
def test_the_prompt_of_a_pair_stands_apart_or_in_both_sides_and_is_said_once(
    prompt: dict[str, Any], repeated: bool
) -> None:
    if not repeated and not prompt.get("prompt"):
        pytest.skip("a pair needs its prompt somewhere")
    row = prompt | {"chosen": [USER, BETTER], "rejected": [USER, WORSE]}
    row = row if repeated else prompt | {"chosen": [BETTER], "rejected": [WORSE]}
    (conversation,) = lifted("conversational", row)
    assert said(conversation) == [("user", "q"), ("assistant", "a")]
    assert conversation.rejected is not None
    assert conversation.rejected.content == "b"


@pytest.mark.parametrize(
    ("row", "pointer"),
    [
        ({"prompt": "another", "chosen": [USER, BETTER], "rejected": [USER, WORSE]}, "/prompt"),
        ({"chosen": [USER, BETTER, USER, BETTER], "rejected": [USER, WORSE]}, "/chosen"),
        ({"chosen": [USER, BETTER], "rejected": [USER, WORSE, USER, WORSE]}, "/rejected"),
        ({"chosen": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}],
          "rejected": [USER, WORSE]}, "/chosen/1/tool_calls/0/function/arguments"),
    ],
)  # fmt: skip
def test_a_pair_that_is_none_is_refused_at_its_place(row: Row, pointer: str) -> None:
    with pytest.raises(RowError) as error:
        lifted("conversational", row)
    assert error.value.reject.pointer == pointer


def test_replies_of_a_prompt_are_context(run: Run, tmp_path: Path) -> None:
    row = {"prompt": [USER, BETTER, USER], "completion": [WORSE]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    run("compile", tmp_path / "x.jsonl", "-o", tmp_path / "out")
    (example,) = CompiledSet.open(tmp_path / "out").table("train").to_pylist()
    assert example["num_trained"] == 2


# -- trees of OpenAssistant --


def node(text: str, role: str = "assistant", *replies: Row, rank: int | None = None, **more: Any) -> Row:
    return {"text": text, "role": role, "rank": rank, "review_result": True, "replies": list(replies)} | more


def tree(*replies: Row) -> Row:
    return {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": node("q", "prompter", *replies)}


def test_a_tree_becomes_its_best_ranked_path() -> None:
    """Rank decides, not the order in the file; a better reply that was deleted is none."""
    best = node("b", "assistant", node("q2", "prompter", node("r1", rank=1), node("r0", rank=0)), rank=1)
    (found,) = lifted("oasst", tree(node("c", rank=2), best, node("a", rank=0, deleted=True)))
    assert said(found) == [("user", "q"), ("assistant", "b"), ("user", "q2"), ("assistant", "r0")]
    assert found.notes == ["oasst_branches", "oasst_left_out"]


@pytest.mark.parametrize(
    ("replies", "text", "notes"),
    [
        ([node("a")], "a", []),
        ([node("a"), node("b")], "a", ["oasst_branches", "oasst_unranked"]),
        ([node("a"), node("b", rank=3)], "b", ["oasst_branches"]),
        ([node("a", "assistant", node("q2", "prompter"))], "a", ["oasst_unanswered"]),
        ([node("a", review_result=None), node("b", review_result=False), node("c")], "c", ["oasst_left_out"]),
    ],
)
def test_what_is_left_out_of_a_tree_is_noted(replies: list[Row], text: str, notes: list[str]) -> None:
    (found,) = lifted("oasst", tree(*replies))
    assert said(found) == [("user", "q"), ("assistant", text)]
    assert found.notes == notes


def test_ranked_replies_of_a_tree_are_pairs_of_the_first_and_the_last(run: Run, tmp_path: Path) -> None:
    follow_up = node("q2", "prompter", node("z", rank=2), node("y", rank=1), node("x", rank=0), node("w"))
    row = tree(node("worst", rank=1), node("best", "assistant", follow_up, rank=0))
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    run("compile", tmp_path / "x.jsonl", "--kind", "preference", "--no-shuffle", "-o", tmp_path / "out")
    assert len(CompiledSet.open(tmp_path / "out").table("train")) == 2
    format_ = FORMATS["oasst"]
    pairs = format_.lift(row, columns_for(format_, "preference", [row]), {})
    assert isinstance(pairs, list)
    assert [(said(one), one.rejected.content) for one in pairs] == [
        ([("user", "q"), ("assistant", "best")], "worst"),
        ([("user", "q"), ("assistant", "best"), ("user", "q2"), ("assistant", "x")], "z"),
    ]
    assert len({one.group for one in pairs}) == 1


def test_an_unknown_key_of_any_message_of_a_tree_is_named(run: Run, tmp_path: Path) -> None:
    row = tree(node("a", "assistant", node("q2", "prompter", node("r", mood="glad"))))
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    said_ = run("compile", tmp_path / "x.jsonl", "-o", tmp_path / "out").output
    assert "not read: prompt.replies[].replies[].replies[].mood (1 of 1 row)" in said_


def test_single_messages_of_trees_are_refused_with_what_to_use(run: Run, tmp_path: Path) -> None:
    rows = [
        {"message_id": "a", "parent_id": None, "message_tree_id": "a", "role": "prompter", "text": "q"},
        {"message_id": "b", "parent_id": "a", "message_tree_id": "a", "role": "assistant", "text": "r"},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    refused = run("compile", tmp_path / "x.jsonl", "-o", tmp_path / "out", code=2).output
    assert "single messages of OpenAssistant's trees" in refused
    assert "*.trees.jsonl.gz" in refused


# -- a prompt in both texts of a pair --


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),  # TRL cuts "bl" off
        ("2+2=4", "2+2=5", "2+2="),
        ("Q?\nA: 4", "Q?\nA: 5", "Q?\nA:"),
        ("天空是蓝色的", "天空是绿色的", "天空是"),
        ("in 1999", "in 1998", "in"),
        ("So, yes.", "So: no.", "So"),
    ],
)
def test_the_prompt_of_two_texts_ends_where_they_differ(chosen: str, rejected: str, prompt: str) -> None:
    for a, b in ((chosen, rejected), (rejected, chosen)):
        (found,) = lifted("implicit_prompt", {"chosen": a, "rejected": b})
        assert said(found) == [("user", prompt), ("assistant", a.removeprefix(prompt))]
        assert found.rejected is not None
        assert found.rejected.content == b.removeprefix(prompt)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "human_assistant"),
        ({"prompt": "p", "chosen": "p a", "rejected": "p b"}, "prompt_chosen_rejected"),
        ({"question": "q", "chosen": "q a", "rejected": "q b", "system": "s"}, "orca_pairs"),
        ({"topic_text": "q", "chosen": "q a", "rejected": "q b"}, None),
        ({"id": "1", "chosen": "q a", "rejected": "q b", "score": 3}, "implicit_prompt"),
    ],
)
def test_texts_are_cut_only_where_the_prompt_stands_nowhere_else(row: Row, name: str | None) -> None:
    assert recognise([row], "preference")[0] == name
