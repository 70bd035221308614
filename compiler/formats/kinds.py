"""Which kind rows are of (sft, preference, kto, pretrain), and which of a format's columns a kind uses."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Kind
from compiler.formats.format import Format
from compiler.options import Names

KIND_COLUMNS = {"chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag"}
"""The columns that make a row a pair or a KTO row, and what they are called where nobody says otherwise."""
_OTHER_NAMES = {
    "rejected": ("rejected_response",),
    "kto_tag": ("label",),
    "images": ("image",),
    "videos": ("video",),
}
"""What ms-swift and LLaVA call the columns that LLaMA-Factory calls so."""


_LABELS, _REJECTED = ("kto_tag", "label"), ("rejected", "rejected_response", "rejected_messages")
KIND_KEYS = frozenset((*_LABELS, *_REJECTED))
"""The keys by which a row says that it is a pair or a KTO row."""


def kind_of_rows(rows: list[Any]) -> str:
    """Return the kind of rows of which some may not say it: one label or pair makes it a set of those.

    The others are rejected then, and that is said; a reply to be unlearned is never trained as a plain one.
    """
    found = {kind_of_row(row) for row in rows if isinstance(row, dict)}
    return next((kind for kind in (Kind.KTO, Kind.PREFERENCE, Kind.SFT) if kind in found), min(found, default=Kind.SFT))


def kind_of_row(row: dict[str, Any]) -> Kind:
    """Return what a row says it is for."""
    if any(isinstance(row.get(key), bool) for key in _LABELS):
        return Kind.KTO
    if any(row.get(key) is not None for key in _REJECTED):
        return Kind.PREFERENCE  # ms-swift's rejected_messages are not read, but never trained without either
    return Kind.PRETRAIN if set(row) == {"text"} else Kind.SFT


def columns_for(format_: Format, kind: str, rows: list[Any]) -> Names:
    """Return a format's default columns for a kind, with the names that the rows use."""
    names = of_kind(dict(format_.columns), kind)
    keys = {key for row in rows if isinstance(row, dict) for key in row}
    for column, others in _OTHER_NAMES.items():
        if names.get(column) is not None and names[column] not in keys:
            names[column] = next((other for other in others if other in keys), names[column])
    if names.get("chosen") not in keys and names.get("rejected") == "rejected_response":
        names["chosen"] = None  # the reply of the conversation itself is the chosen one
    return names


def of_kind(names: Names, kind: str) -> Names:
    """Return the columns without those of other kinds: a lift does what the names it gets ask for."""
    mine = {Kind.PREFERENCE: ("chosen", "rejected"), Kind.KTO: ("kto_tag",)}.get(Kind(kind), ())
    return {name: None if name in KIND_COLUMNS and name not in mine else actual for name, actual in names.items()}
