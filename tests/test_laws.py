"""The laws of masks, on random conversations, for every template that can be tried without a network.

What is expected never comes from the code under test: it comes from `Reference`, a second and slow compiler in
`tests/support/reference.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

import registry
from compiler.conversation import Call, Conversation, Message, Segment
from compiler.encode.batch import Encoded
from compiler.encode.length import POLICIES, fit
from compiler.encode.sequences import SequenceMaker
from compiler.encode.shapes import Rendered
from compiler.encode.tokens import encode
from compiler.encode.weigh import Policy
from compiler.templates.jinja import ChatTemplate
from compiler.templates.load import load_template
from compiler.templates.program import Program, SkeletonMismatch
from compiler.templates.rendering import Rendering
from schemas.errors import Reason, RowError
from tests.support.conversations import conversations, react_texts, texts
from tests.support.encoded import encode_segments
from tests.support.reference import (
    ASSISTANT,
    CASES,
    DEMO,
    EVEN,
    IGNORED,
    ROLE_STOPS,
    SYSTEM,
    USER,
    Case,
    Reference,
    jinja_environment,
    python_text,
    react_weights,
)
from tests.support.shared import tools

EXAMPLES = int(os.environ.get("LAWS_EXAMPLES", "8"))
"""Eight are always the same ones; `LAWS_EXAMPLES=200 pytest tests/test_laws.py` looks further, elsewhere every time."""

LAWS = settings(
    deadline=None,  # the first row of a shape is dearer than the rest
    derandomize="LAWS_EXAMPLES" not in os.environ,
    database=None,
    max_examples=EXAMPLES,
    # Conversations are large for Hypothesis, and drawing one takes longer than compiling it.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
FEW, MANY = settings(LAWS, max_examples=EXAMPLES // 2 + 1), settings(LAWS, max_examples=EXAMPLES * 2)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Every template in turn; skipped where the shared tokenizers are not beside the project."""
    return loaded_case(request.param)


@pytest.fixture(scope="module", params=[*CASES, *ROLE_STOPS], ids=str)
def any_case(request: pytest.FixtureRequest) -> Case:
    """The same and the families whose next role token is the stop, for the laws that are theirs too."""
    return loaded_case(request.param)


def loaded_case(case: Case) -> Case:
    tools(case.tokenizer, case.template)
    return case


def sections(ids: Sequence[int], case: Case) -> list[list[int]]:
    """Return ids cut at the control tokens, which are left out."""
    found: list[list[int]] = [[]]
    for i in map(int, ids):
        if i in case.control_ids:
            found.append([])
        else:
            found[-1].append(i)
    return found


def position(encoded: Encoded, case: Case, number: int) -> int:
    """Return the position of the `number`-th control token."""
    return [n for n, i in enumerate(encoded.ids.tolist()) if i in case.control_ids][number]


def columns_of(encoded: Encoded) -> list[tuple[int, float]]:
    return list(zip(encoded.ids.tolist(), encoded.weights.tolist(), strict=True))


def generated_of(encoded: Encoded) -> list[int]:
    return [s.message if s.generated else -1 for s in encoded.stretches for _ in range(s.length)]


def count_controls(text: str, case: Case) -> int:
    return len(case.control.findall(text))


# -- the laws --


@LAWS
@given(data=st.data())
def test_law_1_columns_have_one_length_and_spans_cover_it(case: Case, data: st.DataObject) -> None:
    encoded = case.compile(data.draw(case.conversations()))
    assert len(encoded.ids) == len(encoded.labels) == len(encoded.weights)
    assert sum(stretch.length for stretch in encoded.stretches) == len(encoded.ids)
    assert all(stretch.length > 0 for stretch in encoded.stretches)


@LAWS
@given(data=st.data())
def test_laws_2_and_3_labels_copy_ids_where_weights_are_positive_and_never_first(
    case: Case, data: st.DataObject
) -> None:
    encoded = case.compile(data.draw(case.conversations()))
    pairs = zip(encoded.ids.tolist(), encoded.weights.tolist(), strict=True)
    assert encoded.labels.tolist() == [i if weight > 0 else IGNORED for i, weight in pairs]
    assert encoded.labels[0] == IGNORED


@LAWS
@given(data=st.data())
def test_law_4_a_reply_starts_right_after_the_generation_prompt_as_inference_encodes_it(
    case: Case, data: st.DataObject
) -> None:
    conversation = data.draw(case.conversations(spelled=False))
    reference = Reference(case, conversation)
    encoded = case.compile(conversation)
    ids = encoded.ids.tolist()
    for n, reply in enumerate(reference.replies):
        prompt = reference.text[: reply.start]
        official = case.official.encode(prompt, add_special_tokens=False).ids
        header = sections(official, case)[-1]
        start = position(encoded, case, count_controls(prompt, case) - 1) + 1 + len(header)
        if n == 0:
            assert ids[:start] == official
        assert ids[start - len(header) : start] == header
        generated = reference.text[reply.start : reply.end]
        stop = position(encoded, case, count_controls(reference.text[: reply.stop], case))
        written = case.text_of(ids[start : stop + 1])
        assert case.normalize(written) == case.normalize(reference.decoded(reply.start, reply.end))
        assert case.normalize(written).endswith(case.normalize(generated))


