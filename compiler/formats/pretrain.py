"""pretrain: plain text without turns."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Kind, Message, Role
from compiler.formats.format import Format
from compiler.options import Names


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The document."""
    column = columns["text"]
    assert column is not None
    return Conversation([Message(Role.DOCUMENT, row[column])])


FORMAT = Format(
    name="pretrain",
    lift=lift,
    columns={"text": "text"},
    kinds=(Kind.PRETRAIN,),
)
