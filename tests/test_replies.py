"""Replies and turns as people write them: who speaks first, one reply in several messages, empty replies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.support.sets import Row, chat, manifest, rejects, rows, text, trained, write
from tests.support.shared import shared

Run = Callable[..., Result]
STOP = "<|im_end|>"


@pytest.fixture
def compiled(run: Run, tmp_path: Path) -> Callable[..., list[Row]]:
    """A function that compiles rows without a reject and returns the examples."""

    def compile_(*source: Row, options: tuple[object, ...] = ()) -> list[Row]:
        run("compile", write(tmp_path / "x.jsonl", *source), "--no-shuffle", *options, "-o", tmp_path / "out")
        return rows(tmp_path / "out")

    return compile_


# -- the order of turns --


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat(("s", "You are Greta."), ("a", "Welcome!"), ("u", "A room."), ("a", "Upstairs.")),
         [f"Welcome!{STOP}", f"Upstairs.{STOP}"]),
        (chat(("s", "You are Greta."), ("a", "Welcome!")), [f"Welcome!{STOP}"]),
        (chat(("u", "Is it cold?"), ("o", "-3"), ("a", "Yes, -3.")), [f"Yes, -3.{STOP}"]),
    ],
    ids=["the assistant speaks first", "a system text with one reply", "a result that no call asked for"],
)  # fmt: skip
def test_an_order_that_the_template_renders_is_taken(
    compiled: Callable[..., list[Row]], tmp_path: Path, row: Row, expected: list[str]
) -> None:
    for tokenizer in ((), ("--tokenizer", shared("tokenizers", "qwen2.5"))):
        (example,) = compiled(row, options=tokenizer)
        assert trained(tmp_path / "out", example) == expected
        assert all(message["value"] in text(tmp_path / "out", example) for message in row["conversations"])


def test_an_order_that_the_template_refuses_is_a_reject_that_says_what_to_do(run: Run, tmp_path: Path) -> None:
    source = [
        chat(("a", "Welcome!"), ("u", "A room."), ("a", "Upstairs.")),
        chat(("u", "Is it cold?"), ("o", "-3"), ("a", "Yes, -3.")),
        chat(("u", "Hi"), ("a", "Hello.")),
    ]
    options = ("--tokenizer", shared("tokenizers", "mistral"), "--max-rejects", "100%", "-o", tmp_path / "out")
    run("compile", write(tmp_path / "x.jsonl", *source), *options)
    first, second = rejects(tmp_path / "out" / "rejects.jsonl")
    assert {first["reason"], second["reason"]} == {"turn_order"}
    assert "the assistant speaks first; put a system or user message before it" in first["message"]
    assert "Conversation roles must alternate" in first["message"]  # the template's own words
    assert "no call asked for a tool's result; give the call" in second["message"]


def test_two_plain_replies_in_a_row_are_a_reject(run: Run, tmp_path: Path) -> None:
    source = [chat(("u", "Hi"), ("a", "Hello."), ("a", "Hello?")), chat(("u", "Hi"), ("a", "Hello."))]
    run("compile", write(tmp_path / "x.jsonl", *source), "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["pointer"]) == ("turn_order", "/conversations/2")


def test_last_turns_may_drop_the_greeting_that_comes_first(compiled: Callable[..., list[Row]], tmp_path: Path) -> None:
    row = chat(("s", "You are Greta."), ("a", "Welcome! " * 40), ("u", "A room."), ("a", "Upstairs."))
    (example,) = compiled(row, options=("--max-length", 64, "--overlength", "last-turns"))
    assert trained(tmp_path / "out", example) == [f"Upstairs.{STOP}"]
    assert "You are Greta." in text(tmp_path / "out", example)


# -- one reply, one stop --

TOOLS = json.dumps(
    [{"type": "function", "function": {"name": "dig", "parameters": {"type": "object", "properties": {"x": {}}}}}]
)
CALLS = [json.dumps({"name": "dig", "arguments": {"x": x}}) for x in (3, 4)]
BLOCKS = [f"<tool_call>\n{call}\n</tool_call>" for call in CALLS]
RESULTS = [f"<tool_response>\n{result}\n</tool_response>" for result in ("sand", "clay")]


def messages(*turns: tuple[str, str]) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in turns], "tools": TOOLS}


SAME = {
    "a list of calls": chat(
        ("u", "Dig."), ("c", f"[{', '.join(CALLS)}]"), ("o", "sand"), ("o", "clay"), ("a", "Both.")
    ),
    "calls in two messages": chat(
        ("u", "Dig."), ("c", CALLS[0]), ("c", CALLS[1]), ("o", "sand"), ("o", "clay"), ("a", "Both.")
    ),
    "ms-swift's roles": messages(
        ("user", "Dig."), ("tool_call", CALLS[0]), ("tool_call", CALLS[1]), ("tool_response", "sand"),
        ("tool_response", "clay"), ("assistant", "Both."),
    ),
    "blocks in one message": messages(
        ("user", "Dig."), ("assistant", "\n".join(BLOCKS)), ("tool", "\n".join(RESULTS)), ("assistant", "Both.")
    ),
    "blocks in two messages": messages(
        ("user", "Dig."), ("assistant", BLOCKS[0]), ("assistant", BLOCKS[1]), ("tool", RESULTS[0]),
        ("tool", RESULTS[1]), ("assistant", "Both."),
    ),
    "blocks in sharegpt": chat(
        ("u", "Dig."), ("a", "\n".join(BLOCKS)), ("o", RESULTS[0]), ("o", RESULTS[1]), ("a", "Both.")
    ),
    "calls without their wrapper": {
        "messages": [
            {"role": "user", "content": "Dig."},
            {"role": "assistant", "tool_calls": [json.loads(call) for call in CALLS]},
            {"role": "tool", "content": "sand"},
            {"role": "tool", "content": "clay"},
            {"role": "assistant", "content": [{"type": "text", "text": "Both.", "image": None, "image_url": None}]},
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("how", SAME)
def test_several_calls_are_one_reply_with_one_stop_however_they_are_written(
    compiled: Callable[..., list[Row]], tmp_path: Path, how: str
) -> None:
    options = ("--tokenizer", shared("tokenizers", "qwen2.5"))
    (example,) = compiled(SAME[how] | {"tools": TOOLS}, options=options)
    calls, answer = trained(tmp_path / "out", example)
    assert (calls.count(STOP), calls.count("<tool_call>"), answer) == (1, 2, f"Both.{STOP}")
    (expected,) = compiled(SAME["a list of calls"] | {"tools": TOOLS}, options=options)
    assert example["input_ids"] == expected["input_ids"]
    assert example["labels"] == expected["labels"]


def test_what_was_joined_or_taken_out_of_texts_is_counted(compiled: Callable[..., list[Row]], tmp_path: Path) -> None:
    row = SAME["blocks in two messages"]
    compiled(row, messages(("user", "Dig."), ("assistant", "I would write <tool_call> here.")))
    notes = manifest(tmp_path / "out")["datasets"][0]["notes"]
    assert notes == {"joined_calls": 1, "special_text": 1, "tool_blocks": 1, "tool_call_text": 1}


def test_a_text_and_the_call_after_it_are_one_reply_unless_their_weights_differ(
    compiled: Callable[..., list[Row]], tmp_path: Path
) -> None:
    turns = [("u", "Dig."), ("a", "I dig."), ("c", CALLS[0]), ("o", "sand"), ("a", "Sand.")]
    other = [turns[0], ("a", "I dig.", {"loss": False}), *turns[2:]]
    first, second = compiled(chat(*turns), chat(*other))
    call, _ = trained(tmp_path / "out", first)
    assert call.startswith("I dig.") and call.count(STOP) == 1
    assert text(tmp_path / "out", second).count(STOP) == text(tmp_path / "out", first).count(STOP) + 1
    assert "I dig." not in "".join(trained(tmp_path / "out", second))


def test_blocks_stay_text_where_the_template_takes_no_calls(compiled: Callable[..., list[Row]], tmp_path: Path) -> None:
    row = messages(("user", "Dig."), ("assistant", BLOCKS[0])) | {"tools": None}
    (example,) = compiled(row, options=("--tokenizer", shared("tokenizers", "qwen2.5"), "--template", "qwen"))
    assert trained(tmp_path / "out", example) == [f"{BLOCKS[0]}{STOP}"]
    assert manifest(tmp_path / "out")["datasets"][0]["notes"].get("tool_blocks") is None


def test_a_history_with_an_empty_pair_has_no_turn(compiled: Callable[..., list[Row]]) -> None:
    row = {"instruction": "Hello?", "output": "Hi."}
    with_pair, without = compiled(row | {"history": [[]]}, row)
    assert with_pair["input_ids"] == without["input_ids"]


# -- weights for ReAct text --


def test_a_plain_reply_with_a_line_that_begins_like_react_is_trained_whole(run: Run, tmp_path: Path) -> None:
    def said(*turns: tuple[str, str]) -> Row:
        return {"conversations": [{"from": who, "value": value} for who, value in turns]}

    note = "Day 4\nObservation: the stem is bent.\nConclusion: more light."
    call = "Thought: t\nAction: look\nAction Input: {}\nObservation: bent\nFinal Answer: Bent."
    source = [said(("user", "Note it."), ("assistant", note)), said(("user", "Look."), ("assistant", call))]
    result = run("compile", write(tmp_path / "x.jsonl", *source), "--no-shuffle", "-o", tmp_path / "out")
    plain, react = rows(tmp_path / "out")
    assert trained(tmp_path / "out", plain) == [f"{note}{STOP}"]
    assert plain["loss_weights"] is None  # all of them are 1
    assert {weight for weight in react["loss_weights"] if weight} == {1.0, 2.0}
    assert " bent\n" not in "".join(trained(tmp_path / "out", react))
    assert "x: react weights: 1 of 2 rows" in result.stdout
    assert "react_observation" not in manifest(tmp_path / "out")["datasets"][0]["notes"]  # it is no ReAct text


def test_an_api_list_in_the_system_text_makes_a_row_react_text(compiled: Callable[..., list[Row]]) -> None:
    apis = 'You have access to the following APIs:\n1. look: Call this tool to look. Parameters: [{"name": "x"}]'
    turns = [("system", apis), ("user", "Note it."), ("assistant", "Thought: hm\nObservation: bent")]
    (example,) = compiled({"conversations": [{"from": who, "value": value} for who, value in turns]})
    assert 2.0 in example["loss_weights"]


# -- nothing empty, nothing unfilled --

EMPTY = {
    "an empty text": chat(("u", "x"), ("a", "")),
    "space alone": chat(("u", "x"), ("a", " \n")),
    "an alpaca output": {"instruction": "x", "output": ""},
    "a rejected reply": {"instruction": "x", "chosen": "yes", "rejected": ""},
}


@pytest.mark.parametrize("what", EMPTY)
def test_a_reply_with_nothing_in_it_is_a_reject_unless_asked_for(run: Run, tmp_path: Path, what: str) -> None:
    good = {"a rejected reply": {"instruction": "x", "chosen": "yes", "rejected": "no"}}
    good |= {"an alpaca output": {"instruction": "x", "output": "y"}}
    source = [EMPTY[what], good.get(what, chat(("u", "Hi"), ("a", "Hello.")))]
    file = write(tmp_path / "x.jsonl", *source)
    result = run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (0, "empty_reply")
    assert "--allow-empty" in reject["message"]
    assert "rejected: empty_reply" in result.stdout
    result = run("compile", file, "--allow-empty", "--no-shuffle", "-o", tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 2
    assert "in 1 row, a reply is empty, and its stop was trained" in result.stdout


def test_an_empty_reply_that_is_not_trained_is_no_mistake(compiled: Callable[..., list[Row]]) -> None:
    assert compiled(chat(("u", "x"), ("a", "", {"loss": False}), ("u", "y"), ("a", "z")))


def test_placeholders_and_markers_of_other_templates_are_counted_by_their_text(run: Run, tmp_path: Path) -> None:
    source = [
        chat(("u", "Who?"), ("a", "I am {{NAME}} by {{ author }}.")),
        chat(("u", "Who?"), ("a", "I am {{NAME}}, {x}, {{}} and {{ two words }}.")),
        chat(("u", "<IMG_CONTEXT> What?"), ("a", "A lamp.")),
        chat(("u", "Tell.\n\n### Response:"), ("a", "[INST] no")),
        chat(("u", "Human: hi\n\nAssistant: hello"), ("a", "Human: is a word.")),
    ]
    result = run("compile", write(tmp_path / "x.jsonl", *source), "-o", tmp_path / "out")
    assert manifest(tmp_path / "out")["datasets"][0]["notes"] == {
        "placeholder: {{NAME}}": 2, "placeholder: {{ author }}": 1, "placeholder: <IMG_CONTEXT>": 1,
        "marker: ### Response:": 1, "marker: [INST]": 1, "marker: Human: / Assistant:": 1,
    }  # fmt: skip
    assert "x: in 2 rows, the placeholder {{NAME}} was not filled in" in " ".join(result.stdout.split())
    assert "x: in 1 row, the text carries [INST], which another template writes" in " ".join(result.stdout.split())


# -- what the tokenizer and its template do to rows --


def test_own_rows_with_the_demo_tokenizer_are_a_warning_that_says_what_to_pass(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", chat(("u", "Hi"), ("a", "Hello.")))
    said = run("compile", file, "-o", tmp_path / "out").stderr
    assert "warning: x: the demo tokenizer is no model's" in said
    assert "pass --tokenizer" in said
    tokenizer = ("--tokenizer", shared("tokenizers", "qwen2.5"))
    assert "demo tokenizer" not in run("compile", file, *tokenizer, "-o", tmp_path / "out").stderr
    assert "demo tokenizer" not in run("compile", "--mix", "agent", "-o", tmp_path / "out").stderr


def test_a_system_text_of_the_template_that_names_another_model_is_a_warning(run: Run, tmp_path: Path) -> None:
    options = ("--self-cognition", 4, "--name", "Marvin", "--author", "Sirius", "--mix", "agent#4")
    tokenizer = ("--tokenizer", shared("tokenizers", "qwen2.5"))
    said = run("compile", *options, *tokenizer, "-o", tmp_path / "out").stderr
    assert "the chat template's own system text names" in said and "Qwen" in said
    said = run("compile", *options, *tokenizer, "--template", "chatml", "-o", tmp_path / "out").stderr
    assert "own system text names" not in said