@LAWS
@given(data=st.data())
def test_law_5_a_reply_ends_with_a_trained_stop_and_neither_header_nor_newline_is_trained(
    any_case: Case, data: st.DataObject
) -> None:
    case = any_case
    conversation = data.draw(case.conversations())
    reference = Reference(case, conversation)
    encoded = case.compile(conversation)
    for reply in reference.replies:
        before = count_controls(reference.disguised[: reply.stop], case)
        stop = position(encoded, case, before)
        trained = conversation.messages[reply.message].weight != 0
        token = case.controls[reference.text[reply.stop : reply.end]]
        assert encoded.ids[stop] == token
        assert encoded.labels[stop] == (token if trained else IGNORED)
        assert stop + 1 == len(encoded.ids) or encoded.labels[stop + 1] == IGNORED
        opening = position(encoded, case, count_controls(reference.disguised[: reply.start], case) - 1)
        if reference.text[: reply.start].endswith("<|im_start|>assistant\n"):
            assert case.text_of(encoded.ids[opening : opening + 3].tolist()) == "<|im_start|>assistant\n"
            assert encoded.labels[opening : opening + 3].tolist() == [IGNORED] * 3
        else:
            assert case.sentencepiece or case.next_role


@LAWS
@given(data=st.data())
def test_law_6_trained_tokens_decode_to_exactly_the_generated_text_of_trained_replies(
    any_case: Case, data: st.DataObject
) -> None:
    case = any_case
    conversation = data.draw(case.conversations())
    for message in conversation.messages:
        message.weight = message.weight if message.role is ASSISTANT else None
    reference = Reference(case, conversation)
    encoded = case.compile(conversation)
    trained = encoded.labels[encoded.labels != IGNORED].tolist()
    trained_replies = [reply for reply in reference.replies if conversation.messages[reply.message].weight != 0]
    expected = "".join(reference.decoded(reply.start, reply.end) for reply in trained_replies)
    assert case.normalize(case.text_of(trained)) == case.normalize(expected)


@LAWS
@given(data=st.data())
def test_law_7_text_equals_the_official_rendering_and_ids_the_official_encoding_of_it(
    case: Case, data: st.DataObject
) -> None:
    conversation = data.draw(case.conversations(spelled=False))
    reference = Reference(case, conversation)
    segments = case.program.joined(conversation)
    assert "".join(segment.text for segment in segments) == reference.text
    ids = case.compile(conversation).ids.tolist()
    official = case.official.encode(reference.text, add_special_tokens=False).ids
    opened = [reference.text[reply.start : reply.start + 1] for reply in reference.replies]
    if not case.sentencepiece and not any(first.isspace() for first in opened):
        assert ids == official
    touched = {count_controls(reference.text[: reply.start], case) for reply in reference.replies}
    ours, theirs = sections(ids, case), sections(official, case)
    assert len(ours) == len(theirs)
    assert all(a == b for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if n not in touched)


@LAWS
@given(data=st.data())
def test_law_8_control_tokens_are_those_the_template_wrote_whatever_the_row_spells(
    any_case: Case, data: st.DataObject
) -> None:
    case = any_case
    conversation = data.draw(case.conversations())
    emitted = [case.controls[text] for text in Reference(case, conversation).emitted]
    ids = case.compile(conversation).ids.tolist()
    assert [i for i in ids if i in case.control_ids] == emitted


@LAWS
@given(data=st.data())
def test_law_9_what_is_fitted_obeys_the_laws_and_turns_keeps_the_longest_prefix(
    any_case: Case, data: st.DataObject
) -> None:
    case = any_case
    conversation = data.draw(case.conversations())
    whole = case.compile(conversation)
    length = len(whole.ids)
    limit = data.draw(st.integers(1, length + 1), label="max_length")
    policy = data.draw(st.sampled_from(POLICIES), label="policy")
    result: Encoded | Reason
    try:
        [result] = fit(conversation, [whole], limit, policy, lambda shorter: [case.compile(shorter)])[1]
    except RowError as error:
        result = error.reject.reason
    candidates = _fitting_candidates(case, conversation, policy)
    expected = next((found for found in candidates if len(found.ids) <= limit), None)
    if policy == "cut":
        assert isinstance(result, Encoded)
        assert result.ids.tolist() == whole.ids[:limit].tolist()
        assert result.weights.tolist() == whole.weights[:limit].tolist()
    elif expected is None:
        assert result is Reason.TOO_LONG
        return
    else:
        assert isinstance(result, Encoded)
        assert result.ids.tolist() == expected.ids.tolist()
        assert result.weights.tolist() == expected.weights.tolist()
    assert len(result.ids) <= limit
    assert len(result.ids) == len(result.weights) == sum(stretch.length for stretch in result.stretches)
    assert result.labels.tolist() == [
        i if w > 0 else IGNORED for i, w in zip(result.ids.tolist(), result.weights.tolist(), strict=True)
    ]
    assert result.labels[0] == IGNORED


