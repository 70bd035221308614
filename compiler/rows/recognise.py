"""Which source format a file has, by its first rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler.formats import FORMATS
from compiler.formats.kinds import columns_for, of_kind, own_names
from compiler.options import Names
from compiler.rows.keys import RowKeys
from compiler.rows.mend import mend
from compiler.rows.unpack import check, held_columns, unpack
from compiler.rows.validate import Validator
from schemas.errors import RowError

_OASST_MESSAGE = frozenset({"message_id", "parent_id", "message_tree_id", "text", "role"})


def refused(rows: list[Any]) -> tuple[str, str] | None:
    """What a layout is that is known and not read, and what to do; None for any other."""
    if rows and all(isinstance(row, dict) and row.keys() >= _OASST_MESSAGE for row in rows):
        what = "its rows are single messages of OpenAssistant's trees, and a message is no conversation"
        return what, "Use the files with a tree in each row, *.trees.jsonl.gz; they hold the same messages."
    return None


def recognise(
    rows: list[Any],
    kind: str = "sft",
    repairs: Sequence[str] = (),
    names: tuple[tuple[str, str], ...] = (),
    roles: tuple[tuple[str, str], ...] = (),
    ignored: tuple[str, ...] = (),
) -> tuple[str | None, dict[str, int]]:
    """(the format that most of the rows fit, the number of fitting rows by format); None if no row fits any format.

    `names` and `roles` are the user's columns and tags; only formats that have all of them are tried. Rows whose keys
    are all read or known to mean little count before others that fit, and of formats that fit equally many, the first
    is chosen. For each format, rows are repaired with its columns and tags.
    """
    fits: dict[str, int] = {}
    read: dict[str, int] = {}
    for name, format_ in FORMATS.items():
        if kind not in format_.kinds:
            continue
        given, given_tags = own_names(names, format_.columns), own_names(roles, format_.tags)
        if given is None or given_tags is None:
            continue
        columns = of_kind({**columns_for(format_, kind, rows, ignored), **given}, kind)
        tags: Names = {**format_.tags, **given_tags}
        validator = Validator(format_, columns, tags, name, kind)
        if format_.session:  # all its rows are one
            fits[name] = 0 if validator.check({"lines": rows}) else len(rows)
            continue
        keys = held_columns(format_, columns)
        mended = (mend(unpack(row, keys), repairs, columns, tags)[0] for row in rows)
        fitting = [row for row, reject in (check(row, keys, validator) for row in mended) if reject is None]
        fits[name] = len(fitting)
        of_rows = RowKeys(validator.schema, format_, columns, ignored)
        read[name] = sum(_may_be_read(row, of_rows) for row in fitting)
    best = max(fits, key=lambda name: (read.get(name, fits[name]), fits[name]), default="")
    return (best if fits.get(best) else None), fits


def _may_be_read(row: Any, keys: RowKeys) -> bool:
    """Whether a row has no key that would make it a reject."""
    try:
        return keys.covers(row) or keys.unread(row) is not None
    except RowError:
        return False
