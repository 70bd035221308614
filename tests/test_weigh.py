"""The weights policies, each on the text it is for: stretches and weights written by hand."""

from __future__ import annotations

import pytest

import registry
from compiler.conversation import Conversation, Message, Role
from compiler.encode.weigh import Policy, Weighed, weigh_replies
from tests.support.encoded import weighed_texts
from tests.support.shared import tools


def stretches(
    policy: str | Policy, reply: str, user: str = "q", weight: float | None = None
) -> list[tuple[str, float]]:
    """Return the reply and its stop as (text, weight) stretches."""
    conversation = Conversation([Message(Role.USER, user), Message(Role.ASSISTANT, reply, weight=weight)])
    tokenizer, template = tools("demo")
    chosen = Policy.from_card(registry.weights(policy)) if isinstance(policy, str) else policy
    found: list[tuple[str, float]] = []
    for text, given, generated in weighed_texts(conversation, template.program.joined(conversation), tokenizer, chosen):
        if not generated:
            assert given == 0
        elif found and found[-1][1] == given:
            found[-1] = (found[-1][0] + text, given)
        else:
            found.append((text, given))
    return found


STOP = "<|im_end|>"


@pytest.mark.parametrize(
    ("policy", "reply", "expected"),
    [
        ("none", "Action: x", [(f"Action: x{STOP}", 1)]),
        ("react", "plain", [(f"plain{STOP}", 1)]),
        ("react", "", [(STOP, 1)]),
        (
            "react",
            "Thought: t\nAction: a\nAction Input: {}\nObservation: o\nThought: done\nFinal Answer: f",
            [
                ("Thought: t\n", 1),
                ("Action: a\nAction Input: {}\nObservation:", 2),
                (" o\n", 0),
                (f"Thought: done\nFinal Answer: f{STOP}", 1),
            ],
        ),
        ("react", "Action:Action Input: x", [("Action:Action Input: x", 2), (STOP, 1)]),
        ("react", "I quote: Observation: no", [(f"I quote: Observation: no{STOP}", 1)]),
        (
            "react",
            "Observation: the log says Action: stop",
            [("Observation:", 2), (" the log says Action: stop", 0), (STOP, 1)],
        ),
        ("alpha_umi", "Thought: t\nNext: caller", [("Thought: t\n", 1), ("Next: caller", 2), (STOP, 1)]),
        (
            "qwen",
            "✿FUNCTION✿: f\n✿ARGS✿: {}\n✿RESULT✿: r\n✿RETURN✿: done",
            [("✿FUNCTION✿: f\n✿ARGS✿: {}\n✿RESULT✿:", 2), (" r\n", 0), (f"✿RETURN✿: done{STOP}", 1)],
        ),
        (
            "hermes",
            "a <tool_call>\n{}\n</tool_call> b",
            [("a ", 1), ("<tool_call>\n{}\n</tool_call>", 2), (f" b{STOP}", 1)],
        ),
        ("ignore_empty_think", "<think>\n\n</think>\n\nhi", [("<think>\n\n</think>\n\n", 0), (f"hi{STOP}", 1)]),
        ("ignore_empty_think", "<think>\nhm\n</think>\n\nhi", [(f"<think>\nhm\n</think>\n\nhi{STOP}", 1)]),
        ("ignore_empty_think", "hi <think></think>", [(f"hi <think></think>{STOP}", 1)]),
        ("agentflan", "Name: f\nArguments: {}", [("Name:", 1), (" f\n", 3), ("Arguments:", 1), (" {}", 3), (STOP, 1)]),
    ],
)
def test_a_policy_weighs_the_parts_of_a_reply(policy: str, reply: str, expected: list[tuple[str, float]]) -> None:
    assert stretches(policy, reply) == expected


def test_agentflan_weighs_a_whole_reply_to_one_of_its_questions() -> None:
    assert stretches("agentflan", "Name: f", "What is the tool you want to use?") == [(f"Name: f{STOP}", 3)]


@pytest.mark.parametrize("said", ["Paris", "\n\n Paris \n", "", "big", "Action: look"])
def test_what_a_reply_thinks_is_no_part_of_its_own_text_though_the_same_words_are_in_it(said: str) -> None:
    thought = "Paris is big.\nObservation: my notes say so.\nAction: look\nDone"
    rendered = f"<think>\n{thought}\n</think>\n\n{said.strip()}"
    message = Message(Role.ASSISTANT, said, reasoning=thought)
    react = Policy.from_card(registry.weights("react"))
    [(found, _)] = weigh_replies([react], [rendered], [Conversation([message])], 0)
    begin = rendered.index("</think>") + len("</think>\n\n")
    expected = Weighed([begin, 7, 5], [(1.0, ""), (2.0, "keyword"), (2.0, "Action:")])
    assert found == (expected if said.startswith("Action") else None)


def test_a_policy_may_look_at_questions_alone() -> None:
    policy = Policy.from_card({"name": "quiet", "queries": {"secret": 0.0}})
    for user, weight in (("a secret?", 0.0), ("a question?", 1.0)):
        assert stretches(policy, "r", user) == [(f"r{STOP}", weight)]


def test_a_weight_of_the_message_takes_the_place_of_the_policy() -> None:
    assert stretches("react", "Action: a", weight=2.5) == [(f"Action: a{STOP}", 2.5)]
    assert stretches("react", "Action: a", weight=0.0) == [(f"Action: a{STOP}", 0)]


@pytest.mark.parametrize("name", registry.weights_names())
def test_every_policy_says_what_it_is_for(name: str) -> None:
    card = registry.weights(name)
    assert card["name"] == name
    assert len(card["description"]) > 20