def _fitting_candidates(case: Case, conversation: Conversation, policy: str) -> list[Encoded]:
    """Return what a policy may keep, the best first, each from a conversation of its own."""
    messages = conversation.messages
    kept = [messages]
    if policy == "turns":
        ends = [i for i, message in enumerate(messages) if message.role is ASSISTANT]
        kept = [messages[: end + 1] for end in reversed(ends)]
    elif policy == "last-turns":
        lead = list(itertools.takewhile(lambda message: message.role is SYSTEM, messages))
        starts = [i for i, message in enumerate(messages) if message.role is USER][1:]
        kept += [[*lead, *messages[start:]] for start in starts]
    found = []
    for part in kept:
        tokens = Reference(case, replace(conversation, messages=part)).tokens
        ids, weights = (np.array(column) for column in zip(*tokens, strict=True))
        found.append(Encoded.of(ids.astype(np.int32), weights.astype(np.float32), []))
    return found


@LAWS
@given(data=st.data())
def test_law_10_the_skeleton_and_the_rendering_agree_on_segments_and_ids(any_case: Case, data: st.DataObject) -> None:
    case = any_case
    conversation = data.draw(case.conversations())
    joined, rendered = case.program.joined(conversation), case.program.rendering.segments(conversation)
    assert joined == rendered
    loaded, _ = tools(case.tokenizer, case.template)
    encoded = [encode_segments(conversation, segments, loaded) for segments in (joined, rendered)]
    assert columns_of(encoded[0]) == columns_of(encoded[1])
    assert encoded[0].stretches == encoded[1].stretches


PATTERNS = (
    "e",
    ".",
    "[a-z]{2}",
    "(?<=.).+(?=.)",
    "\n",
    " +",
    "[^a-z]",
    "<",
    "\u200d",
    "[\U0001f000-\U0010ffff]",
    "</?tool_call>",
)
"""Where nobody would put weights: inside words, on single characters, between the parts of one emoji."""


def policies() -> st.SearchStrategy[Policy]:
    """The shipped policies, and made ones."""
    shipped = [Policy.from_card(registry.weights(name)) for name in ("none", "react", "hermes")]
    weighed = st.tuples(st.sampled_from(PATTERNS), st.sampled_from((0, 0.5, 3)))
    made = weighed.map(
        lambda p: Policy.from_card({"name": "made", "patterns": {"it": {"pattern": p[0], "weight": p[1]}}})
    )
    return st.sampled_from(shipped) | made


@LAWS
@given(data=st.data())
def test_law_11_weights_never_change_ids(case: Case, data: st.DataObject) -> None:
    conversation = data.draw(case.conversations(replies=texts() | react_texts()))
    policy = data.draw(policies(), label="policy")
    bare = Conversation([replace(message, weight=None) for message in conversation.messages], conversation.tools)
    ids = Reference(case, bare).ids
    assert case.compile(bare).ids.tolist() == ids
    assert case.compile(bare, policy).ids.tolist() == ids
    assert case.compile(conversation, policy).ids.tolist() == ids


@pytest.mark.slow
@LAWS
@given(data=st.data())
def test_law_11_rows_compiled_together_are_what_each_is_when_rendered_by_itself(
    any_case: Case, data: st.DataObject
) -> None:
    """Rows of one shape share it from the third on; what they become does not depend on that."""
    case = any_case
    conversation = data.draw(case.conversations(replies=texts() | react_texts()))
    loaded, template = tools(case.tokenizer, case.template)
    tame = [
        replace(message, content=f"Hi {i}." if message.content else "")
        for i, message in enumerate(conversation.messages)
    ]
    rows = [replace(conversation, messages=messages) for messages in (tame, tame, tame, conversation.messages, tame)]
    shipped = (Policy.from_card(registry.weights(name)) for name in ("none", "react", "hermes"))
    for policy in (*shipped, data.draw(policies(), label="policy")):
        maker = SequenceMaker(loaded, replace(template, program=Program(template.program.rendering)), policy)
        made = [one for one in maker.make(rows, Counter()) if isinstance(one, list)]
        batch = [sequence for examples in made for _, sequences in examples for sequence in sequences]
        for row, found in zip(rows, encode(batch, loaded), strict=True):
            expected = encode_segments(row, template.program.rendering.segments(row), loaded, policy)
            assert columns_of(found) == columns_of(expected)
            assert found.stretches == expected.stretches


