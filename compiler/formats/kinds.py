"""The kind of rows (sft, preference, kto, pretrain), and the columns of a format that a kind uses."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Kind
from compiler.formats.format import Format
from compiler.options import Names

KIND_COLUMNS = {"chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag"}
"""The columns that make a row a pair or a KTO row, with their default names."""
_OTHER_NAMES = {
    "rejected": ("rejected_response",),
    "kto_tag": ("label",),
    "images": ("image",),
    "videos": ("video",),
    "messages": ("trajectory",),
    "tools": ("available_tools",),
}
"""The names of columns -> other names for them, in ms-swift, in LLaVA and in agents' trajectories."""


_LABELS, _REJECTED = (
    ("kto_tag", "label"),
    ("rejected", "rejected_response", "rejected_messages", "response_rejected", "non_preferred_output"),
)
KIND_KEYS = frozenset((*_LABELS, *_REJECTED))
"""The keys by which a row says that it is a pair or a KTO row."""


def kind_of_rows(rows: list[Any]) -> str:
    """The kind of a dataset by its first rows: one label makes it KTO, one pair makes it preference.

    Rows of another kind are rejected then, so that a reply to be unlearned is never trained as a plain one.
    """
    found = {kind_of_row(row) for row in rows if isinstance(row, dict)}
    return next((kind for kind in (Kind.KTO, Kind.PREFERENCE, Kind.SFT) if kind in found), min(found, default=Kind.SFT))


def kind_of_row(row: dict[str, Any]) -> Kind:
    """The kind that a row's keys ask for."""
    if any(isinstance(row.get(key), bool) for key in _LABELS):
        return Kind.KTO
    if any(row.get(key) is not None for key in _REJECTED):
        return (
            Kind.PREFERENCE
        )  # rejected_messages (ms-swift) are not read, but a row that has them is never trained as a plain one
    return Kind.PRETRAIN if set(row) == {"text"} else Kind.SFT


def columns_for(format_: Format, kind: str, rows: list[Any]) -> Names:
    """A format's default columns for a kind, with the names that the rows use."""
    names = of_kind(dict(format_.columns), kind)
    keys = {key for row in rows if isinstance(row, dict) for key in row}
    for column, others in _OTHER_NAMES.items():
        if names.get(column) == column and column not in keys:
            names[column] = next((other for other in others if other in keys), column)
    needed = (*format_.schema.get("required", ()), *format_.schema.get("x-required", {}).get(kind, ()))
    if "chosen" not in needed and names.get("chosen") not in keys and names.get("rejected") == "rejected_response":
        names["chosen"] = None  # the last reply of the conversation is the chosen one
    return names


def of_kind(names: Names, kind: str) -> Names:
    """The columns with None for those of other kinds, so that a lift reads no pair where none is compiled."""
    mine = {Kind.PREFERENCE: ("chosen", "rejected"), Kind.KTO: ("kto_tag",)}.get(Kind(kind), ())
    return {name: None if name in KIND_COLUMNS and name not in mine else actual for name, actual in names.items()}
