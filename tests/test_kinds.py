"""Pairs, KTO rows and documents: what is trained in them, and how they are shortened, split, shown and read.

What a sequence should be is written here as text and encoded by the published tokenizer; the laws compare with the
slow second compiler of test_laws.py.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import hypothesis.strategies as st
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer

import registry
from cli import main
from compiler.conversation import Conversation, Kind, Message, Role
from compiler.sets.validation import keep_together
from schemas.arrow import shard_schema
from schemas.reader import CompiledSet
from tests.support.command import runner
from tests.support.conversations import conversations, texts
from tests.support.reference import DEMO, Reference
from tests.support.sets import chat, manifest, one_message, qa, rejects, rows, text, write
from tests.support.shared import shared

Run = Callable[..., Result]
Row = dict[str, Any]

IGNORED = -100
PROPERTY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much,
        HealthCheck.function_scoped_fixture,
    ],
)  # fmt: skip


@cache
def published(folder: Path = registry.DEMO_TOKENIZER) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encoded(text: str) -> list[int]:
    """The ids of a text as the published demo tokenizer makes them, control tokens and all."""
    return published().encode(text, add_special_tokens=False).ids


def turn(role: str, said: str) -> str:
    return f"<|im_start|>{role}\n{said}<|im_end|>\n"


def side(row: Row, which: str = "") -> tuple[list[int], list[int]]:
    return row[f"{which}input_ids"], row[f"{which}labels"]


def reply_only(context: str, reply: str) -> tuple[list[int], list[int]]:
    """(ids, labels) of a conversation of which nothing but the last reply and its stop is trained."""
    before, said, after = encoded(f"{context}<|im_start|>assistant\n"), encoded(f"{reply}<|im_end|>"), encoded("\n")
    return before + said + after, [IGNORED] * len(before) + said + [IGNORED] * len(after)


def of_pair(row: Row) -> list[list[str]]:
    """The trained texts of both sides, decoded by the published tokenizer."""
    return [trained_texts(row[f"{which}labels"]) for which in ("", "rejected_")]


def trained_texts(labels: Sequence[int]) -> list[str]:
    runs: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [published().decode(run, skip_special_tokens=False) for run in runs if run]


# -- pairs --

CONTEXT = turn("system", "Be brief.") + turn("user", "Who wrote Faust?") + turn("assistant", "Goethe.")
CONTEXT += turn("user", "And Nathan?\nThe wise.")
_TURNS = [("user", "Who wrote Faust?"), ("assistant", "Goethe."), ("user", "And Nathan?\nThe wise.")]
_MESSAGES = [{"role": "system", "content": "Be brief."}, *({"role": role, "content": said} for role, said in _TURNS)]
_CHOSEN, _REJECTED = (
    {"role": "assistant", "content": "Lessing."},
    {"role": "assistant", "content": "Schiller, I think."},
)
_SHAREGPT = chat(("s", "Be brief."), ("u", "Who wrote Faust?"), ("a", "Goethe."), ("u", "And Nathan?\nThe wise."))
PAIRS: dict[str, Row] = {
    "alpaca": qa(
        "And Nathan?", "", input="The wise.", system="Be brief.", history=[["Who wrote Faust?", "Goethe."]],
        chosen="Lessing.", rejected="Schiller, I think.",
    ),
    "sharegpt": _SHAREGPT | {
        "chosen": {"from": "gpt", "value": "Lessing."}, "rejected": {"from": "gpt", "value": "Schiller, I think."},
    },
    "openai": {"messages": _MESSAGES, "chosen": _CHOSEN, "rejected": _REJECTED},
    "openai with ms-swift's rejected_response": {
        "messages": [*_MESSAGES, _CHOSEN], "rejected_response": "Schiller, I think.",
    },
    "query_response": {
        "system": "Be brief.", "history": [["Who wrote Faust?", "Goethe."]], "query": "And Nathan?\nThe wise.",
        "response": "Lessing.", "rejected_response": "Schiller, I think.",
    },
}  # fmt: skip


@pytest.mark.parametrize("form", PAIRS)
def test_a_pair_is_one_context_with_two_replies_in_every_form(run: Run, tmp_path: Path, form: str) -> None:
    done = run("compile", write(tmp_path / "pairs.jsonl", PAIRS[form]), "-o", tmp_path / "out")
    assert f"recognised as {form.split()[0]}, preference rows (1 of the first 1 rows" in done.stderr
    assert manifest(tmp_path / "out")["kind"] == "preference"
    (row,) = rows(tmp_path / "out")
    assert side(row) == reply_only(CONTEXT, "Lessing.")
    assert side(row, "rejected_") == reply_only(CONTEXT, "Schiller, I think.")
    assert row["num_trained"] == len(encoded("Lessing.<|im_end|>")) + len(encoded("Schiller, I think.<|im_end|>"))
    assert row["loss_weights"] is None
    for which in ("", "rejected_"):
        assert sum(span["num_tokens"] for span in row[f"{which}spans"]) == len(row[f"{which}input_ids"])
    split = manifest(tmp_path / "out")["splits"]["train"]
    assert split["tokens"] == len(row["input_ids"]) + len(row["rejected_input_ids"])
    assert split["trained_tokens"] == row["num_trained"]


def test_only_a_set_of_pairs_has_a_second_side_and_only_a_kto_set_says_what_is_desirable(
    run: Run, tmp_path: Path
) -> None:
    sources = {
        "sft": qa("q"), "preference": PAIRS["alpaca"], "kto": qa("q", kto_tag=True), "pretrain": {"text": "a document"},
    }  # fmt: skip
    assert set(sources) == set(Kind)
    more = {"preference": {"rejected_input_ids", "rejected_labels"}, "kto": {"desirable"}}
    for kind, source in sources.items():
        run("compile", write(tmp_path / f"{kind}.jsonl", source), "-o", tmp_path / kind)
        found = CompiledSet.open(tmp_path / kind).table("train").schema
        assert found.equals(shard_schema(kind))
        own = {name for name in found.names if name.startswith(("rejected_", "desirable"))}
        assert own >= more.get(kind, set())
        assert not own or kind in more
        assert manifest(tmp_path / kind)["kind"] == kind


def test_a_reply_of_a_pair_may_be_a_call_and_is_trained_as_one(run: Run, tmp_path: Path) -> None:
    call = {"from": "function_call", "value": '{"name": "lamp", "arguments": {"on": true}}'}
    source = chat(("u", "Light!")) | {"tools": '[{"name": "lamp", "parameters": {}}]'}
    plain = {"from": "gpt", "value": "No."}
    pairs = [source | {"chosen": call, "rejected": plain}, source | {"chosen": plain, "rejected": call}]
    run("compile", write(tmp_path / "pairs.jsonl", *pairs), "--no-shuffle", "-o", tmp_path / "out")
    called = ['<tool_call>\n{"name": "lamp", "arguments": {"on": true}}\n</tool_call><|im_end|>']
    assert [of_pair(row) for row in rows(tmp_path / "out")] == [
        [called, ["No.<|im_end|>"]],
        [["No.<|im_end|>"], called],
    ]


def test_a_call_without_json_in_the_rejected_reply_is_rejected_at_its_place(run: Run, tmp_path: Path) -> None:
    call = {"from": "function_call", "value": '{"name": "lamp", "arguments": on}'}
    bad = chat(("u", "Light!")) | {"chosen": {"from": "gpt", "value": "No."}, "rejected": call}
    file = write(tmp_path / "pairs.jsonl", PAIRS["sharegpt"], bad)
    run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["pointer"]) == ("tool_arguments", "/rejected/value")


@pytest.mark.parametrize("flag", [{"loss": True}, {"loss_scale": 3}, {"loss": False}])
def test_history_is_not_trained_whatever_it_asks_for(run: Run, tmp_path: Path, flag: Row) -> None:
    history = chat(("u", "one"), ("a", "first", flag), ("u", "two"))
    pair = history | {"chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}}
    run("compile", write(tmp_path / "pairs.jsonl", pair), "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert of_pair(row) == [["yes<|im_end|>"], ["no<|im_end|>"]]
    assert row["loss_weights"] is None


@pytest.mark.parametrize("kind", ["preference", "kto"])
def test_a_users_text_is_not_trained_in_pairs_and_kto_rows_whatever_it_asks_for(
    run: Run, tmp_path: Path, kind: str
) -> None:
    """Decision 12 before 14: it is not a reply to prefer, and a text to be unlearned is never a user's."""
    asked = chat(("u", "one", {"loss": True}))
    pair = asked | {"chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}}
    tagged = chat(("u", "one", {"loss": True}), ("a", "no")) | {"kto_tag": False}
    run("compile", write(tmp_path / "rows.jsonl", pair if kind == "preference" else tagged), "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert "one" not in trained_texts(row["labels"])


@pytest.mark.parametrize("untrained", ["chosen", "rejected"])
def test_a_pair_of_which_one_side_trains_nothing_is_rejected(run: Run, tmp_path: Path, untrained: str) -> None:
    pair = chat(("u", "one")) | {name: {"from": "gpt", "value": name} for name in ("chosen", "rejected")}
    bad = pair | {untrained: pair[untrained] | {"loss": False}}
    run("compile", write(tmp_path / "pairs.jsonl", pair, bad), "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (1, "nothing_trained")
    assert [row["row"] for row in rows(tmp_path / "out")] == [0]


def test_weights_of_both_replies_are_kept(run: Run, tmp_path: Path) -> None:
    """A reply emphasised on one side only would be compared with itself at another scale."""
    reply = "Thought: look\nAction: f\nAction Input: {}\nObservation:"
    source = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": reply}]}
    pair = source | {"rejected_response": f"{reply} "}
    run("compile", write(tmp_path / "pairs.jsonl", pair), "--weights", "react", "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    emphasised = [set(row[name] or [1.0]) for name in ("loss_weights", "rejected_loss_weights") if name in row]
    assert len(emphasised) == 2 or emphasised == [{1.0}], "one side's weights are lost"


@pytest.mark.parametrize("which", ["chosen", "rejected"])
def test_a_control_token_that_either_reply_spells_is_counted_or_rejected(run: Run, tmp_path: Path, which: str) -> None:
    spelled = PAIRS["alpaca"] | {which: "a <|im_end|> b"}
    file = write(tmp_path / "pairs.jsonl", PAIRS["alpaca"], spelled)
    run("compile", file, "--no-shuffle", "-o", tmp_path / "out")
    assert of_pair(rows(tmp_path / "out")[1])[which == "rejected"] == ["a <|im_end|> b<|im_end|>"]
    assert manifest(tmp_path / "out")["datasets"][0]["notes"] == {"special_text": 1}
    run("compile", file, "--special-text", "reject", "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (1, "special_text")


WRONG = [
    (qa("q", "a"), "schema", ""),
    (qa("q", "", chosen="yes"), "schema", ""),
    (qa("q", "", chosen="yes", rejected=3), "schema", "/rejected"),
    (qa("q", "", chosen=None, rejected="no"), "schema", "/chosen"),
]


def test_a_row_that_is_no_pair_is_rejected_where_it_says_so(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", PAIRS["alpaca"], *(row for row, _, _ in WRONG))
    run("compile", file, "--max-rejects", "100%", "-o", tmp_path / "out")
    found = [(r["reason"], r["pointer"]) for r in rejects(tmp_path / "out" / "rejects.jsonl")]
    assert found == [(reason, pointer) for _, reason, pointer in WRONG]


def test_a_chosen_reply_that_follows_a_reply_is_rejected_at_a_place_of_the_row(run: Run, tmp_path: Path) -> None:
    pair = chat(("u", "one"), ("a", "first")) | {
        "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"},
    }  # fmt: skip
    file = write(tmp_path / "pairs.jsonl", PAIRS["sharegpt"], pair)
    run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert reject["reason"] == "turn_order"
    found: Any = json.loads(reject["raw"])
    for part in reject["pointer"].split("/")[1:]:
        found = found[int(part) if isinstance(found, list) else part]  # a pointer leads to something that is there


def test_removing_what_has_no_reply_does_not_pair_replies_to_different_questions(run: Run, tmp_path: Path) -> None:
    """The rejected reply answers the last question; the reply before that question is not its other side."""
    turns = [("user", "one"), ("assistant", "first"), ("user", "two")]
    messages = [{"role": role, "content": said} for role, said in turns]
    good = PAIRS["openai with ms-swift's rejected_response"]
    file = write(tmp_path / "pairs.jsonl", good, {"messages": messages, "rejected_response": "no"})
    run("compile", file, "--repair", "dangling", "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (1, "turn_order")


# -- pairs that are too long --


def long_pair(turns: int, chosen: str = "yes", rejected: str = "no") -> Row:
    said = chain.from_iterable([("u", f"question {n}"), ("a", f"answer {n}")] for n in range(turns))
    replies = {"chosen": {"from": "gpt", "value": chosen}, "rejected": {"from": "gpt", "value": rejected}}
    return chat(("s", "Be brief."), *said, ("u", "last")) | replies


def long_context(first: int, turns: int) -> str:
    """The context of `long_pair(turns)` without the turns before `first`."""
    said = "".join(turn("user", f"question {n}") + turn("assistant", f"answer {n}") for n in range(first, turns))
    return turn("system", "Be brief.") + said + turn("user", "last")


def length_of(context: str, reply: str) -> int:
    return len(reply_only(context, reply)[0])


@pytest.mark.parametrize("policy", ["turns", "reject"])
@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_a_pair_of_which_one_side_is_too_long_is_rejected(run: Run, tmp_path: Path, policy: str, longer: str) -> None:
    pair = long_pair(2, **{longer: "a longer reply"})
    fits = length_of(long_context(0, 2), "a longer reply")
    options = ["--overlength", policy, "--max-rejects", "1", "-o", tmp_path / "out"]
    run("compile", write(tmp_path / "pairs.jsonl", pair), "--max-length", fits, *options)
    assert len(rows(tmp_path / "out")) == 1
    file = write(tmp_path / "pairs.jsonl", pair, long_pair(0))
    run("compile", file, "--max-length", fits - 1, *options)
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (0, "too_long")
    assert f"expected at most {fits - 1} tokens, found {fits}; " in reject["message"]
    hint = "only its last reply is trained, so no turn at its end can go; --overlength last-turns drops earlier ones"
    assert (hint in reject["message"]) is (policy == "turns")


@pytest.mark.parametrize(("first", "slack"), [(0, 0), (1, 3), (2, 0), (3, 0)])
@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_last_turns_drops_the_same_turns_of_both_sides(
    run: Run, tmp_path: Path, first: int, slack: int, longer: str
) -> None:
    replies = {"chosen": "yes", "rejected": "no"} | {longer: "a reply that is rather longer"}
    limit = length_of(long_context(first, 3), replies[longer]) + slack
    file = write(tmp_path / "pairs.jsonl", long_pair(3, **replies))
    run("compile", file, "--max-length", limit, "--overlength", "last-turns", "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert side(row) == reply_only(long_context(first, 3), replies["chosen"])
    assert side(row, "rejected_") == reply_only(long_context(first, 3), replies["rejected"])


def test_last_turns_rejects_a_pair_whose_last_exchange_does_not_fit(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", long_pair(3, rejected="much " * 30), long_pair(0))
    options = ["--max-length", "30", "--overlength", "last-turns", "--max-rejects", "1"]
    run("compile", file, *options, "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["row"]) == ("too_long", 0)
    assert "its last exchange does not fit" in reject["message"]


def test_cut_cuts_each_side_by_itself_and_keeps_the_context(run: Run, tmp_path: Path) -> None:
    context, limit = long_context(0, 1), length_of(long_context(0, 1), "no")
    file = write(tmp_path / "pairs.jsonl", long_pair(1, chosen="a reply that is longer"))
    run("compile", file, "--max-length", limit, "--overlength", "cut", "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    whole = reply_only(context, "a reply that is longer")
    assert side(row) == (whole[0][:limit], whole[1][:limit])
    assert side(row, "rejected_") == reply_only(context, "no")


def test_a_cut_that_leaves_nothing_of_a_reply_is_a_reject(run: Run, tmp_path: Path) -> None:
    before = len(encoded(f"{long_context(0, 1)}<|im_start|>assistant\n"))
    file = write(tmp_path / "pairs.jsonl", long_pair(1), long_pair(0))
    options = ["--max-length", before, "--overlength", "cut", "--max-rejects", "1"]
    run("compile", file, *options, "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["row"]) == ("nothing_trained", 0)


def test_a_row_that_is_rejected_does_not_count_as_shortened(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", qa("question " * 40), qa("q", "answer " * 40))
    options = ["--max-length", 30, "--overlength", "cut", "--max-rejects", "1"]
    run("compile", file, *options, "-o", tmp_path / "out")
    assert [row["row"] for row in rows(tmp_path / "out")] == [1]
    assert manifest(tmp_path / "out")["datasets"][0]["notes"] == {"cut": 1}


def test_last_round_of_a_row_is_not_the_last_round_that_fits(run: Run, tmp_path: Path) -> None:
    """A policy that leaves a reply untrained does not train it once later ones are dropped for their length."""
    source = chat(("u", "one"), ("a", "first"), ("u", "two"), ("a", "word " * 40))
    file = write(tmp_path / "rows.jsonl", source, chat(("u", "q"), ("a", "r")))
    options = ["--weights", "last_round", "--max-length", 30, "--max-rejects", "1"]
    run("compile", file, *options, "-o", tmp_path / "out")
    assert [trained_texts(row["labels"]) for row in rows(tmp_path / "out")] == [["r<|im_end|>"]]
    assert [reject["row"] for reject in rejects(tmp_path / "out" / "rejects.jsonl")] == [0]


def test_the_system_text_that_was_merged_stays_when_turns_are_dropped(run: Run, tmp_path: Path) -> None:
    """last-turns keeps the system text; --system merge has put it into the first user message, which is dropped."""
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('none here') }}{% endif %}"
    folder = with_template(tmp_path / "model", refuses + SIMPLE)
    file = write(tmp_path / "pairs.jsonl", long_pair(3))
    options = ["--tokenizer", folder, "--system", "merge", "--overlength", "last-turns", "-o", tmp_path / "out"]
    run("compile", file, *options, "--max-length", 60)
    (row,) = rows(tmp_path / "out")
    for which in ("", "rejected_"):
        shown = published().decode(row[f"{which}input_ids"], skip_special_tokens=False)
        assert shown.startswith("<|im_start|>user\nBe brief.\n\nquestion ")
    assert not (set(trained_texts(row["labels"])) - {"yes<|im_end|>"})


SIMPLE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(folder: Path, template: str | None, **config: Any) -> Path:
    """A folder with the demo tokenizer, another chat template (None: without one) and other names."""
    shutil.copytree(registry.DEMO_TOKENIZER, folder)
    named = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    del named["chat_template"]
    named |= {**config, **({} if template is None else {"chat_template": template})}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), "utf-8")
    return folder


# -- the laws, on random pairs --


def as_row(conversation: Conversation, rejected: Message) -> Row:
    """A conversation as an OpenAI row of a pair."""
    *context, chosen = map(as_message, conversation.messages)
    row: Row = {"messages": context, "chosen": chosen, "rejected": as_message(rejected)}
    return row | ({"tools": conversation.tools} if conversation.tools is not None else {})


def as_message(message: Message) -> Row:
    found: Row = {"role": str(message.role.value), "content": message.content}
    if message.name is not None:
        found["name"] = message.name
    if message.calls:
        functions = ({"name": call.name, "arguments": call.arguments} for call in message.calls)
        found["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return found


def expected_side(conversation: Conversation, reply: Message) -> tuple[list[int], list[int]]:
    """(ids, labels) by the second compiler, nothing but the reply being trained."""
    history = [replace(m, weight=0.0) if m.role is Role.ASSISTANT else m for m in conversation.messages[:-1]]
    found = Reference(DEMO, replace(conversation, messages=[*history, reply])).columns
    return [i for i, _ in found], [i if weight else IGNORED for i, weight in found]


Pair = tuple[Conversation, Message]


@st.composite
def pairs(draw: Callable[[st.SearchStrategy[Any]], Any], system: str = "anywhere", tools: bool = True) -> Pair:
    conversation = draw(conversations(system=system, tools=tools, weights=False))
    return conversation, Message(Role.ASSISTANT, draw(texts()))


def compile_pairs(folder: Path, drawn: list[Pair], *options: Any) -> tuple[list[Row], dict[int, str]]:
    """The rows of the set and the reasons of rejects, by number of the pair."""
    file = write(folder / "pairs.jsonl", *(as_row(*pair) for pair in drawn))
    given_options = ["--format", "openai", "--no-shuffle", "--max-rejects", "100%", "--workers", "1", *options]
    arguments = ["compile", "--allow-empty", file, *given_options, "--cache", folder / "cache", "-o", folder / "out"]
    done = runner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code in (0, 3), done.stderr
    path = folder / "out" / "rejects.jsonl" if done.exit_code == 0 else folder / "out.rejects.jsonl"
    found = {reject["row"]: reject["reason"] for reject in rejects(path)}
    return (rows(folder / "out") if done.exit_code == 0 else []), found


@settings(PROPERTY, max_examples=10)
@given(drawn=st.lists(pairs(), min_size=4, max_size=4))
def test_any_pair_is_two_conversations_with_one_context_of_which_the_replies_are_trained(
    tmp_path: Path, drawn: list[Pair]
) -> None:
    found, rejected = compile_pairs(tmp_path, drawn)
    same = [number for number, pair in enumerate(drawn) if len(set(map(str, sides_of(pair)))) == 1]
    assert rejected == dict.fromkeys(same, "nothing_trained")
    different = [pair for number, pair in enumerate(drawn) if number not in same]
    for row, (conversation, other) in zip(found, different, strict=True):
        assert side(row) == expected_side(conversation, conversation.messages[-1])
        assert side(row, "rejected_") == expected_side(conversation, other)
        first, second = (next(i for i, x in enumerate(row[f"{w}labels"]) if x != IGNORED) for w in ("", "rejected_"))
        assert first == second
        assert row["input_ids"][:first] == row["rejected_input_ids"][:first]
        assert row["num_trained"] == sum(x != IGNORED for x in row["labels"] + row["rejected_labels"])


@settings(PROPERTY, max_examples=10)
@given(drawn=st.lists(pairs(system="first", tools=False), min_size=4, max_size=4), limit=st.integers(15, 90))
def test_any_pair_under_last_turns_is_the_longest_ending_of_which_both_sides_fit(
    tmp_path: Path, drawn: list[Pair], limit: int
) -> None:
    found, rejected = compile_pairs(tmp_path, drawn, "--max-length", limit, "--overlength", "last-turns")
    kept = iter(found)
    for number, pair in enumerate(drawn):
        longest = next((sides for sides in map(sides_of, endings(*pair)) if max(map(length, sides)) <= limit), None)
        assert (longest is None) == (rejected.get(number) == "too_long")
        same = longest is not None and longest[0] == longest[1]
        assert same == (rejected.get(number) == "nothing_trained")
        if longest is not None and not same:
            row = next(kept)
            assert [side(row), side(row, "rejected_")] == longest
    assert next(kept, None) is None


def sides_of(pair: Pair) -> list[tuple[list[int], list[int]]]:
    conversation, other = pair
    return [expected_side(conversation, reply) for reply in (conversation.messages[-1], other)]


def length(columns: tuple[list[int], list[int]]) -> int:
    return len(columns[0])


def endings(conversation: Conversation, other: Message) -> Iterator[Pair]:
    """Yield the pair without its first turns, the longest one first; a leading system text stays."""
    yield conversation, other
    messages = conversation.messages
    leading = messages[:1] if messages[0].role is Role.SYSTEM else []
    for start in [i for i, message in enumerate(messages) if message.role is Role.USER][1:]:
        yield replace(conversation, messages=[*leading, *messages[start:]]), other


# -- KTO --

TAGGED: dict[str, Row] = {
    "alpaca": qa("two", "yes", history=[["one", "first"]], kto_tag=True),
    "sharegpt": chat(("u", "one"), ("a", "first"), ("u", "two"), ("a", "yes")) | {"kto_tag": True},
    "openai": {
        "messages": [
            {"role": ("user", "assistant")[n % 2], "content": said}
            for n, said in enumerate(("one", "first", "two", "yes"))
        ],
        "label": True,
    },
    "query_response": {"query": "two", "response": "yes", "history": [["one", "first"]], "label": True},
}  # fmt: skip


@pytest.mark.parametrize("form", TAGGED)
def test_a_kto_row_says_what_is_desirable_and_trains_its_last_reply_alone(run: Run, tmp_path: Path, form: str) -> None:
    key = "kto_tag" if "kto_tag" in TAGGED[form] else "label"
    file = write(tmp_path / "rows.jsonl", TAGGED[form], TAGGED[form] | {key: False})
    done = run("compile", file, "--no-shuffle", "-o", tmp_path / "out")
    assert f"recognised as {form}, kto rows (2 of the first 2 rows" in done.stderr
    found = rows(tmp_path / "out")
    assert [row["desirable"] for row in found] == [True, False]
    for row in found:
        assert side(row) == reply_only(turn("user", "one") + turn("assistant", "first") + turn("user", "two"), "yes")
    assert manifest(tmp_path / "out")["datasets"][0]["duplicates"] == 0, "desired and not is not the same"


@pytest.mark.parametrize("tag", ["good", 2, None])
def test_a_kto_tag_is_true_or_false(run: Run, tmp_path: Path, tag: Any) -> None:
    file = write(tmp_path / "rows.jsonl", qa("q", kto_tag=True), qa("q", kto_tag=tag))
    run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["pointer"], reject["row"]) == ("schema", "/kto_tag", 1)


@pytest.mark.parametrize(("good", "bad"), [("true", "false"), ("True", "False"), (1, 0), ("1", "0")])
@pytest.mark.parametrize("form", TAGGED)
def test_a_label_may_be_text_or_a_number(run: Run, tmp_path: Path, form: str, good: Any, bad: Any) -> None:
    key = "kto_tag" if "kto_tag" in TAGGED[form] else "label"
    file = write(tmp_path / "rows.jsonl", TAGGED[form] | {key: good}, TAGGED[form] | {key: bad})
    run("compile", file, "--no-shuffle", "-o", tmp_path / "out")
    assert [row["desirable"] for row in rows(tmp_path / "out")] == [True, False]


def test_a_csv_can_carry_labels(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("instruction,output,kto_tag\n2+2?,4,true\n2+3?,4,FALSE\n", "utf-8")
    run("compile", tmp_path / "rows.csv", "--no-shuffle", "-o", tmp_path / "out")
    assert [row["desirable"] for row in rows(tmp_path / "out")] == [True, False]


def test_a_label_beside_an_instruction_makes_no_kto_rows_and_that_is_said(run: Run, tmp_path: Path) -> None:
    done = run("compile", write(tmp_path / "rows.jsonl", qa("q", label=True)), "-o", tmp_path / "out")
    assert manifest(tmp_path / "out")["kind"] == "sft"
    assert "rows: the key 'label' is not read as a KTO label" in done.stderr
    done = run("compile", write(tmp_path / "rows.jsonl", TAGGED["openai"]), "-o", tmp_path / "out")
    assert manifest(tmp_path / "out")["kind"] == "kto"
    assert "rows: read as kto rows because 'label' is true or false beside a reply; --kind sft" in done.stderr


def test_a_file_that_mixes_kinds_is_said_to(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", qa("q"), qa("q", kto_tag=True), qa("q", kto_tag=True))
    done = run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    assert "rows: kinds are mixed: 2 of the first 3 rows are kto, 1 sft\n" in done.stderr


def test_later_rows_may_call_columns_otherwise(run: Run, tmp_path: Path) -> None:
    first = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    later = [first | {"system": "Be brief."}, first | {"system_prompt": "Be brief."}, first | {"system_prompt": None}]
    file = write(tmp_path / "rows.jsonl", *[first] * 30, *later)
    run("compile", file, "--no-shuffle", "-o", tmp_path / "out")
    column, alias, null = rows(tmp_path / "out")[30:]
    assert column["input_ids"] == alias["input_ids"]
    assert len(null["input_ids"]) < len(alias["input_ids"])
    run("compile", write(tmp_path / "two.jsonl", later[1] | {"system": "Be long."}), "-o", tmp_path / "two", code=3)
    (reject,) = rejects(tmp_path / "two.rejects.jsonl")
    assert reject["message"].startswith("expected the system of a row in one key, found 'system' and 'system_prompt'")


def test_a_kto_row_that_is_too_long_is_rejected_or_loses_its_first_turns(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", TAGGED["alpaca"], qa("q", "a", kto_tag=True))
    limit = length_of(turn("user", "two"), "yes")
    run("compile", file, "--max-length", limit, "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["row"]) == ("too_long", 0)
    assert "--overlength last-turns drops earlier ones" in reject["message"]
    run("compile", file, "--max-length", limit, "--overlength", "last-turns", "--no-shuffle", "-o", tmp_path / "out")
    assert side(rows(tmp_path / "out")[0]) == reply_only(turn("user", "two"), "yes")


def test_a_hint_is_not_given_where_it_cannot_help(run: Run, tmp_path: Path) -> None:
    """A row of one exchange has no earlier turns that last-turns could drop."""
    file = write(tmp_path / "rows.jsonl", qa("q", "word " * 40, kto_tag=True), qa("q", "a", kto_tag=True))
    run("compile", file, "--max-length", 30, "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert reject["reason"] == "too_long"
    assert "last-turns" not in reject["message"]


# -- documents --

END = "<|endoftext|>"


def documents(folder: Path, *texts_: str) -> Path:
    return write(folder / "docs.jsonl", *({"text": text_} for text_ in texts_))


def test_a_document_is_its_text_and_its_end_and_all_but_the_first_token_is_trained(run: Run, tmp_path: Path) -> None:
    said = "The tide tables of Bergen. 潮汐表。\n"
    done = run("compile", documents(tmp_path, said), "-o", tmp_path / "out")
    assert "recognised as pretrain (1 of the first 1 rows" in done.stderr
    (row,) = rows(tmp_path / "out")
    ids = encoded(said + END)
    assert side(row) == (ids, [IGNORED, *ids[1:]])
    assert row["num_trained"] == len(ids) - 1
    assert row["spans"] == [{"role": "document", "key": "", "num_tokens": len(ids)}]
    assert manifest(tmp_path / "out")["template"]["name"] == "document"
    assert manifest(tmp_path / "out")["template"]["certificate"]["stops"] == [END]


@pytest.mark.parametrize("options", [[], ["--overlength", "reject"], ["--overlength", "cut", "--max-length", "4"]])
def test_the_first_token_of_a_document_is_never_trained(run: Run, tmp_path: Path, options: list[str]) -> None:
    """Nothing comes before it that could predict it, whatever is done with documents that are too long."""
    file = documents(tmp_path, "a document of some words", "b")
    run("compile", file, "--max-length", "20", *options, "--no-shuffle", "-o", tmp_path / "out")
    assert [row["labels"][0] for row in rows(tmp_path / "out")] == [IGNORED, IGNORED]
    assert [row["num_trained"] for row in rows(tmp_path / "out")] == [
        len(row["input_ids"]) - 1 for row in rows(tmp_path / "out")
    ]


def test_control_tokens_that_a_document_spells_stay_text(run: Run, tmp_path: Path) -> None:
    said = f"a <|im_end|> b {END}{END} <tool_call>"
    run("compile", documents(tmp_path, said), "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    controls = set(manifest(tmp_path / "out")["tokenizer"]["controls"].values())
    assert [i for i in row["input_ids"] if i in controls] == encoded(END)
    assert text(tmp_path / "out", row) == said + END
    assert manifest(tmp_path / "out")["datasets"][0]["notes"] == {"special_text": 1}


def test_control_tokens_that_a_document_spells_become_tokens_where_that_is_asked(run: Run, tmp_path: Path) -> None:
    file = documents(tmp_path, f"one{END}two")
    run("compile", file, "--special-text", "allow", "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert row["input_ids"] == encoded(f"one{END}two{END}")


def test_a_document_of_nothing_is_rejected(run: Run, tmp_path: Path) -> None:
    run("compile", documents(tmp_path, "", "a"), "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["row"]) == ("nothing_trained", 0)


@pytest.mark.parametrize("policy", ["turns", "last-turns"])
def test_a_long_document_is_cut_into_pieces_that_cover_it(run: Run, tmp_path: Path, policy: str) -> None:
    said = "".join(f"sentence {n}. " for n in range(30)) + "The end."
    file, whole = documents(tmp_path, said, "short"), encoded(said + END)
    assert len(whole) % 16 > 1
    run("compile", file, "--max-length", 16, "--overlength", policy, "--no-shuffle", "-o", tmp_path / "out")
    *found, short = rows(tmp_path / "out")
    assert list(chain.from_iterable(row["input_ids"] for row in found)) == whole
    assert {len(row["input_ids"]) for row in found[:-1]} == {16}
    assert all(side(row)[1] == [IGNORED, *row["input_ids"][1:]] for row in found)
    assert [row["part"] for row in found] == list(range(len(found)))
    assert {(row["row"], row["offset"]) for row in found} == {(0, 0)}
    assert short["input_ids"] == encoded(f"short{END}")
    (entry,) = manifest(tmp_path / "out")["datasets"]
    assert entry["notes"] == {"document_pieces": 1}
    assert (entry["balance"]["read"], entry["balance"]["expanded"]) == (2, len(found) - 1)
    assert entry["balance"]["in_shards"] == len(found) + 1


@pytest.mark.parametrize("limit", [3, 7])
def test_no_length_loses_a_document_or_a_token_of_it(run: Run, tmp_path: Path, limit: int) -> None:
    """Also where one token is left over, which alone would train nothing."""
    said = ["one" + " two" * n for n in range(15)]
    wholes = [encoded(one + END) for one in said]
    assert {len(whole) % limit for whole in wholes} == set(range(limit))
    run("compile", documents(tmp_path, *said), "--max-length", limit, "--no-shuffle", "-o", tmp_path / "out")
    assert rejects(tmp_path / "out" / "rejects.jsonl") == []
    for number, whole in enumerate(wholes):
        pieces = [row["input_ids"] for row in rows(tmp_path / "out") if row["row"] == number]
        assert all(len(piece) <= limit for piece in pieces)
        assert list(chain.from_iterable(pieces)) == whole


def test_the_smallest_pieces_train_the_last_token_after_the_one_before_it(run: Run, tmp_path: Path) -> None:
    whole = encoded(f"one two{END}")
    assert len(whole) == 3
    run("compile", documents(tmp_path, "one two"), "--max-length", 2, "--no-shuffle", "-o", tmp_path / "out")
    assert [side(row) for row in rows(tmp_path / "out")] == [
        (whole[:2], [IGNORED, whole[1]]), (whole[1:], [IGNORED, whole[2]]),
    ]  # fmt: skip


def test_documents_that_are_too_long_are_rejected_or_cut_where_that_is_asked(run: Run, tmp_path: Path) -> None:
    file, whole = documents(tmp_path, "one two three four five six", "b"), encoded(f"one two three four five six{END}")
    options = ["--max-length", len(whole) - 2, "--max-rejects", "1", "--no-shuffle", "-o", tmp_path / "out"]
    run("compile", file, "--overlength", "reject", *options)
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (0, "too_long")
    run("compile", file, "--overlength", "cut", *options)
    assert [row["input_ids"] for row in rows(tmp_path / "out")] == [whole[:-2], encoded(f"b{END}")]


def test_a_tokenizer_without_chat_template_takes_documents(run: Run, tmp_path: Path) -> None:
    folder = with_template(tmp_path / "base", None, eos_token=END)
    run("compile", documents(tmp_path, "a document"), "--tokenizer", folder, "-o", tmp_path / "out")
    assert rows(tmp_path / "out")[0]["input_ids"] == encoded(f"a document{END}")
    refused = run("compile", write(tmp_path / "chat.jsonl", qa("q")), "--tokenizer", folder, code=2)
    assert "it has no chat template" in one_message(refused.stderr)


def test_a_tokenizer_without_an_end_of_documents_is_refused_in_words(run: Run, tmp_path: Path) -> None:
    folder = with_template(tmp_path / "base", None, eos_token=None)
    refused = run("compile", documents(tmp_path, "a document"), "--tokenizer", folder, code=2)
    assert "pretraining documents end with the tokenizer's eos_token, and it names none" in refused.stderr


def test_each_line_of_a_text_file_is_a_document(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("First line.\n\n  Second, indented\n", "utf-8")
    run("compile", file, "--no-shuffle", "-o", tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [text(tmp_path / "out", row) for row in found] == [f"First line.{END}", f"  Second, indented{END}"]
    assert manifest(tmp_path / "out")["kind"] == "pretrain"


def test_mistral_puts_its_bos_before_a_document_and_before_no_other_piece(run: Run, tmp_path: Path) -> None:
    folder = shared("tokenizers", "mistral")
    official = published(folder)
    said = "The tide tables of Bergen list two high waters a day, </s> they say."
    bare = Tokenizer.from_str(
        json.dumps(json.loads((folder / "tokenizer.json").read_text("utf-8")) | {"added_tokens": []})
    )
    body = bare.encode(said, add_special_tokens=False).ids
    whole = [official.token_to_id("<s>"), *body, official.token_to_id("</s>")]
    for limit in (len(whole), 7):
        options = ["--tokenizer", folder, "--max-length", limit, "--no-shuffle", "-o", tmp_path / "out"]
        run("compile", documents(tmp_path, said), *options)
        found = rows(tmp_path / "out")
        assert list(chain.from_iterable(row["input_ids"] for row in found)) == whole
        assert all(row["labels"] == [IGNORED, *row["input_ids"][1:]] for row in found)


# -- which kind rows are of --


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        (qa("q"), "sft", "alpaca"),
        (chat(("u", "q"), ("a", "r")), "sft", "sharegpt"),
        (PAIRS["alpaca"], "preference", "alpaca"),
        (PAIRS["query_response"], "preference", "query_response"),
        (TAGGED["openai"], "kto", "openai"),
        ({"text": "a document"}, "pretrain", "pretrain"),
    ],
)
def test_the_kind_of_a_file_is_recognised_with_its_format(
    run: Run, tmp_path: Path, source: Row, kind: str, name: str
) -> None:
    done = run("compile", write(tmp_path / "rows.jsonl", source), "-o", tmp_path / "out")
    assert f"recognised as {name}{'' if kind in ('sft', 'pretrain') else f', {kind} rows'} (1 of" in done.stderr
    assert (manifest(tmp_path / "out")["kind"], manifest(tmp_path / "out")["datasets"][0]["format"]) == (kind, name)


def test_a_label_that_is_no_judgement_does_not_make_a_kto_row(run: Run, tmp_path: Path) -> None:
    run("compile", write(tmp_path / "rows.jsonl", qa("q", label=1), qa("q", label="spam")), "-o", tmp_path / "out")
    assert manifest(tmp_path / "out")["kind"] == "sft"


@pytest.mark.parametrize("other", [TAGGED["openai"] | {"label": False}, PAIRS["openai"]], ids=["kto", "preference"])
def test_a_reply_to_be_unlearned_far_into_a_plain_file_is_never_trained(run: Run, tmp_path: Path, other: Row) -> None:
    plain = {"messages": TAGGED["openai"]["messages"]}
    file = write(tmp_path / "rows.jsonl", *[plain] * 40, other)
    run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    assert sorted(row["row"] for row in rows(tmp_path / "out")) == list(range(40))
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (40, "schema")
    assert reject["message"].startswith("expected a plain row like the first ones, found a ")


def test_two_replies_that_are_the_same_are_no_preference(run: Run, tmp_path: Path) -> None:
    same, differ = ({"instruction": "q", "chosen": "yes", "rejected": other} for other in ("yes", "no"))
    file = write(tmp_path / "pairs.jsonl", differ, same)
    run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (1, "nothing_trained")
    assert reject["message"] == "both replies are the same, so there is nothing to prefer"


def test_replies_that_are_the_same_once_cut_are_no_preference(run: Run, tmp_path: Path) -> None:
    pair = {"instruction": "q", "chosen": "a long reply that ends well", "rejected": "a long reply that ends badly"}
    file = write(tmp_path / "pairs.jsonl", pair, {"instruction": "q", "chosen": "yes", "rejected": "no"})
    limit = len(encoded("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na long reply that"))
    options = ["--max-length", limit, "--overlength", "cut", "--max-rejects", "1"]
    run("compile", file, *options, "-o", tmp_path / "out")
    assert [row["row"] for row in rows(tmp_path / "out")] == [1]


@pytest.mark.parametrize("options", [["--tools", "react"], ["--system", "merge"], ["--weights", "react"]])
def test_documents_take_no_options_for_conversations(run: Run, tmp_path: Path, options: list[str]) -> None:
    done = run("compile", write(tmp_path / "rows.jsonl", {"text": "a"}), *options, "-o", tmp_path / "out", code=2)
    assert f"{options[0]}: it is about conversations, and these are documents" in done.stderr


@pytest.mark.parametrize("source", [qa("q", "r", kto_tag=False), PAIRS["alpaca"]], ids=["kto", "preference"])
def test_a_reply_to_be_unlearned_is_never_trained_as_a_plain_one(run: Run, tmp_path: Path, source: Row) -> None:
    """Rows without a label among labelled ones are rejected, not read as labelled."""
    done = run("compile", write(tmp_path / "rows.jsonl", qa("q"), source), "--max-rejects", "1", "-o", tmp_path / "out")
    assert "(1 of the first 2 rows match its schema)" in done.stderr
    assert [row["row"] for row in rows(tmp_path / "out")] == [1]
    assert [reject["row"] for reject in rejects(tmp_path / "out" / "rejects.jsonl")] == [0]


def test_kinds_do_not_mix_and_the_message_names_the_datasets(run: Run, tmp_path: Path) -> None:
    files = [
        write(tmp_path / "chats.jsonl", qa("q")), write(tmp_path / "pairs.jsonl", PAIRS["alpaca"]),
        write(tmp_path / "tagged.jsonl", qa("q", kto_tag=True)), write(tmp_path / "books.jsonl", {"text": "a"}),
    ]  # fmt: skip
    refused = run("compile", *files, "-o", tmp_path / "out", code=2)
    message = one_message(refused.stderr)
    assert "a set holds rows of one kind, found kto: tagged; preference: pairs; pretrain: books; sft: chats" in message
    refused = run("compile", files[1], "--self-cognition", "3", "-o", tmp_path / "out", code=2)
    assert "preference: pairs; sft: self-cognition" in one_message(refused.stderr)
    assert not (tmp_path / "out").exists()


def test_a_text_with_other_keys_beside_it_is_a_document_and_that_is_said(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "c4.jsonl", {"text": "a page", "url": "https://example.org"})
    assert "recognised as pretrain" in run("compile", file, "-o", tmp_path / "out").stderr
    assert rows(tmp_path / "out")[0]["input_ids"] == encoded(f"a page{END}")


# -- what users see of pairs --


@pytest.fixture
def react_pairs(run: Run, tmp_path: Path) -> Path:
    """A set of one pair whose rejected reply alone makes a call."""
    source = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Final Answer: no."}]}
    file = write(tmp_path / "pairs.jsonl", source | {"rejected_response": "Action: rm\nAction Input: {}"})
    run("compile", file, "--weights", "react", "-o", tmp_path / "out")
    return tmp_path / "out"


def test_inspect_shows_both_sides_of_a_pair(run: Run, react_pairs: Path) -> None:
    shown = run("inspect", react_pairs).stdout
    first, _, second = shown.partition("the same context with the rejected reply")
    assert "Final Answer" in first.replace("┊", "")
    assert "Action Input" not in first.replace("┊", "")
    assert "Action Input" in second.replace("┊", "")
    row = json.loads(run("inspect", react_pairs, "--json").stdout)
    (stored,) = rows(react_pairs)
    for key, which in (("tokens", ""), ("rejected_tokens", "rejected_")):
        assert [token["id"] for token in row[key]] == stored[f"{which}input_ids"]
        assert [token["label"] for token in row[key]] == stored[f"{which}labels"]


def test_inspect_says_how_much_of_a_pair_is_trained(run: Run, react_pairs: Path) -> None:
    """Trained tokens of both sides, out of the tokens of both sides."""
    (stored,) = rows(react_pairs)
    length = len(stored["input_ids"]) + len(stored["rejected_input_ids"])
    assert f"({stored['num_trained'] / length:.1%})" in run("inspect", react_pairs).stdout


def test_assert_covers_the_rejected_side(run: Run, react_pairs: Path) -> None:
    held = run("inspect", react_pairs, "--assert", "user:0", "--assert", "template:0")
    (stored,) = rows(react_pairs)
    users = sum(span["num_tokens"] for w in ("", "rejected_") for span in stored[f"{w}spans"] if span["role"] == "user")
    assert f"user:0 holds: none of {users} tokens of role user is trained, in 1 rows" in held.stdout
    failed = run("inspect", react_pairs, "--assert", "Action Input:0", code=4)
    assert "Action Input:0 fails: " in failed.stderr
    assert "trained, in 1 of 1 rows" in failed.stderr


def test_assert_counts_a_pair_once_however_many_of_its_sides_fail(run: Run, react_pairs: Path) -> None:
    failed = run("inspect", react_pairs, "--assert", "assistant:0", code=4)
    assert "trained, in 1 of 1 rows" in failed.stderr


def test_inspect_finds_a_text_of_the_rejected_side(run: Run, react_pairs: Path) -> None:
    assert "Action Input" in run("inspect", react_pairs, "--find", "Action Input").stdout.replace("┊", "")


@pytest.mark.parametrize("kind", ["kto", "pretrain"])
def test_inspect_shows_kto_rows_and_documents(run: Run, tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / "rows.jsonl", qa("q", kto_tag=False) if kind == "kto" else {"text": "a document"})
    run("compile", file, "-o", tmp_path / "out")
    shown = run("inspect", tmp_path / "out").stdout
    assert ("not desirable" if kind == "kto" else "document  ┃ ") in shown
    run("inspect", tmp_path / "out", "--assert", "user:0")
    run("verify", tmp_path / "out")


# -- readers, workers --


@pytest.fixture
def pair_set(run: Run, tmp_path: Path) -> Path:
    file = write(tmp_path / "pairs.jsonl", *(long_pair(n % 3, f"yes {n}", f"no {n}") for n in range(20)))
    run("compile", file, "--val-size", "4", "-o", tmp_path / "out")
    return tmp_path / "out"


def test_other_libraries_read_pairs(pair_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = CompiledSet.open(pair_set).table("train").to_pylist()
    (path,) = (pair_set / "train").glob("*.arrow")
    assert pl.read_ipc(path).to_dicts() == expected
    with pa.memory_map(str(path)) as source, duckdb.connect() as connection:
        connection.register("shard", pa.ipc.open_file(source).read_all())
        found = connection.execute("select rejected_input_ids, rejected_labels, num_trained from shard").fetchall()
    assert found == [tuple(r[c] for c in ("rejected_input_ids", "rejected_labels", "num_trained")) for r in expected]
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own making
        import datasets

        datasets.disable_progress_bars()
        loaded = datasets.load_dataset("arrow", data_files=str(path), cache_dir=str(tmp_path / "loaded"))
        assert loaded["train"].to_list() == expected


def test_a_set_of_pairs_is_verified_and_damage_to_it_is_named(run: Run, pair_set: Path) -> None:
    run("verify", pair_set)
    (path,) = (pair_set / "train").glob("*.arrow")
    data = bytearray(path.read_bytes())
    ids = np.array(rows(pair_set)[3]["rejected_input_ids"], np.int32).tobytes()
    data[data.index(ids) + 5] ^= 1
    path.write_bytes(bytes(data))
    assert "is damaged" in run("verify", pair_set, code=4).stderr


def test_workers_do_not_change_a_byte_of_pairs(run: Run, tmp_path: Path) -> None:
    for part in range(4):  # more files than are compiled in one process
        write(tmp_path / f"part{part}.jsonl", *(long_pair(n % 4, f"yes {n}", f"no {part}") for n in range(30)))
    files = sorted(tmp_path.glob("part*.jsonl"))
    made = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        options = ["--workers", workers, "--val-size", "0.1", "--max-length", "60", "--overlength", "last-turns"]
        run("compile", *files, *options, "-o", out)
        made.append({p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()})
        shutil.rmtree(tmp_path / "cache")
    assert made[0] == made[1]
    assert manifest(tmp_path / "out1")["balance"]["in_shards"] == 120


# -- duplicates, and what must stay together --


def test_pairs_are_duplicates_only_where_both_replies_are_the_same(run: Run, tmp_path: Path) -> None:
    pair = qa("q", "", chosen="yes", rejected="no")
    other, swapped = pair | {"rejected": "never"}, pair | {"chosen": "no", "rejected": "yes"}
    file = write(tmp_path / "pairs.jsonl", pair, other, swapped, pair)
    run("compile", file, "--dedup", "exact", "--no-shuffle", "-o", tmp_path / "out")
    assert [row["row"] for row in rows(tmp_path / "out")] == [0, 1, 2]


def test_pieces_of_a_document_are_no_duplicates_and_stay_on_one_side_of_the_split(run: Run, tmp_path: Path) -> None:
    said = [f"document {n} " + "word " * (20 + n % 5) for n in range(12)]
    file = documents(tmp_path, *said, *said[:3])
    run("compile", file, "--max-length", "8", "--val-size", "0.3", "-o", tmp_path / "out")
    sides = [{row["row"] % 12 for row in rows(tmp_path / "out", split)} for split in ("train", "val")]
    assert not sides[0] & sides[1], "a document, or its copy, is on both sides"
    assert all(sides)
    pieces = Counter(row["row"] for split in ("train", "val") for row in rows(tmp_path / "out", split))
    assert [pieces[n] for n in range(15)] == [-(-len(encoded(said[n % 12] + END)) // 8) for n in range(15)]
    (entry,) = manifest(tmp_path / "out")["datasets"]
    assert entry["duplicates"] == sum(pieces[n] for n in (12, 13, 14))
    run("compile", file, "--max-length", "8", "--dedup", "exact", "-o", tmp_path / "out")
    assert {row["row"] for row in rows(tmp_path / "out")} == set(range(12))


def components(prints: list[bytes], groups: list[bytes]) -> list[int]:
    """The first row that each row is joined with, by union-find."""
    parent = list(range(len(prints)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for column in (prints, groups):
        seen: dict[bytes, int] = {}
        for i, value in enumerate(column):
            a, b = sorted((root(i), root(seen.setdefault(value, i))))
            parent[b] = a
    return [root(i) for i in range(len(prints))]


_DIGESTS = st.integers(0, 12).map(lambda n: n.to_bytes(2) * 7 + n.to_bytes(2, "little"))
"""Sixteen bytes each; some end with NUL, as digests do."""


@settings(PROPERTY, max_examples=300)
@given(drawn=st.lists(st.tuples(_DIGESTS, _DIGESTS), min_size=1, max_size=25))
def test_rows_are_kept_together_that_share_a_conversation_or_a_group_through_others(
    drawn: list[tuple[bytes, bytes]],
) -> None:
    prints, groups = ([pair[i] for pair in drawn] for i in (0, 1))
    found = keep_together(np.array(prints, "S16"), np.array(groups, "S16")).tolist()
    expected = components(prints, groups)
    assert [found.index(value) for value in found] == expected


@settings(PROPERTY, max_examples=20)
@given(order=st.permutations(range(30)))
def test_a_long_chain_of_rows_is_one_group_in_any_order(order: list[int]) -> None:
    """Row n shares its conversation with one neighbour and its group with the other."""
    links = [(f"{n // 2:016d}".encode(), f"{(n + 1) // 2:016d}".encode()) for n in order]
    prints, groups = (np.array([link[i] for link in links], "S16") for i in (0, 1))
    assert len(set(keep_together(prints, groups).tolist())) == 1


# -- what the user says of kinds and names --


def compiled_ids(run: Run, out: Path, *arguments: object) -> list[list[int]]:
    run("compile", *arguments, "--no-shuffle", "-o", out)
    return [row["input_ids"] for row in rows(out)]


@pytest.mark.parametrize("names", ["instruction=question,output=answer", "prompt=question,response=answer"])
def test_columns_are_named_as_the_format_or_its_rows_name_them(run: Run, tmp_path: Path, names: str) -> None:
    """With a format, and without one: formats that have these columns are tried."""
    file = write(tmp_path / "rows.jsonl", {"question": "q", "answer": "a", "id": 7})
    plain = compiled_ids(run, tmp_path / "plain", write(tmp_path / "plain.jsonl", qa("q", "a")))
    assert compiled_ids(run, tmp_path / "auto", file, "--columns", names) == plain
    assert compiled_ids(run, tmp_path / "named", file, "--format", "alpaca", "--columns", names) == plain


def test_tags_name_keys_and_roles_of_messages(run: Run, tmp_path: Path) -> None:
    said = [{"speaker": "Customer", "text": "q"}, {"speaker": "Agent", "text": "a"}]
    file = write(tmp_path / "rows.jsonl", {"dialog": said})
    tags = "role_tag=speaker,content_tag=text,user_tag=Customer,assistant_tag=Agent"
    plain = compiled_ids(run, tmp_path / "plain", write(tmp_path / "plain.jsonl", chat(("u", "q"), ("a", "a"))))
    found = compiled_ids(run, tmp_path / "out", file, "--columns", "messages=dialog", "--tags", tags)
    assert found == plain


def test_a_given_label_makes_kto_rows(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", qa("q", good="true"), qa("q", good="false"))
    run("compile", file, "--columns", "kto_tag=good", "--no-shuffle", "-o", tmp_path / "out")
    assert [row["desirable"] for row in rows(tmp_path / "out")] == [True, False]


def test_the_kind_decides_what_a_label_is(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", TAGGED["openai"], {"messages": TAGGED["openai"]["messages"]})
    run("compile", file, "--kind", "sft", "-o", tmp_path / "out")
    assert (manifest(tmp_path / "out")["kind"], len(rows(tmp_path / "out"))) == ("sft", 2)
    run("compile", write(tmp_path / "x.jsonl", qa("q", label=False)), "--kind", "kto", "-o", tmp_path / "kto")
    assert [row["desirable"] for row in rows(tmp_path / "kto")] == [False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--columns", "instructoin=q"],
            "--columns instructoin=q: no format has such a name\n  did you mean 'instruction'?",
        ),
        (["--columns", "reply=a", "--format", "alpaca"], "--columns reply=a: the format alpaca has no such name\n"),
        (["--tags", "usr_tag=U"], "--tags usr_tag=U: no format has such a name\n  did you mean "),
        (["--columns", "instruction=q,lines=s"], "--columns instruction,lines: no format has all of these names\n"),
        (["--columns", "instruction"], "--columns instruction: expected NAME=KEY\n"),
        (["--columns", "prompt=a", "--columns", "prompt=b"], "--columns prompt=b: 'prompt' is named twice\n"),
        (["--kind", "kto", "--format", "toolbench"], "--kind kto: the format 'toolbench' has no kto rows\n"),
        (["--kind", "sft", "--columns", "kto_tag=x"], "--columns kto_tag: sft rows have no such column\n"),
    ],
)
def test_names_and_kinds_that_no_format_has_are_errors(
    run: Run, tmp_path: Path, options: list[str], message: str
) -> None:
    done = run("compile", write(tmp_path / "rows.jsonl", qa("q")), *options, "-o", tmp_path / "out", code=2)
    assert done.stderr.split("error: ")[-1].startswith(message)


@pytest.mark.parametrize("option", [["--kind", "sft"], ["--columns", "prompt=q"], ["--tags", "user_tag=U"]])
def test_what_is_said_of_files_needs_files(run: Run, tmp_path: Path, option: list[str]) -> None:
    done = run("compile", "--mix", "bench:1", *option, "-o", tmp_path / "out", code=2)
    assert f"{option[0]}: it is about files of the command line, and none is given" in done.stderr


def test_a_given_column_that_no_row_has_is_said(run: Run, tmp_path: Path) -> None:
    done = run("compile", write(tmp_path / "r.jsonl", qa("q")), "--columns", "system=sytem", "-o", tmp_path / "out")
    assert "r: --columns system=sytem: none of the first 1 rows has this key" in done.stderr


def test_user_and_assistant_are_roles_of_sharegpt_too(run: Run, tmp_path: Path) -> None:
    """With tools, in pairs and with labels; ms_agent has none of those."""
    asked, said = {"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
    result = {"from": "observation", "value": "1"}
    mixed = {
        "conversations": [asked, call, result, {"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}, said]
    }
    file = write(tmp_path / "rows.jsonl", mixed)
    assert "recognised as sharegpt" in run("compile", file, "-o", tmp_path / "out").stderr
    assert trained_texts(rows(tmp_path / "out")[0]["labels"])[-1].startswith("a")
    pair = {"conversations": [asked], "chosen": said, "rejected": said | {"value": "b"}}
    run("compile", write(tmp_path / "pairs.jsonl", pair), "-o", tmp_path / "pairs")
    assert manifest(tmp_path / "pairs")["kind"] == "preference"
    run(
        "compile",
        write(tmp_path / "kto.jsonl", {"conversations": [asked, said], "kto_tag": True}),
        "-o",
        tmp_path / "k",
    )
    assert manifest(tmp_path / "k")["kind"] == "kto"