@MANY
@given(data=st.data())
def test_law_12_a_token_weighs_what_its_lightest_character_weighs(any_case: Case, data: st.DataObject) -> None:
    case = any_case
    conversation = data.draw(case.conversations(replies=react_texts()))
    encoded = case.compile(conversation, Policy.from_card(registry.weights("react")))
    assert columns_of(encoded) == Reference(case, conversation, react_weights).columns


@LAWS
@given(data=st.data())
def test_law_12_holds_for_weights_in_the_middle_of_words_and_characters(case: Case, data: st.DataObject) -> None:
    conversation = data.draw(case.conversations())
    # Whether a pattern sees the space that Mistral's card writes before a reply is left open here.
    patterns = [pattern for pattern in PATTERNS if not (case.opens and re.search(pattern, case.opens * 3))]
    pattern = data.draw(st.sampled_from(patterns), label="pattern")
    weight = data.draw(st.sampled_from((0.0, 0.5, 3.0)), label="weight")

    def weights(reply: str, _: int) -> list[float]:
        found = [1.0] * len(reply)
        for match in re.finditer(pattern, reply, re.DOTALL):
            found[match.start() : match.end()] = [weight] * len(match[0])
        return found

    policy = Policy.from_card({"name": "made", "patterns": {"it": {"pattern": pattern, "weight": weight}}})
    assert columns_of(case.compile(conversation, policy)) == Reference(case, conversation, weights).columns


@LAWS
@given(data=st.data())
def test_law_13_ids_decode_to_the_rendered_text(case: Case, data: st.DataObject) -> None:
    conversation = data.draw(case.conversations())
    encoded = case.compile(conversation)
    reference = Reference(case, conversation)
    assert case.normalize(case.text_of(encoded.ids.tolist())) == case.normalize(reference.decoded())
    if not case.sentencepiece:
        official = case.official.decode(encoded.ids.tolist(), skip_special_tokens=False)
        assert unicodedata.normalize("NFC", official) == unicodedata.normalize("NFC", reference.text)


@LAWS
@given(data=st.data())
def test_law_14_loss_on_a_user_message_trains_exactly_the_tokens_inside_its_content(
    any_case: Case, data: st.DataObject
) -> None:
    case = any_case
    conversation = data.draw(case.conversations(weights=False))
    asked = data.draw(
        st.sampled_from([i for i, m in enumerate(conversation.messages) if m.role is USER and m.content] or [-1])
    )
    assume(asked >= 0)
    silent = [replace(m, weight=0.0 if m.role is ASSISTANT else None) for m in conversation.messages]
    silent[asked].weight = 1.0
    conversation = Conversation(silent, conversation.tools)
    encoded = case.compile(conversation)
    reference = Reference(case, conversation)
    start = reference.place(asked)
    end = start + len(silent[asked].content)
    trained = []
    for piece in reference.runs:
        if piece.control:
            trained.append(False)
            continue
        parts = [
            piece.text[: max(0, start - piece.start)],
            piece.text[max(0, start - piece.start) : max(0, end - piece.start)],
        ]
        low = len(case.normalize(parts[0]).encode())
        high = low + len(case.normalize(parts[1]).encode())
        assume(case.normalize(piece.text).startswith(case.normalize(parts[0]) + case.normalize(parts[1])))
        prefix = 1 if piece.fresh and case.sentencepiece else 0
        at = -prefix
        for token in case.encode(piece.text, piece.fresh):
            # The space that sentencepiece puts before a text counts for the character it stands before.
            first, at = max(at, 0), at + len(case.bytes_of(token))
            trained.append(low <= first and max(at, first + 1) <= high)
    assert (encoded.labels != IGNORED).tolist() == trained


@LAWS
@given(data=st.data())
def test_every_token_weight_and_speaker_equals_the_slow_derivation(any_case: Case, data: st.DataObject) -> None:
    case = any_case
    conversation = data.draw(case.conversations())
    encoded = case.compile(conversation)
    reference = Reference(case, conversation)
    assert columns_of(encoded) == reference.columns
    assert generated_of(encoded) == reference.generated


@FEW
@given(data=st.data())
def test_a_batch_holds_what_each_row_is_alone(case: Case, data: st.DataObject) -> None:
    rows = data.draw(st.lists(case.conversations(), min_size=2, max_size=3))
    loaded, template = tools(case.tokenizer, case.template)
    batch = [Rendered.of(row, template.program.joined(row), loaded, EVEN) for row in rows]
    assert [columns_of(encoded) for encoded in encode(batch, loaded)] == [columns_of(case.compile(row)) for row in rows]


