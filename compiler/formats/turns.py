"""The order of turns that every conversation must have."""

from __future__ import annotations

from compiler.conversation import Conversation, Role
from schemas.errors import Reason, RowError

_MAY_FOLLOW = {
    Role.USER: (Role.ASSISTANT,),
    Role.ASSISTANT: (Role.USER, Role.TOOL),
    Role.TOOL: (Role.ASSISTANT, Role.TOOL),
}


def check_turns(conversation: Conversation, pointer: str | None) -> None:
    """Raise unless the messages are a conversation that ends with a reply (decision 11).

    `pointer` names the source list of messages, None where the row has none. System messages are skipped.
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
        if before is None:
            if role is not Role.USER:
                raise wrong(f"expected a user message first, found {role}", place)
        elif role not in _MAY_FOLLOW[before] and not (
            # a thought, then the call it leads to: two turns where their weights differ
            before is Role.ASSISTANT and role is Role.ASSISTANT and message.calls
        ):
            raise wrong(f"expected {' or '.join(_MAY_FOLLOW[before])} after {before}, found {role}", place)
        before, last = role, place
    if before is not Role.ASSISTANT:
        hint = "--repair dangling removes trailing turns without a reply"
        raise wrong(f"expected a reply last, found {before}; {hint}", last)
