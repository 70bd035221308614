"""ReAct replies checked against their own format: replies that a harness could not act on are found before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from compiler.conversation import ASSISTANT, SYSTEM, Conversation, Message
from compiler.rows.react.parse import (
    ACTION,
    ACTION_INPUT,
    FINAL_ANSWER,
    OBSERVATION,
    Api,
    parse_apis,
    parse_input,
    parse_reply,
    split_reply,
)
from schemas.errors import nearest

Apis = dict[str, Api] | None
_Found = tuple[str, str, int]
"""(rule, message, number of the part of the reply)"""
RULES = ("react_action", "react_input", "react_observation", "react_final")
"""The names by which findings are counted."""


@dataclass(frozen=True, slots=True)
class ReactFinding:
    """What is wrong with a reply. Findings are counted by `rule`; `start` is a character of the message."""

    rule: str
    message: str
    message_index: int
    start: int


def check(conversation: Conversation) -> list[ReactFinding]:
    """The findings in the replies that use ReAct, in order, at most one for each rule and reply.

    * `react_action`: an action names an API of the system prompt (where the prompt lists any).
    * `react_input`: an action's input is JSON or a Python literal and has the required parameters.
    * `react_observation`: an observation follows an action and its input.
    * `react_final`: nothing follows a final answer, and the last reply that uses ReAct ends with one.
    """
    replies = [
        (i, pieces)
        for i, message in enumerate(conversation.messages)
        if message.role is ASSISTANT and len(pieces := split_reply(message.content)) > 1
    ]
    if not replies:
        return []
    system = (message.content for message in conversation.messages if message.role is SYSTEM)
    apis = parse_apis("\n".join(system))
    findings = []
    for i, pieces in replies:
        keywords = tuple(pieces[1::2])
        found = [*_acts(keywords, pieces[2::2], apis), *_order(keywords, last=i == replies[-1][0])]
        if found:
            parts = parse_reply(conversation.messages[i].content)
            findings += [ReactFinding(rule, message, i, parts[k].start) for rule, message, k in found]
    return findings


def is_react(messages: list[Message]) -> bool:
    """Whether replies are ReAct text: one has a line that begins with Action, or the system text lists APIs."""
    for message in messages:
        if message.role is ASSISTANT and (message.content.startswith(_ACTION) or f"\n{_ACTION}" in message.content):
            return True
    system = (message.content for message in messages if message.role is SYSTEM)
    return parse_apis("\n".join(system)) is not None


_ACTION = f"{ACTION}:"


def _acts(keywords: Sequence[str], texts: Sequence[str], apis: Apis) -> list[_Found]:
    """What is wrong with the actions and their inputs; `texts` are those after the keywords."""
    found: dict[str, _Found] = {}
    name = ""
    """That of the action whose input may follow."""
    for k, keyword in enumerate(keywords):
        if keyword == ACTION:
            name = texts[k].strip()
            if apis is not None and name not in apis and "react_action" not in found:
                what = f"Action {_short(name)!r} is not an API of the system prompt; {nearest(name, apis)}"
                found["react_action"] = "react_action", what, k
            continue
        if keyword == ACTION_INPUT and "react_input" not in found and (what := _wrong_input(texts[k], name, apis)):
            found["react_input"] = "react_input", what, k
        name = ""
    return sorted(found.values(), key=lambda one: RULES.index(one[0]))


def _wrong_input(text: str, name: str, apis: Apis) -> str:
    """What is wrong with the input of an action; "" where nothing is."""
    try:
        value = parse_input(text)
    except ValueError as error:
        return f"Action Input {_short(text)!r} is {error}"
    required = apis[name].required if apis is not None and name in apis else None
    missing = [key for key in required or () if not isinstance(value, dict) or key not in value]
    if not missing:
        return ""
    named = ", ".join(map(repr, missing))
    return f"expected Action Input with the parameters that {name!r} requires, found no {named}"


@lru_cache(maxsize=1024)
def _order(keywords: tuple[str, ...], *, last: bool) -> list[_Found]:
    """What is wrong with the order of the parts (shared: do not change it); `last` is whether no ReAct follows."""
    found: list[_Found] = []
    for k, keyword in enumerate(keywords):
        before = keywords[max(k - 2, 0) : k]
        if keyword == OBSERVATION and before != (ACTION, ACTION_INPUT):
            where = f"after {' and '.join(before)}" if before else "first"
            found.append(
                ("react_observation", f"expected Observation after Action and Action Input, found it {where}", k)
            )
            break
    if FINAL_ANSWER in keywords[:-1]:
        k = keywords.index(FINAL_ANSWER) + 1
        found.append(("react_final", f"expected nothing after Final Answer, found {keywords[k]}", k))
    elif last and keywords[-1] != FINAL_ANSWER:
        what = f"expected the last reply to end with Final Answer, found {keywords[-1]}"
        found.append(("react_final", what, len(keywords) - 1))
    return found


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 60 else f"{text[:60]}..."