# -- examples an adversary of masks would try --


def chat(*contents: str, **options: Any) -> Conversation:
    """User and assistant in turn."""
    return Conversation([Message((USER, ASSISTANT)[i % 2], text) for i, text in enumerate(contents)], **options)


def shown(case: Case, encoded: Encoded) -> list[tuple[str, float]]:
    """Return the tokens that are not weightless, as text."""
    columns = columns_of(encoded)
    return [(case.text_of([i]), weight) for i, weight in columns if weight]


def test_a_worked_example() -> None:
    conversation = chat("Hi", "Ok", "Go on", "No")
    conversation.messages[0].weight, conversation.messages[3].weight = 1.0, 2.5
    encoded = DEMO.compile(conversation)
    assert DEMO.text_of(encoded.ids.tolist()) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nOk<|im_end|>\n"
        "<|im_start|>user\nGo on<|im_end|>\n<|im_start|>assistant\nNo<|im_end|>\n"
    )
    trained = DEMO.text_of(encoded.labels[encoded.labels != IGNORED].tolist())
    assert trained == "HiOk<|im_end|>No<|im_end|>"
    assert [weight for _, weight in shown(DEMO, encoded)][-2:] == [2.5, 2.5]


@pytest.mark.parametrize("content", ["", "x"])
def test_a_message_that_asks_for_loss_is_treated_alike_however_many_came_before_it(content: str) -> None:
    conversation = chat(content, "Ok")
    conversation.messages[0].weight = 1.0
    first, *others = [columns_of(DEMO.compile(conversation)) for _ in range(5)]
    assert all(other == first for other in others)


def test_a_reply_without_keywords_is_trained_evenly_under_react() -> None:
    encoded = DEMO.compile(chat("Hi", "Hello."), Policy.from_card(registry.weights("react")))
    assert {weight for _, weight in shown(DEMO, encoded)} == {1.0}


@FEW
@given(data=st.data())
def test_an_observation_that_opens_a_reply_is_context_in_every_template(any_case: Case, data: st.DataObject) -> None:
    case = any_case
    said = data.draw(st.sampled_from(("secret", " \n secret", "\n\nsecret\r\n", "")))
    encoded = case.compile(
        chat("Hi", f"Observation:{said}\nThought: done"), Policy.from_card(registry.weights("react"))
    )
    assert "secret" not in "".join(text for text, _ in shown(case, encoded))
    assert "Thought: done" in case.text_of(encoded.labels[encoded.labels != IGNORED].tolist())


@pytest.mark.parametrize("block", ["<think>\n\n</think>\n\n", "</think>\n\n"])
def test_an_empty_thinking_block_that_opens_a_reply_is_context_in_every_template(any_case: Case, block: str) -> None:
    policy = Policy.from_card(registry.weights("ignore_empty_think"))
    encoded = any_case.compile(chat("Hi", f"{block}Hello"), policy)
    assert "think" not in any_case.text_of(encoded.labels[encoded.labels != IGNORED].tolist())


def test_hermes_emphasises_a_call_with_both_its_control_tokens_and_not_the_stop() -> None:
    conversation = chat("Hi", "Wait.")
    conversation.messages[1].calls = [Call("f", {"a": "<tool_call>"}), Call("g", {})]
    encoded = DEMO.compile(conversation, Policy.from_card(registry.weights("hermes")))
    spans = itertools.groupby(shown(DEMO, encoded), lambda pair: pair[1])
    assert [(weight, "".join(text for text, _ in group)) for weight, group in spans] == [
        (1.0, "Wait.\n"),
        (2.0, '<tool_call>\n{"name": "f", "arguments": {"a": "<tool_call>"}}\n</tool_call>'),
        (1.0, "\n"),
        (2.0, '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'),
        (1.0, "<|im_end|>"),
    ]


@pytest.mark.parametrize(("pattern", "weight"), [("[^<]+", 3.0), ("<tool", 3.0), ("call>", 0.0), ("[a-z]+>", 0.5)])
def test_a_control_token_that_a_pattern_covers_in_part_takes_the_smallest_weight(pattern: str, weight: float) -> None:
    conversation = chat("Hi", "")
    conversation.messages[1].calls = [Call("f", {})]
    policy = Policy.from_card({"name": "made", "patterns": {"it": {"pattern": pattern, "weight": weight}}})
    ids, weights = zip(*columns_of(DEMO.compile(conversation, policy)), strict=True)
    assert weights[ids.index(DEMO.controls["<tool_call>"])] == min(weight, 1.0)


