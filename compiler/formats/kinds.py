"""The kind of rows (sft, preference, kto, pretrain), and the columns of a format that a kind uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from compiler.conversation import Kind
from compiler.formats.format import Format
from compiler.options import Names
from schemas.errors import Reason, RowError

KIND_COLUMNS = {"chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag"}
"""The columns that make a row a pair or a KTO row, with their default names."""
_OTHER_NAMES = {
    "rejected": ("rejected_response",),
    "kto_tag": ("label",),
    "images": ("image",),
    "videos": ("video",),
    "messages": ("trajectory",),
    "tools": ("available_tools",),
    "system": ("system_prompt",),
}
"""The names of columns -> other names for them, in ms-swift, in LLaVA, in OpenOrca and in agents' trajectories."""

_ONE = ("images", "videos", "system")
"""Columns that a row cannot have twice, under two of these names."""
_REJECTED = ("rejected", "rejected_response", "rejected_messages", "response_rejected", "non_preferred_output")
KIND_KEYS = frozenset(("kto_tag", "label", *_REJECTED))
"""The keys by which a row says that it is a pair or a KTO row."""
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_NOTHING = (None, "")


def label_of(value: Any) -> bool | None:
    """The label that a value is: true or false, also as 1, 0 or text; None for anything else."""
    return _LABELS.get(str(value).lower()) if isinstance(value, bool | int | float | str) else None


def kind_of_rows(rows: list[Any]) -> str:
    """The kind of a dataset by its first rows: one label makes it KTO, one pair makes it preference.

    Rows of another kind are rejected then, so that a reply to be unlearned is never trained as a plain one.
    """
    found = kinds_of_rows(rows)
    return next((kind for kind in (Kind.KTO, Kind.PREFERENCE, Kind.SFT) if kind in found), min(found, default=Kind.SFT))


def kinds_of_rows(rows: list[Any]) -> Counter[str]:
    """How many of the first rows are of each kind."""
    keys = kind_keys(rows)
    return Counter(kind_of_row(row, keys) for row in rows if isinstance(row, dict))


def kind_keys(rows: list[Any]) -> frozenset[str]:
    """The keys that say a row's kind. A `label` that has other values than true and false in a row judges nothing."""
    labels = (row.get("label") for row in rows if isinstance(row, dict))
    judged = all(label_of(label) is not None for label in labels if label not in _NOTHING)
    return KIND_KEYS if judged else KIND_KEYS - {"label"}


def kind_of_row(row: dict[str, Any], keys: Collection[str] = KIND_KEYS) -> Kind:
    """The kind that a row asks for by those of its keys that say so.

    `kto_tag` is a KTO label wherever it stands, and whatever its value. `label` is one beside messages, a query or a
    prompt, as in ms-swift and TRL; beside an instruction it may be anything.
    """
    if row.get("kto_tag") not in _NOTHING:
        return Kind.KTO
    if "label" in keys and "instruction" not in row and label_of(row.get("label")) is not None:
        return Kind.KTO
    if any(row.get(key) is not None for key in _REJECTED):
        return (
            Kind.PREFERENCE
        )  # rejected_messages (ms-swift) are not read, but a row that has them is never trained as a plain one
    return Kind.PRETRAIN if set(row) == {"text"} else Kind.SFT


def columns_for(format_: Format, kind: str, rows: list[Any], ignored: Collection[str] = ()) -> Names:
    """A format's default columns for a kind, with the names that the rows use.

    Of the keys that --ignore lists, none is another name of a column, and a column that rows need not have is not read.
    """
    names = of_kind(dict(format_.columns), kind)
    given = {key for row in rows if isinstance(row, dict) for key, value in row.items() if value is not None}
    given.difference_update(ignored)
    for column, others in _OTHER_NAMES.items():
        if names.get(column) == column and column not in given:
            names[column] = next((other for other in others if other in given), column)
    needed = (*format_.schema.get("required", ()), *format_.schema.get("x-required", {}).get(kind, ()))
    if "chosen" not in needed and names.get("chosen") not in given and names.get("rejected") == "rejected_response":
        names["chosen"] = None  # the last reply of the conversation is the chosen one
    return {name: None if key in ignored and key not in needed else key for name, key in names.items()}


def own_names(given: Iterable[tuple[str, str]], defaults: dict[str, str]) -> dict[str, str] | None:
    """The given names as a format's own: each is one of them, or its key by default. None if the format lacks one."""
    by_key = {key: name for name, key in defaults.items()}
    found = {name if name in defaults else by_key.get(name, ""): key for name, key in given}
    return None if "" in found else found


def other_names(format_: Format, columns: Names, ignored: Collection[str] = ()) -> dict[str, str]:
    """Key -> column, for the keys by which some rows may call a column that the first ones call otherwise."""
    found: dict[str, str] = {}
    for column, others in _OTHER_NAMES.items():
        if columns.get(column) is not None and format_.columns[column] == column:
            found |= {key: column for key in (column, *others) if key not in (columns[column], *ignored)}
    return found


def columns_of_row(format_: Format, kind: str, row: dict[str, Any], columns: Names, others: dict[str, str]) -> Names:
    """The columns of a row that has a key of `others`: those of the dataset, under the names that this row uses."""
    for key, column in others.items():
        if column in _ONE and row.get(key) is not None and row.get(columns[column] or "") is not None:
            what = f"expected the {column} of a row in one key, found {columns[column]!r} and {key!r}"
            raise RowError(Reason.SCHEMA, f"{what}; leave one of them out", f"/{key}")
    names = columns_for(format_, kind, [row])
    lacks = {column for column in others.values() if row.get(columns[column] or "") is None}
    of_the_row = {
        column: names[column] for key, column in others.items() if column in lacks and row.get(key) is not None
    }
    return columns | of_the_row | ({"chosen": names["chosen"]} if "rejected" in of_the_row else {})


def of_kind(names: Names, kind: str) -> Names:
    """The columns with None for those of other kinds, so that a lift reads no pair where none is compiled."""
    mine = {Kind.PREFERENCE: ("chosen", "rejected"), Kind.KTO: ("kto_tag",)}.get(Kind(kind), ())
    return {name: None if name in KIND_COLUMNS and name not in mine else actual for name, actual in names.items()}
