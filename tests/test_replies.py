"""Replies and turns as people write them: who speaks first, one reply in several messages, empty replies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.support.sets import Row, chat, rejects, rows, text, trained, write
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
