"""Templates that leave earlier thinking out of history (Qwen3 and its like): one example for each trained reply.

The oracle is the template itself, rendered by a Jinja set up as `transformers` sets it up, and the published
tokenizer: what precedes a reply must be the ids of the official generation prompt, what is trained the ids of what the
template writes after it. Tried with Qwen3's own template where the `trl` package is installed (it is read, never
imported), and with one written here that does what matters of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jinja2
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer

import registry
from cli import main
from tests.support.command import runner
from tests.support.families import FAMILIES, family_folder, official_source
from tests.support.reference import jinja_environment
from tests.support.sets import manifest, rejects, rows, write

Run = Callable[..., Result]
Row = dict[str, Any]

IGNORED = -100
OWN = """{%- set ns = namespace(asked=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.asked = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role != 'assistant' -%}{{ m.content }}
{%- else -%}
{%- set thought, said = '', m.content -%}
{%- if m.reasoning_content is string -%}
{%- set thought = m.reasoning_content -%}
{%- elif '</think>' in said -%}
{%- set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if loop.index0 > ns.asked -%}
{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said.lstrip('\\n') }}
{%- else -%}{{ said }}{%- endif -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


@dataclass(frozen=True)
class Model:
    """A tokenizer folder whose template treats history in that way, and the official rendering."""

    folder: Path
    template: str

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return jinja_environment().from_string(self.template)

    def render(self, row: Row, end: int | None = None, *, prompt: bool = False) -> str:
        """Return what the template writes of the row's first messages, given as `transformers` is given them."""
        messages = [given_message(message) for message in row["messages"][:end]]
        return self._compiled.render(messages=messages, tools=row.get("tools"), add_generation_prompt=prompt)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def example(self, row: Row, reply: int) -> tuple[list[int], list[int]]:
        """Return (ids, labels) of the example of one reply: the prompt at inference, then what is generated."""
        before = self.render(row, reply, prompt=True)
        whole = self.render(row, reply + 1)
        assert whole.startswith(before)
        said = whole[len(before) :]
        assert said.endswith("<|im_end|>\n")
        context, generated = self.encode(before), self.encode(said.removesuffix("\n"))
        after = self.encode("\n")
        ids = context + generated + after
        return ids, [IGNORED] * len(context) + generated + [IGNORED] * len(after)


def given_message(message: Row) -> Row:
    """Return a message of a row as chat templates are given it: arguments parsed, no flags of ours."""
    kept = {key: message[key] for key in ("role", "content", "reasoning_content") if message.get(key) is not None}
    calls = [
        call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return kept | ({"tool_calls": calls} if calls else {})


@pytest.fixture(scope="module", params=["own", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    template = OWN if request.param == "own" else official_source("qwen3")
    family = FAMILIES["qwen3"]
    folder = family_folder(
        tmp_path_factory.mktemp(request.param) / "model", template, family.tokens.split(), family.eos, None,
        registry.DEMO_TOKENIZER, marks=family.marks.split(),
    )  # fmt: skip
    return Model(folder, template)


@pytest.fixture
def compiled(run: Run, model: Model, tmp_path: Path) -> Callable[..., list[Row]]:
    """Compile rows and return those of the set, in order."""

    def compile_rows(*sources: Row, options: Sequence[Any] = ()) -> list[Row]:
        file = write(tmp_path / "rows.jsonl", *sources)
        given_options = ["--no-shuffle", "--max-rejects", "100%", *options]
        run("compile", file, "--tokenizer", model.folder, *given_options, "-o", tmp_path / "out")
        return rows(tmp_path / "out")

    return compile_rows


def columns(row: Row) -> tuple[list[int], list[int]]:
    return row["input_ids"], row["labels"]


def trained_texts(model: Model, row: Row) -> list[str]:
    runs: list[list[int]] = [[]]
    for label in row["labels"]:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [model.decode(run) for run in runs if run]


def user(said: str, **more: Any) -> Row:
    return {"role": "user", "content": said} | more


def reply(said: str, thought: str | None = None, **more: Any) -> Row:
    return (
        {"role": "assistant", "content": said} | ({"reasoning_content": thought} if thought is not None else {}) | more
    )


def talk(*messages: Row) -> Row:
    return {"messages": list(messages)}


def written(said: str, thought: str) -> str:
    return f"<think>\n{thought}\n</think>\n\n{said}"


THREE = talk(
    {"role": "system", "content": "Be brief."}, user("3 + 4?"), reply("7.", "Three and four."), user("Plus 1?"),
    reply("8."), user("And half of it?"), reply("4.", "8 / 2\n\nis 4"),
)  # fmt: skip


# -- one example for each reply --


def test_every_reply_is_an_example_after_what_inference_would_see(
    compiled: Callable[..., list[Row]], model: Model, tmp_path: Path
) -> None:
    found = compiled(THREE)
    assert [columns(row) for row in found] == [model.example(THREE, reply) for reply in (2, 4, 6)]
    assert [(row["row"], row["part"]) for row in found] == [(0, 0), (0, 1), (0, 2)]
    assert [trained_texts(model, row) for row in found] == [
        ["<think>\nThree and four.\n</think>\n\n7.<|im_end|>"],
        ["<think>\n\n</think>\n\n8.<|im_end|>"],
        ["<think>\n8 / 2\n\nis 4\n</think>\n\n4.<|im_end|>"],
    ]
    assert "Three and four" not in model.decode(found[1]["input_ids"])
    (entry,) = manifest(tmp_path / "out")["datasets"]
    assert entry["notes"] == {"one_example_per_reply": 1}
    assert manifest(tmp_path / "out")["template"]["certificate"]["one_example_per_reply"] > 0


def test_a_single_exchange_is_one_example_and_needs_no_note(
    compiled: Callable[..., list[Row]], model: Model, tmp_path: Path
) -> None:
    source = talk(user("3 + 4?"), reply("7.", "Easy."))
    assert [columns(row) for row in compiled(source)] == [model.example(source, 1)]
    assert manifest(tmp_path / "out")["datasets"][0]["notes"] == {}


def test_the_balance_counts_every_example(compiled: Callable[..., list[Row]], tmp_path: Path) -> None:
    untrained = talk(user("a"), reply("b", loss=False), user("c"), reply("d", loss=False))
    silent = talk(user("a"), reply("b"), user("c"), reply("d", loss=False))
    compiled(THREE, talk(user("a")), untrained, silent, THREE)
    balance = manifest(tmp_path / "out")["balance"]
    assert balance["read"] + balance["expanded"] == balance["in_shards"] + balance["rejected"]
    assert (balance["read"], balance["expanded"]) == (5, 4)
    assert (balance["in_shards"], balance["rejected"]) == (7, 2)
    found = rejects(tmp_path / "out" / "rejects.jsonl")
    assert [(reject["row"], reject["reason"]) for reject in found] == [(1, "turn_order"), (2, "nothing_trained")]


def test_a_reply_that_is_not_trained_makes_no_example_and_is_history_as_it_is_at_inference(
    compiled: Callable[..., list[Row]], model: Model
) -> None:
    source = talk(user("a"), reply("b", "hidden", loss=False), user("c"), reply("d"))
    assert [columns(row) for row in compiled(source)] == [model.example(source, 3)]


WORDS = st.sampled_from(("Hello", " world", "\n", "\n\n", " ", "42", "你好", ".", "é", "🎉", "**b**", "\t", "- x\n"))
TEXT = st.lists(WORDS, max_size=5).map("".join)
THOUGHT = st.one_of(st.none(), TEXT)


@st.composite
def conversations(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Row:
    """Conversations that think in one of two ways, or not at all, with replies that are not trained among them."""
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(TEXT)))
        said, thought = draw(TEXT), draw(THOUGHT)
        inline = thought is not None and draw(st.booleans())
        one = reply(written(said, thought.strip("\n"))) if inline and thought is not None else reply(said, thought)
        messages.append(one | ({"loss": False} if draw(st.sampled_from((False, False, True))) else {}))
    return talk(*messages)


@settings(
    deadline=None, derandomize=True, database=None, max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(drawn=st.lists(conversations(), min_size=5, max_size=5))
def test_any_reply_is_trained_once_after_the_official_generation_prompt(
    model: Model, tmp_path: Path, drawn: list[Row]
) -> None:
    file = write(tmp_path / "rows.jsonl", *drawn)
    options = ["--tokenizer", model.folder, "--allow-empty", "--no-shuffle", "--max-rejects", "100%", "--workers", "1"]
    arguments = ["compile", file, *options, "--cache", tmp_path / "cache", "-o", tmp_path / "out"]
    done = runner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    if done.exit_code == 3:
        assert all(not trained_replies(row) for row in drawn)
        return
    assert done.exit_code == 0, done.stderr
    found = rows(tmp_path / "out")
    for number, source in enumerate(drawn):
        mine = [row for row in found if row["row"] == number]
        replies = trained_replies(source)
        assert sum(len(trained_texts(model, row)) for row in mine) == len(replies)
        if len(mine) == len(replies):
            assert [columns(row) for row in mine] == [model.example(source, reply) for reply in replies]
        else:  # nothing of it is rendered otherwise: one example holds them all
            (row,) = mine
            assert model.decode(row["input_ids"]) == model.render(source)


def trained_replies(row: Row) -> list[int]:
    return [i for i, m in enumerate(row["messages"]) if m["role"] == "assistant" and m.get("loss") is not False]


# -- what is thinking, and what only looks like it --


def test_reasoning_apart_and_in_the_text_are_the_same(compiled: Callable[..., list[Row]]) -> None:
    apart = talk(user("a"), reply("b", "t1"), user("c"), reply("d", "t2\n\nmore"))
    inline = talk(user("a"), reply(written("b", "t1")), user("c"), reply(written("d", "t2\n\nmore")))
    found = compiled(apart, inline)
    assert [columns(row) for row in found[:2]] == [columns(row) for row in found[2:]]


def test_reasoning_that_the_template_leaves_out_is_a_reject_though_the_row_says_it_elsewhere(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    file = write(
        tmp_path / "rows.jsonl", talk(user("a"), reply("b")), talk(user("is 7 odd?"), reply("yes", "is 7 odd?"))
    )
    run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (1, "template_refused")
    assert reject["message"] == "the chat template leaves out the reasoning of message 2"


def test_tags_are_control_tokens_where_the_template_writes_them_and_text_where_others_do(
    compiled: Callable[..., list[Row]], model: Model, tmp_path: Path
) -> None:
    said = "what does <think> do? </think>"
    source = talk({"role": "system", "content": said}, user(said), reply("It thinks.", "easy"))
    (row,) = compiled(source)
    tags = [model.tokenizer.token_to_id(tag) for tag in ("<think>", "</think>")]
    assert [i for i in row["input_ids"] if i in tags] == tags
    assert model.decode(row["input_ids"]) == model.render(source)
    assert manifest(tmp_path / "out")["datasets"][0]["notes"] == {"special_text": 1}


def test_thinking_as_it_should_be_is_no_text_that_spells_a_control_token(
    compiled: Callable[..., list[Row]], tmp_path: Path
) -> None:
    good, bad = talk(user("a"), reply(written("b", "t"))), talk(user("<think>"), reply("b"))
    assert [row["row"] for row in compiled(good, bad, options=["--special-text", "reject"])] == [0]
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (1, "special_text")


MALFORMED = {
    "never closed": "<think>\nstill thinking",
    "never opened": "thinking\n</think>\n\nb",
    "after the answer": "b <think>\nt\n</think>",
    "after a word": "Well. <think>\nt\n</think>\n\nb",
    "twice": "<think>\nt\n</think>\n\nb <think>\nu\n</think>\n\nc",
    "closed twice": "<think>\nt\n</think>\n\nb</think>c",
    "opened twice": "<think>\n<think>\nt\n</think>\n\nb",
    "opened in the answer": "<think>\nt\n</think>\n\nb <think>",
    "without newlines": "<think>t</think>b",
    "with spaces": "<think>\n  t  \n </think>\n \nb\n",
    "with more newlines": "<think>\n\n\nt\n\n</think>\n\n\n\nb",
    "empty": "<think>\n\n</think>\n\nb",
    "nothing in it": "<think></think>",
    "nothing after it": "<think>\nt\n</think>\n\n",
}


@pytest.mark.parametrize("said", MALFORMED.values(), ids=MALFORMED.keys())
def test_odd_thinking_is_what_the_template_makes_of_it_or_a_reject(
    compiled: Callable[..., list[Row]], model: Model, tmp_path: Path, said: str
) -> None:
    source = talk(user("a"), reply(said))
    found = [row for row in compiled(talk(user("a"), reply("b")), source) if row["row"] == 1]
    if not found:
        (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
        assert reject["reason"] == "template_refused"
        assert "</think>" in reject["message"] or "thinking" in reject["message"]
        return
    assert [model.decode(row["input_ids"]) for row in found] == [model.render(source)]
    ids = found[0]["input_ids"]
    tags = [model.tokenizer.token_to_id(tag) for tag in ("<think>", "</think>")]
    assert [i for i in ids if i in tags] == tags, "the template's own two"


def test_a_row_that_thinks_in_both_ways_keeps_what_the_template_keeps(
    compiled: Callable[..., list[Row]], model: Model
) -> None:
    source = talk(user("a"), reply(written("b", "inline"), "apart"))
    for row in compiled(talk(user("x"), reply("y")), source)[1:]:
        assert model.decode(row["input_ids"]) == model.render(source)


# -- tools --

TOOLS = [{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}]


def call(said: str = "", thought: str | None = None) -> Row:
    function = {"name": "lamp", "arguments": '{"on": true}'}
    return reply(said, thought, tool_calls=[{"id": "c1", "type": "function", "function": function}])


def test_thinking_before_calls_is_kept_within_a_turn_and_left_out_after_it(
    compiled: Callable[..., list[Row]], model: Model
) -> None:
    if "tool_calls" not in model.template:
        pytest.skip("its template has no calls")
    result = {"role": "tool", "content": "ok", "tool_call_id": "c1"}
    one = talk(user("Light!"), call("", "the lamp"), result, reply("Done.", "it is on")) | {"tools": TOOLS}
    more = {**one, "messages": [*one["messages"], user("Thanks."), reply("Bye.", "polite")]}
    bare = talk(user("Light!"), call(), result, reply("Done.")) | {"tools": TOOLS}
    found = compiled(one, more, bare)
    whole, *split = found
    assert model.decode(whole["input_ids"]) == model.render(one)
    assert [model.decode(model.encode(said)) for said in trained_texts(model, whole)] == trained_texts(model, whole)
    assert len(trained_texts(model, whole)) == 2
    expected = [model.example(more, i) for i in (1, 3, 5)] + [model.example(bare, i) for i in (1, 3)]
    assert [columns(row) for row in split] == expected


# -- flags, pairs, lengths, splits --


def test_a_users_text_that_asks_for_it_is_trained_once(compiled: Callable[..., list[Row]], model: Model) -> None:
    first = talk(user("learn me", loss=True), reply("b"), user("c"), reply("d"), user("e"), reply("f"))
    second = talk(user("a"), reply("b"), user("learn me", loss=True), reply("d", loss=False), user("e"), reply("f"))
    found = compiled(first, second)
    for number in (0, 1):
        said = [text for row in found if row["row"] == number for text in trained_texts(model, row)]
        assert said.count("learn me") == 1
        assert len(said) == 1 + (3 if number == 0 else 2)


def test_a_users_text_that_asks_for_it_is_trained_where_no_trained_reply_follows(
    compiled: Callable[..., list[Row]], model: Model
) -> None:
    source = talk(user("a"), reply("b"), user("learn me", loss=True), reply("d", loss=False))
    said = [text for row in compiled(source) for text in trained_texts(model, row)]
    assert sorted(said) == sorted(["<think>\n\n</think>\n\nb<|im_end|>", "learn me"])


def test_last_round_trains_the_replies_after_the_last_user_message_alone(
    compiled: Callable[..., list[Row]], model: Model
) -> None:
    """The row's last round, not the last one of every example that it makes."""
    source = talk(user("a"), reply("b"), user("c"), reply("d"))
    found = compiled(source, options=["--weights", "last_round"])
    assert [text for row in found for text in trained_texts(model, row)] == ["<think>\n\n</think>\n\nd<|im_end|>"]


def test_both_sides_of_a_pair_follow_the_official_generation_prompt(
    compiled: Callable[..., list[Row]], model: Model
) -> None:
    context = [user("a"), reply(written("b", "t1")), user("c")]
    chosen, other = reply("yes", "t2"), reply("no")
    (row,) = compiled({"messages": context, "chosen": chosen, "rejected": other})
    assert columns(row) == model.example(talk(*context, chosen), 3)
    assert (row["rejected_input_ids"], row["rejected_labels"]) == model.example(talk(*context, other), 3)


def test_a_kto_row_trains_its_last_reply_after_the_official_generation_prompt(
    compiled: Callable[..., list[Row]], model: Model
) -> None:
    source = talk(user("a"), reply("b", "t1"), user("c"), reply("d", "t2"))
    (row,) = compiled(source | {"label": True})
    assert columns(row) == model.example(source, 3)


def test_an_example_that_is_too_long_is_rejected_or_loses_its_first_turns(
    compiled: Callable[..., list[Row]], model: Model, tmp_path: Path
) -> None:
    source = talk(user("a " * 20), reply("b"), user("c"), reply("d"))
    shorter = talk(user("c"), reply("d"))
    limit = len(model.example(shorter, 1)[0])
    kept = compiled(source, shorter, options=["--max-length", limit])
    assert [columns(row) for row in kept] == [model.example(shorter, 1)]
    assert [(r["row"], r["reason"]) for r in rejects(tmp_path / "out" / "rejects.jsonl")] == [(0, "too_long")] * 2
    kept = compiled(source, options=["--max-length", limit, "--overlength", "last-turns"])
    assert [(columns(row), row["part"]) for row in kept] == [(model.example(shorter, 1), 1)]
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert reject["reason"] == "too_long"


def test_examples_of_one_conversation_stay_on_one_side_of_the_split(run: Run, model: Model, tmp_path: Path) -> None:
    sources = [talk(user(f"q{n}"), reply("a"), user(f"r{n}"), reply("b"), user("s"), reply("c")) for n in range(10)]
    file = write(tmp_path / "rows.jsonl", *sources, sources[0])
    run("compile", file, "--tokenizer", model.folder, "--val-size", "0.3", "-o", tmp_path / "out")
    sides = [Counter(row["row"] % 10 for row in rows(tmp_path / "out", split)) for split in ("train", "val")]
    assert not set(sides[0]) & set(sides[1])
    assert sides[1]
    assert sides[0] + sides[1] == Counter(dict.fromkeys(range(1, 10), 3)) + Counter({0: 6})


def test_workers_do_not_change_the_examples(model: Model, tmp_path: Path) -> None:
    for part in range(3):
        write(
            tmp_path / f"part{part}.jsonl", *(talk(user(f"q{n}"), reply("a"), user("r"), reply("b")) for n in range(5))
        )
    files = sorted(tmp_path.glob("part*.jsonl"))
    made = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        arguments = ["compile", *files, "--tokenizer", model.folder, "--workers", workers]
        arguments += ["--cache", tmp_path / f"cache{workers}", "-o", out]
        done = runner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        made.append(manifest(out)["digest"])
    assert made[0] == made[1]
