"""query_response: ms-swift's {query, response} with optional history, system, tools, media; pairs and KTO."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation
from compiler.formats import alpaca
from compiler.formats.marks import MEDIA_COLUMNS

COLUMNS = {
    "query": "query",
    "response": "response",
    "history": "history",
    "system": "system",
    "tools": "tools",
    **MEDIA_COLUMNS,
    "rejected": "rejected_response",
    "kto_tag": "label",
}
TAGS: dict[str, str] = {}


def lift(row: dict[str, Any], columns: dict[str, str | None], tags: dict[str, str | None]) -> Conversation:
    """Return the conversation, read as alpaca whose rows have an input and no instruction."""
    return alpaca.lift(row, columns, tags)
