"""What a source format declares: its columns and tags, what its rows can be compiled to, and how a row is lifted.

A shape is a format made of another one and a card in `registry/shapes/`: other columns, tags, kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from compiler.conversation import Conversation, Kind
from compiler.options import Names
from schemas import schema
from schemas.errors import RowError

Lift = Callable[[dict[str, Any], Names, Names], Conversation | Sequence[Conversation | RowError]]
"""(row, columns, tags) -> the one conversation of a row, or several, each or the reason why it is rejected."""

CHAT_KINDS = (Kind.SFT, Kind.PREFERENCE, Kind.KTO)


@dataclass(frozen=True)
class Format:
    """One source format. Its rows are checked against its schema before they are lifted."""

    name: str
    lift: Lift
    columns: dict[str, str]
    """The format's name of each column -> the key in a row, where the user names no other."""
    tags: dict[str, str] = field(default_factory=dict)
    """The same for what stands inside the items of a list: keys and roles."""
    ignorable: tuple[str, ...] = ()
    """Keys of its rows that need not be read, beside those of `registry/keys.json`."""
    turns: str | None = None
    """The column that lists the messages, for pointers; None where a row is not a list of messages."""
    kinds: tuple[str, ...] = (Kind.SFT,)
    """What its rows can be compiled to."""
    weights: str = "none"
    """The policy for `--weights auto`."""
    session: bool = False
    """Whether a file is one row, {"lines": [...]}: what its JSON lines hold."""
    react: bool = False
    """Whether replies are ReAct text, which is checked."""
    bare: bool = False
    """Whether a row is the list of messages itself, with no object around it."""
    like: str = ""
    """The format whose schema it has; "" = its own, `schemas/NAME.schema.json`."""
    required: dict[str, list[str]] = field(default_factory=dict)
    """Columns that rows of a kind must have too: {kind: [keys of the schema]}."""
    card: dict[str, Any] = field(default_factory=dict)
    """The card of a shape: title, description, examples."""

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of its rows, with the names of `like`."""
        node = schema(self.like or self.name)
        if not self.required:
            return node
        needed = {kind: [*keys, *self.required.get(kind, ())] for kind, keys in node.get("x-required", {}).items()}
        return node | {"x-required": self.required | needed}

    @property
    def about(self) -> dict[str, Any]:
        """Its title, description and examples, as the card of a shape or else the schema has them."""
        return self.card or schema(self.name)

    def with_card(self, card: dict[str, Any]) -> Format:
        """The shape that a card makes of this format. A column or tag that is null in the card is not read."""
        columns, tags = self.columns | card.get("columns", {}), self.tags | card.get("tags", {})
        return replace(
            self,
            name=card["name"],
            like=self.like or self.name,
            columns={name: key for name, key in columns.items() if key is not None},
            tags={name: key for name, key in tags.items() if key is not None},
            kinds=tuple(card.get("kinds", self.kinds)),
            required=card.get("required", {}),
            card=card,
        )