OVERLAPPING: list[dict[str, Any]] = [
    {"patterns": {"a": {"pattern": "bcd", "weight": 2}, "b": {"pattern": "cde", "weight": 3}}},
    {"patterns": {"a": {"pattern": "abcdef", "weight": 2}, "b": {"pattern": "cd", "weight": 0}}},
    {"keywords": {"Action:": {"keyword": 2, "content": 2}}, "patterns": {"a": {"pattern": "n: a", "weight": 3}}},
]


@pytest.mark.parametrize("card", OVERLAPPING)
def test_a_policy_whose_parts_overlap_does_not_change_ids(card: dict[str, Any]) -> None:
    conversation = chat("Hi", "Action: abcdef")
    policy = Policy.from_card({"name": "made", **card})
    assert DEMO.compile(conversation, policy).ids.tolist() == DEMO.compile(conversation).ids.tolist()


@pytest.mark.parametrize("pattern", ["e", "\u0301"])
def test_a_composed_character_weighs_what_its_lightest_part_weighs(pattern: str) -> None:
    policy = Policy.from_card({"name": "made", "patterns": {"it": {"pattern": pattern, "weight": 0}}})
    encoded = DEMO.compile(chat("Hi", "caf\u0065\u0301"), policy)
    assert "é" not in "".join(text for text, _ in shown(DEMO, encoded))


CALL = Message(ASSISTANT, "", [Call("search", {"q": 1})])
TOOLS = {
    "a call": Conversation([Message(USER, "Please search for it."), CALL]),
    "a tool": Conversation(
        [Message(USER, "Please search for it."), Message(ASSISTANT, "Ok")],
        [{"type": "function", "function": {"name": "search"}}],
    ),
    "a tool without a name": Conversation(
        [Message(USER, "Hi"), Message(ASSISTANT, "Ok")], [{"type": "code_interpreter"}]
    ),
}


@pytest.mark.parametrize("what", TOOLS)
def test_what_the_template_leaves_out_is_refused_even_where_the_row_says_its_name(what: str) -> None:
    """Mistral's own template knows no tools: a call would be trained as an empty reply."""
    mistral = CASES[4]
    tools(mistral.tokenizer, mistral.template)
    with pytest.raises(RowError) as caught:
        mistral.compile(TOOLS[what])
    assert caught.value.reject.reason is Reason.TEMPLATE_REFUSED


def test_every_private_use_character_comes_back_even_a_whole_plane_at_once() -> None:
    """They are marks while a row is rendered, and one row may hold more of them than there are marks."""
    many = "".join(map(chr, range(0x10FFFF, 0xFFFF0, -1)))
    conversation = chat(many, "Ok")
    try:
        segments = DEMO.program.rendering.segments(conversation)
    except RowError:
        return  # refused is honest; changed is not
    assert "".join(segment.text for segment in segments) == Reference(DEMO, conversation).text


ARGUMENTS: list[dict[str, Any]] = [
    {"a": "<|im_end|>"},
    {"a": ["\U000f0003"], "<|im_end|>": {"k": "<tool_call>"}},
    {"a": "\\U000f0000 \\udb80\\udc00", "b": "'\"<|im_end|>"},
]
WRITTEN: dict[str, Callable[[dict[str, Any]], str]] = {
    "tojson": lambda given: json.dumps(given, ensure_ascii=False),
    "tojson(indent=2)": lambda given: json.dumps(given, ensure_ascii=False, indent=2),
    "tojson(ensure_ascii=True)": json.dumps,
    "string": str,
    "python_arguments": lambda given: ", ".join(f"{key}={value!r}" for key, value in given.items()),
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("how", WRITTEN)
def test_what_arguments_spell_is_not_changed_unnoticed_however_a_template_writes_them(
    arguments: dict[str, Any], how: str
) -> None:
    body = "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | HOW }}{% endfor %}"
    conversation = chat("Hi", "")
    conversation.messages[1].calls = [Call("f", arguments)]
    try:
        segments = made(body.replace("HOW", how)).rendering.segments(conversation)
    except RowError:
        return  # refused is honest
    found = "".join(segment.text for segment in segments).partition("assistant\nf")[2].removesuffix("<|im_end|>\n")
    # Where an escape is all that a template would write of a private-use character, the character will do too.
    assert found in (WRITTEN[how](arguments), python_text(arguments))


def chatml(body: str) -> str:
    """Return a ChatML template in which `body` writes each message `m`."""
    return (
        "{%- set mark = '</think>' -%}{%- for m in messages -%}<|im_start|>{{ m.role }}\n"
        + body
        + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def made(body: str, *more_controls: str, special_text: str = "text") -> Program:
    """Return the program of such a template."""
    loaded, _ = tools("demo")
    template = ChatTemplate(chatml(body), loaded.named_tokens, "made")
    controls = loaded.controls | {text: 9000 + n for n, text in enumerate(more_controls)}
    pattern = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))))
    return Program(Rendering(template, template, controls, pattern, loaded.stops, special_text=special_text))


