"""What a source format declares: its columns and tags, what its rows can be compiled to, and how a row is lifted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.conversation import Conversation, Kind
from compiler.options import Names
from schemas.errors import RowError

Lift = Callable[[dict[str, Any], Names, Names], Conversation | Sequence[Conversation | RowError]]
"""(row, columns, tags) -> the one conversation of a row, or several, each or the reason why it is rejected."""

CHAT_KINDS = (Kind.SFT, Kind.PREFERENCE, Kind.KTO)


@dataclass(frozen=True)
class Format:
    """One source format. Its rows are checked against `schemas/NAME.schema.json` before they are lifted."""

    name: str
    lift: Lift
    columns: dict[str, str]
    """The format's name of each column -> the key in a row, where the user names no other."""
    tags: dict[str, str] = field(default_factory=dict)
    """The same for what stands inside the items of a list: keys and roles."""
    turns: str | None = None
    """The column that lists the messages, for pointers; None where a row is not a list of messages."""
    kinds: tuple[str, ...] = (Kind.SFT,)
    """What its rows can be compiled to."""
    weights: str = "none"
    """The policy for `--weights auto`."""
    react: bool = False
    """Whether replies are ReAct text, which is checked."""
