"""xlam: a query, the tools, and the calls that answer it, as in xLAM's function calling data.

Tools and calls are JSON, mostly as text. The tools stay as they are: their parameters are no JSON Schema.
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import complete, parse_call, parse_text, read_columns
from compiler.formats.format import Format
from compiler.options import Names
from schemas.errors import Reason, RowError


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation: the query, and one reply with all calls."""
    found = read_columns(row, columns)
    calls, at = found["calls"], f"/{columns['calls']}"
    within = f"{at}/{{}}" if isinstance(calls, list) else at
    if isinstance(calls, str):
        calls = parse_text(calls, "a list of calls", Reason.TOOL_ARGUMENTS, at)
    if not isinstance(calls, list) or not calls:
        what = f"expected a list of calls, found {'an empty list' if calls == [] else 'another value'}"
        raise RowError(Reason.TOOL_ARGUMENTS, what, at)
    places = [within.format(i) for i in range(len(calls))]
    made = [parse_call(call, place, place) for call, place in zip(calls, places, strict=True)]
    return complete(found, columns, [Message(Role.USER, found["query"]), Message(Role.ASSISTANT, "", made)])


FORMAT = Format(
    name="xlam",
    lift=lift,
    columns={"query": "query", "calls": "answers", "tools": "tools", "system": "system"},
)