THINKING = (
    "{% set said = m.content %}{% set thought = '' %}{% if m.role == 'assistant' and '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m.role == 'assistant' %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}"
)
"""What Qwen3's template does with a reply."""


@pytest.mark.parametrize("are_controls", [False, True])
@pytest.mark.parametrize("special_text", ["text", "allow"])
def test_a_reply_that_thinks_is_rendered_as_its_template_would_or_refused(
    are_controls: bool, special_text: str
) -> None:
    """Where the marks of thinking are control tokens (Qwen3), hiding them makes the template see no thought."""
    program = made(THINKING, *(("<think>", "</think>") if are_controls else ()), special_text=special_text)
    try:
        segments = program.rendering.segments(chat("Hi", "<think>\nWho?\n</think>\n\nHello"))
    except RowError:
        assert special_text != "allow" or not are_controls, "what is allowed is compiled"
        return  # refused is honest
    reply = [segment for segment in segments if segment.generated]
    assert "".join(segment.text for segment in reply) == "<think>\nWho?\n</think>\n\nHello<|im_end|>"
    assert [segment.text for segment in reply if segment.control >= 0][:-1] == ["<think>", "</think>"] * are_controls


BODIES = {
    "nothing": "{{ m.content }}",
    "strips users": "{{ m.content | trim if m.role == 'user' else m.content }}",
    "strips newlines on the left, as Qwen3 does": "{{ m.content.lstrip('\\n') }}",
    "strips newlines on the right": "{{ m.content.rstrip('\\n') }}",
    "strips tabs": "{{ m.content.strip('\\t') }}",
    "makes line ends Unix's": "{{ m.content | replace('\\r\\n', '\\n') }}",
    "widens tabs": "{{ m.content.replace('\\t', '    ') }}",
    "lowers": "{{ m.content | lower }}",
    "looks for a text": "{% if '</think>' in m.content %}thought: {% endif %}{{ m.content }}",
    "looks for a text by name": "{% if mark in m.content %}thought: {% endif %}{{ m.content }}",
    "looks at how it starts": "{% if m.content.startswith('<tool_response>') %}!{% endif %}{{ m.content }}",
    "takes lines apart": "{% for line in m.content.split('\\n') %}{{ line }};{% endfor %}",
    "drops empty arguments": (
        "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
        "{% if c.function.arguments %}{{ c.function.arguments | tojson }}{% endif %}</tool_call>{% endfor %}"
    ),
    "drops text beside calls": (
        "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}"
        "{% else %}{{ m.content }}{% endif %}"
    ),
}


TEXTS = (
    "", "  ", "\n", "\nx", "x\n", "\n\nx\n\n", "\tx\t", " x", "x ", "a\r\nb", "a\tb", "ABC", "a\nb", "a  b", "\u3000x",
    "a</think>\n\nb", "<think>\na\n</think>\n\nb", "<tool_response>x", "<tool_call>", "<|im_end|>", "\U00100001",
)  # fmt: skip
"""What templates are known to look for, or to change."""


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_skeleton_agrees_with_a_template_that_treats_texts_unlike_one_another(body: str) -> None:
    """Two tame rows of the same shape come first: from then on a join is only sampled."""
    program = made(body)
    for where, text in itertools.product(PLACES, TEXTS):
        conversation = odd(where, text, {})
        expected = outcome(program.rendering.segments, conversation)
        program = Program(program.rendering)
        try:
            for row in (*[odd(where, text and "Hi.", {"a": 1})] * 2, conversation):
                found = outcome(program.segments, row)
        except SkeletonMismatch:
            continue  # noticed: the run goes on without skeletons
        assert found == expected, (where, text)


def test_a_skeleton_is_probed_with_what_the_rows_hold_and_with_the_rest_when_there_are_many() -> None:
    """A probe takes a rendering, and most shapes of a small file have a handful of rows."""
    renderings: list[int] = []

    class Counted(Rendering):
        def segments(self, conversation: Conversation) -> list[Segment]:
            renderings.append(1)
            return super().segments(conversation)

    rendering = made("{{ m.content }}").rendering
    program = Program(Counted(**{field.name: getattr(rendering, field.name) for field in fields(rendering)}))
    counts = []
    for text in ("Hi.", "Hi.", "Hi.", "Hi.", "a  b", "a  b", *["Hi."] * 40):
        program.segments(chat("x", text))
        counts.append(len(renderings))
    assert [b - a for a, b in itertools.pairwise([0, *counts])][:6] == [1, 1, 1, 0, 2, 0]
    assert counts[-1] == 5 + 6 + 1 + 2, "the probes for white space at an end, tabs and carriage returns"


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_text_is_what_the_template_writes_or_refused_however_it_treats_texts(body: str) -> None:
    program = made(body)
    official = jinja_environment().from_string(chatml(body))
    for where, text in itertools.product(PLACES, TEXTS):
        conversation = odd(where, text, {"<|im_end|>": "<tool_call>"})
        found = outcome(program.rendering.segments, conversation)
        if not isinstance(found, Reason):
            messages: list[dict[str, Any]] = [
                {"role": str(m.role), "content": m.content} for m in conversation.messages
            ]
            for entry, message in zip(messages, conversation.messages, strict=True):
                if message.calls:
                    functions = [{"name": c.name, "arguments": c.arguments} for c in message.calls]
                    entry["tool_calls"] = [{"type": "function", "function": function} for function in functions]
            assert "".join(segment.text for segment in found) == official.render(messages=messages), (where, text)


