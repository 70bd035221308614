"""Messages that stand in several columns of a row, read as one list of OpenAI messages."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation
from compiler.formats import openai
from compiler.options import Names
from schemas.errors import Reason, RowError

Placed = list[tuple[str, dict[str, Any]]]
"""Messages, each with its pointer in the row."""
_COLUMNS: Names = {
    name: name for name in ("messages", "system", "tools", "images", "videos", "chosen", "rejected", "kto_tag")
}


def place(messages: list[Any], column: str | None) -> Placed:
    """The messages of a column with their pointers."""
    return [(f"/{column}/{i}", message) for i, message in enumerate(messages)]


def lift_joined(placed: Placed, columns: dict[str, tuple[str | None, Any]], tags: Names) -> Conversation:
    """The conversation of `placed`; `columns` are {openai's name: (pointer in the row, value)}. None is not given.

    What it refuses is refused at its place in the row.
    """

    def moved(pointer: str) -> str:
        name, _, rest = pointer[1:].partition("/")
        if name != "messages":
            return "/".join(filter(None, ((columns[name][0] or f"/{name}") if name in columns else f"/{name}", rest)))
        index, _, rest = rest.partition("/")
        return "/".join(filter(None, (placed[int(index)][0] if index else "", rest)))

    row = {name: value for name, (_, value) in columns.items() if value is not None}
    try:
        conversation = openai.lift(row | {"messages": [message for _, message in placed]}, _COLUMNS, tags)
    except RowError as error:
        reject = error.reject
        raise RowError(reject.reason, reject.message, moved(reject.pointer)) from None
    for media in conversation.media():
        media.pointer = moved(media.pointer)
    return conversation


def only_reply(messages: list[Any], context: int, column: str | None) -> tuple[str, Any]:
    """(pointer, message) of the one message after the first `context` of a side of a pair."""
    if len(messages) != context + 1:
        what = f"expected both replies to be one message after what they share, found {len(messages) - context}"
        raise RowError(Reason.TURN_ORDER, what, f"/{column}")
    return f"/{column}/{context}", messages[context]


def shared(chosen: list[Any], rejected: list[Any]) -> int:
    """The number of turns with which both sides of a pair begin. Each has at least one more."""
    both = zip(chosen[:-1], rejected[:-1], strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(chosen), len(rejected)) - 1)
