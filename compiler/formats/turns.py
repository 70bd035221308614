"""The order of turns: what no template can make right is refused here, everything else is the template's to decide."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

from compiler.conversation import Conversation, Role
from schemas.errors import Reason, RowError

_MAY_FOLLOW = {
    Role.USER: (Role.ASSISTANT, Role.TOOL),
    Role.ASSISTANT: (Role.USER, Role.TOOL),
    Role.TOOL: (Role.ASSISTANT, Role.TOOL, Role.USER),
}


@lru_cache(maxsize=1024)
def take_turns(roles: tuple[Role, ...]) -> bool:
    """Whether messages of these roles take turns and end with a reply, whatever they hold."""
    said = [role for role in roles if role is not Role.SYSTEM]
    in_order = all(role in _MAY_FOLLOW[before] for before, role in pairwise(said))
    return in_order and said[-1:] == [Role.ASSISTANT]


def check_turns(conversation: Conversation, pointer: str | None) -> None:
    """Raise unless the messages take turns and end with a reply (decision 11).

    Who begins, and whether a call asked for a tool's result, is for the template: it renders the order with proven
    masks, or the row is a reject. `pointer` names the source list of messages, None where the row has none. System
    messages are skipped.
    """
    messages = conversation.messages
    places = conversation.places or range(len(messages))

    def wrong(what: str, place: int) -> RowError:
        where = "" if pointer is None or place < 0 else f"{pointer}/{place}"
        if not any(message.role is Role.ASSISTANT for message in messages):
            what, where = "expected at least one reply, found none", pointer or ""
        return RowError(Reason.TURN_ORDER, what, where)

    before: Role | None = None
    last = -1
    for place, message in zip(places, messages, strict=False):
        role = message.role
        if role is Role.SYSTEM:
            continue
        if (
            before is not None
            and role not in _MAY_FOLLOW[before]
            # a thought, then the call it leads to: two turns where their weights differ
            and not (before is Role.ASSISTANT and role is Role.ASSISTANT and message.calls)
        ):
            raise wrong(f"expected {' or '.join(_MAY_FOLLOW[before])} after {before}, found {role}", place)
        before, last = role, place
    if before is not Role.ASSISTANT:
        hint = "--repair dangling removes trailing turns without a reply"
        raise wrong(f"expected a reply last, found {before}; {hint}", last)


def unusual_order(conversation: Conversation) -> str:
    """What not every template takes in the order of the turns, and what to do then; "" where there is nothing."""
    before: Role | None = None
    called = False
    for message in conversation.messages:
        role = message.role
        if role is Role.SYSTEM:
            continue
        if before is None and role is Role.ASSISTANT:
            return "the assistant speaks first; put a system or user message before it"
        if role is Role.TOOL and not called:
            return "no call asked for a tool's result; give the call, or make the result a user message"
        if role is Role.USER and before is Role.TOOL:
            return "a user message follows a tool's result; give the reply between them"
        called = bool(message.calls) if role is Role.ASSISTANT else called and role is Role.TOOL
        before = role
    return ""
