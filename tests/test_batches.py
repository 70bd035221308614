"""Rows compiled together: what stands in the columns of a batch is what the slow derivation says of each row alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

import registry
from compiler.conversation import Conversation, Message, Role
from compiler.encode.batch import Encoded
from compiler.encode.columns import Example, columns_of
from compiler.encode.sequences import SequenceMaker
from compiler.encode.shapes import Owner
from compiler.encode.tokens import encode
from compiler.encode.weigh import Policy
from compiler.read import Row
from compiler.templates.jinja import ChatTemplate
from compiler.templates.program import Program
from compiler.templates.thinking import with_reasoning
from compiler.tokenizer.encoders import FAST, REFERENCE
from tests.support.conversations import react_texts, texts
from tests.support.encoded import encode_segments
from tests.support.reference import CASES, IGNORED, ROLE_STOPS, Case, Reference, react_weights
from tests.support.shared import tools

LAW = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=5,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

THINKS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tame(conversation: Conversation, number: int) -> Conversation:
    """A row of the same shape: other words in its texts, the empty ones empty; odd ones ask for no weights."""
    messages = [
        replace(
            message,
            content=f"Hi {number}.{i}" if message.content else "",
            weight=None if number % 2 else message.weight,
        )
        for i, message in enumerate(conversation.messages)
    ]
    return replace(conversation, messages=messages)


def columns(kept: list[Example]) -> list[dict[str, Any]]:
    """The rows of the Arrow batch, with the owner of each token in place of the spans."""
    owners: dict[Owner, int] = {}
    found: list[dict[str, Any]] = columns_of(kept, cast(Any, None), owners).to_pylist()
    names = list(owners)
    for row in found:
        for side in ("", "rejected_"):
            spans = row[f"{side}spans"]
            if spans is not None:
                assert all(spans[1::2]) and all(a != b for a, b in zip(spans[::2], spans[2::2], strict=False))
                pairs = zip(spans[::2], spans[1::2], strict=True)
                row[f"{side}owners"] = [names[n] for n, count in pairs for _ in range(count)]
                row[f"{side}labels"] = labels(row[f"{side}input_ids"], row[f"{side}trained"])
    return found


def labels(ids: list[int], runs: list[int]) -> list[int]:
    """The labels that the run lengths of an object say."""
    trained = [number % 2 == 1 for number, count in enumerate(runs) for _ in range(count)]
    return [token if one else IGNORED for token, one in zip(ids, trained, strict=True)]


def example(number: int, conversation: Conversation, sides: list[Any]) -> Example:
    row = Row(number, None, None, None, b"")
    return Example(row, 0, conversation, sides[0], rejected=sides[1] if len(sides) > 1 else None)


def must_be(found: dict[str, Any], one: Example, expected: list[tuple[int, float]], alone: Encoded) -> None:
    """Check a row of the batch: (id, weight) of each token as expected; owners as of the row encoded alone."""
    weights = [weight for _, weight in expected]
    assert found["input_ids"] == [i for i, _ in expected]
    assert found["labels"] == [i if weight > 0 else IGNORED for i, weight in expected]
    assert found["loss_weights"] == (None if {*weights} <= {0.0, 1.0} else weights)
    assert (found["num_trained"], found["length"]) == (sum(weight > 0 for weight in weights), len(weights))
    assert found["owners"] == [part.owner for part in alone.stretches for _ in range(part.length)]
    assert one.encoded.stretches == alone.stretches
    assert (found["index"], found["fingerprint"]) == (one.row.index, one.conversation.fingerprint())


@pytest.mark.parametrize("case", [*CASES, *ROLE_STOPS], ids=str)
def test_the_columns_of_a_batch_hold_what_each_row_makes_by_itself(case: Case) -> None:
    loaded, template = tools(case.tokenizer, case.template)
    encoders = [REFERENCE] if isinstance(loaded.fast, str) else [REFERENCE, FAST]
    shared = 0

    @LAW
    @given(data=st.data())
    def law(data: st.DataObject) -> None:
        nonlocal shared
        drawn = data.draw(st.lists(case.conversations(replies=react_texts()), min_size=2, max_size=3))
        drawn.append(Conversation([Message(Role.USER, "q"), Message(Role.ASSISTANT, "Action:")]))  # a keyword alone
        rows = [row for wild in drawn for row in (*(tame(wild, n) for n in range(4)), wild, wild)]
        rows = data.draw(st.permutations(rows))
        encoder = data.draw(st.sampled_from(encoders), label="encoder")
        fates = [data.draw(st.sampled_from(("kept", "kept", "cut", "dropped"))) for _ in rows]
        for is_react in (False, True):
            policy = Policy.from_card(registry.weights("react" if is_react else "none"))
            maker = SequenceMaker(loaded, replace(template, program=Program(template.program.rendering)), policy)
            made = [one for one in maker.make(rows, Counter()) if isinstance(one, list)]
            sequences = [sequence for examples in made for _, some in examples for sequence in some]
            shared += len(sequences) - len({id(sequence.shape) for sequence in sequences})
            encoded = zip(rows, encode(sequences, loaded, encoder), fates, strict=True)
            kept = [
                example(n, row, [one.between(0, len(one.ids) // 2 + 1, []) if fate == "cut" else one])
                for n, (row, one, fate) in enumerate(encoded)
                if fate != "dropped"
            ]
            for one, found in zip(kept, columns(kept), strict=True):
                slow = Reference(case, one.conversation, *([react_weights] if is_react else []))
                segments = template.program.rendering.segments(one.conversation)
                alone, length = encode_segments(one.conversation, segments, loaded, policy), one.encoded.length
                must_be(found, one, slow.columns[:length], alone.between(0, length, []))

    law()
    assert shared > 0


@LAW
@given(data=st.data())
def test_pairs_and_thinking_in_a_batch_are_what_each_row_makes_by_itself(data: st.DataObject) -> None:
    loaded, template = tools("demo")
    own = template.program.rendering
    thinks = ChatTemplate(THINKS, {}, "a template that takes thinking apart")
    template = replace(template, program=Program(replace(own, template=thinks, tool_template=thinks)))
    text = texts(spelled=False)
    rows = []
    for number in range(data.draw(st.integers(2, 5))):
        said = [Message(Role.USER, f"{data.draw(text)} {number}"), Message(Role.ASSISTANT, f"a{data.draw(text)}")]
        if data.draw(st.booleans(), label="thinks"):
            said[-1].content = f"<think>\n{number} {data.draw(text)}x\n</think>\n\n{said[-1].content}"
        other = Message(Role.ASSISTANT, f"b{number}") if data.draw(st.booleans(), label="pair") else None
        rows += [Conversation(said, rejected=other)] * 3
    maker = SequenceMaker(loaded, template, Policy("none", {}, ()))
    made = [one for one in maker.make(rows, Counter()) if isinstance(one, list)]
    encoded = iter(encode([sequence for [(_, some)] in made for sequence in some], loaded))
    kept = [
        example(n, row, [next(encoded) for _ in some])
        for n, (row, [(_, some)]) in enumerate(zip(rows, made, strict=True))
    ]
    for one, found in zip(kept, columns(kept), strict=True):
        row, total = one.conversation, 0
        for side, reply in (("", row.messages[-1]), ("rejected_", row.rejected)):
            if reply is None:
                assert found[f"{side}input_ids"] is None and found[f"{side}trained"] is None
                continue
            alone = with_reasoning(Conversation([row.messages[0], reply]))
            expected = encode_segments(alone, template.program.rendering.segments(alone), loaded)
            assert found[f"{side}input_ids"] == expected.ids.tolist()
            assert found[f"{side}labels"] == expected.labels.tolist()
            assert found[f"{side}owners"] == [p.owner for p in expected.stretches for _ in range(p.length)]
            total += expected.num_trained
        assert found["num_trained"] == total > 0