PLACES = ("user", "reply", "last reply", "call")


def odd(where: str, text: str, arguments: dict[str, Any]) -> Conversation:
    """Return a conversation that says `text` in one place."""
    conversation = chat(*(text if place == where else "Go on" for place in ("user", "reply", "", "last reply")))
    if where == "call":
        conversation.messages[1] = Message(ASSISTANT, text, [Call("f", arguments)])
    return conversation


def outcome(derive: Callable[[Conversation], list[Segment]], conversation: Conversation) -> list[Segment] | Reason:
    try:
        return derive(conversation)
    except RowError as error:
        return error.reject.reason


@MANY
@given(conversation=conversations(weights=False))
def test_with_special_text_allowed_ids_are_the_official_ones_control_tokens_and_all(conversation: Conversation) -> None:
    loaded, _ = tools("demo")
    template = load_template("auto", loaded, special_text="allow")
    segments = template.program.joined(conversation)
    assert segments == template.program.rendering.segments(conversation)
    reference = Reference(DEMO, conversation)
    assert "".join(segment.text for segment in segments) == reference.text
    if not any(reference.text[reply.start].isspace() for reply in reference.replies):
        ids = encode_segments(conversation, segments, loaded).ids.tolist()
        assert ids == DEMO.official.encode(reference.text, add_special_tokens=False).ids


def test_with_special_text_allowed_a_join_keeps_every_character() -> None:
    loaded, _ = tools("demo")
    program = load_template("auto", loaded, special_text="allow").program
    conversation = chat("a\U0010fffdb<|im_end|>\U00100000\U000f0000", "Ok")
    for row in (chat("Hi", "Ok"), chat("Hi", "Ok"), conversation):
        segments = program.segments(row)
    assert segments == program.rendering.segments(conversation)


@LAWS
@given(data=st.data())
def test_a_row_spells_a_control_token_exactly_where_hiding_changes_it(case: Case, data: st.DataObject) -> None:
    conversation = data.draw(case.conversations(spelled=data.draw(st.booleans())))
    reference = Reference(case, conversation)
    strings = [message.content for message in conversation.messages]
    strings += [name for message in conversation.messages for name in (message.name,) if name is not None]
    parts = [[[c.name, c.arguments] for c in message.calls] for message in conversation.messages]
    spelled = reference.disguise([strings, parts, conversation.tools]) != [strings, parts, conversation.tools]
    assert (case.program.rendering.spelled_controls([conversation]) != [None]) == spelled


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_text_equals_what_transformers_renders(case: Case, data: st.DataObject) -> None:
    official = transformers_tokenizer(case.folder)
    conversation = data.draw(case.conversations(weights=False))
    reference = Reference(case, conversation)
    messages: list[dict[str, Any]] = []
    for message in conversation.messages:
        calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in message.calls]
        messages.append(
            {"role": str(message.role), "content": message.content} | ({"tool_calls": calls} if calls else {})
        )
    text = official.apply_chat_template(messages, tools=conversation.tools, chat_template=case.source, tokenize=False)
    assert "".join(segment.text for segment in case.program.joined(conversation)) == text
    assert reference.text == text


@cache
def transformers_tokenizer(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns of while it is imported is not about us
        transformers = pytest.importorskip("transformers", reason="compares with transformers, which is not installed")
        return transformers.AutoTokenizer.from_pretrained(str(folder))


def test_a_row_that_is_shortened_to_untrained_turns_is_rejected_as_that(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    said = [
        ("user", "Hi", None),
        ("assistant", "Ok", False),
        ("user", "Go on", None),
        ("assistant", "word " * 99, None),
    ]
    row = {"messages": [{"role": r, "content": c} | ({} if loss is None else {"loss": loss}) for r, c, loss in said]}
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ok"}]}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, (good, row))))
    run("compile", tmp_path / "rows.jsonl", "-o", tmp_path / "out", "--max-length", 40, "--max-rejects", "100%")
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["row"], reject["reason"]) for reject in rejects] == [(1, "nothing_trained")]
