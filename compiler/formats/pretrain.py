"""pretrain: a text to be learned as it is, without turns."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role

COLUMNS = {"text": "text"}
TAGS: dict[str, str] = {}


def lift(row: dict[str, Any], columns: dict[str, str | None], tags: dict[str, str | None]) -> Conversation:  # noqa: ARG001
    """Return the document."""
    column = columns["text"]
    assert column is not None
    return Conversation([Message(Role.DOCUMENT, row[column])])
