"""ReAct replies checked against their own format: replies that a harness could not act on are found before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.rows.react.parse import (
    ACTION,
    ACTION_INPUT,
    FINAL_ANSWER,
    OBSERVATION,
    Api,
    ReplyPart,
    parse_apis,
    parse_inputs,
    parse_reply,
)
from schemas.errors import nearest

Apis = dict[str, Api] | None
Found = tuple[str, int] | None
"""(message, character of the reply), or None where a rule finds nothing wrong."""


@dataclass(frozen=True, slots=True)
class _ReactReply:
    """A reply that uses ReAct, the values of its inputs in order, and whether it is the last of them."""

    parts: list[ReplyPart]
    inputs: list[Any]
    last: bool


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
        (i, parts)
        for i, message in enumerate(conversation.messages)
        if message.role is Role.ASSISTANT and (parts := parse_reply(message.content))
    ]
    if not replies:
        return []
    system = (message.content for message in conversation.messages if message.role is Role.SYSTEM)
    apis = parse_apis("\n".join(system))
    asked = [[part.text for part in parts if part.keyword == ACTION_INPUT] for _, parts in replies]
    values = iter(parse_inputs([text for texts in asked for text in texts]))
    findings = []
    for (i, parts), texts in zip(replies, asked, strict=True):
        reply = _ReactReply(parts, list(islice(values, len(texts))), i == replies[-1][0])
        for rule, look in _RULES.items():
            if (found := look(reply, apis)) is not None:
                findings.append(ReactFinding(rule, found[0], i, found[1]))
    return findings


def is_react(messages: list[Message]) -> bool:
    """Whether replies are ReAct text: one has a line that begins with Action, or the system text lists APIs."""
    for message in messages:
        if message.role is Role.ASSISTANT and (
            message.content.startswith(_ACTION) or f"\n{_ACTION}" in message.content
        ):
            return True
    system = (message.content for message in messages if message.role is Role.SYSTEM)
    return parse_apis("\n".join(system)) is not None


_ACTION = f"{ACTION}:"


def _action(reply: _ReactReply, apis: Apis) -> Found:
    for part in reply.parts:
        name = part.text.strip()
        if part.keyword == ACTION and apis is not None and name not in apis:
            return f"Action {_short(name)!r} is not an API of the system prompt; {nearest(name, apis)}", part.start
    return None


def _input(reply: _ReactReply, apis: Apis) -> Found:
    values = iter(reply.inputs)
    for before, part in _pairs(reply.parts):
        if part.keyword != ACTION_INPUT:
            continue
        value = next(values)
        if isinstance(value, ValueError):
            return f"Action Input {_short(part.text)!r} is {value}", part.start
        name = before.text.strip() if before is not None and before.keyword == ACTION else ""
        required = apis[name].required if apis is not None and name in apis else None
        missing = [key for key in required or () if not isinstance(value, dict) or key not in value]
        if missing:
            named = ", ".join(map(repr, missing))
            return f"expected Action Input with the parameters that {name!r} requires, found no {named}", part.start
    return None


def _observation(reply: _ReactReply, _: Apis) -> Found:
    parts = reply.parts
    for i, part in enumerate(parts):
        if part.keyword != OBSERVATION:
            continue
        keywords = [before.keyword for before in parts[max(i - 2, 0) : i]]
        if keywords != [ACTION, ACTION_INPUT]:
            found = f"found it after {' and '.join(keywords)}" if keywords else "found it first"
            return f"expected Observation after Action and Action Input, {found}", part.start
    return None


def _final(reply: _ReactReply, _: Apis) -> Found:
    parts = reply.parts
    for before, part in _pairs(parts):
        if before is not None and before.keyword == FINAL_ANSWER:
            return f"expected nothing after Final Answer, found {part.keyword}", part.start
    if reply.last and parts[-1].keyword != FINAL_ANSWER:
        return f"expected the last reply to end with Final Answer, found {parts[-1].keyword}", parts[-1].start
    return None


_RULES: dict[str, Callable[[_ReactReply, Apis], Found]] = {
    "react_action": _action,
    "react_input": _input,
    "react_observation": _observation,
    "react_final": _final,
}
RULES = tuple(_RULES)
"""The names by which findings are counted."""


def _pairs(parts: list[ReplyPart]) -> Iterator[tuple[ReplyPart | None, ReplyPart]]:
    """Each part with the one before it."""
    return zip([None, *parts], parts, strict=False)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 60 else f"{text[:60]}..."
