"""Which source format a file has, by its first rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
) -> tuple[str | None, int]:
    """(the format that most of the rows fit, how many do); None if no row fits any format.

    Rows whose keys are all read or known to mean little count before others that fit, and of formats that fit equally
    many, the first is chosen.
    """
    best = _Fit("", 0, 0)
    for found in fits_of(rows, kind, repairs, names, roles, ignored):
        if (found.read, found.fitting) > (best.read, best.fitting):
            best = found
        if best.read == len(rows):
            break  # no later format can fit more
    return best.name or None, best.fitting


class _Fit(NamedTuple):
    """A format, the number of rows that fit it, and of those the ones whose keys are read or known to mean little."""

    name: str
    fitting: int
    read: int


def fits_of(
    rows: list[Any],
    kind: str = "sft",
    repairs: Sequence[str] = (),
    names: tuple[tuple[str, str], ...] = (),
    roles: tuple[tuple[str, str], ...] = (),
    ignored: tuple[str, ...] = (),
) -> Iterator[_Fit]:
    """How many rows fit each format, in the order of the formats.

    `names` and `roles` are the user's columns and tags; only formats that have all of them are tried. For each format,
    rows are repaired with its columns and tags.
    """
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
            fitting = 0 if validator.check({"lines": rows}) else len(rows)
            yield _Fit(name, fitting, fitting)
            continue
        keys = held_columns(format_, columns)
        mended = (mend(unpack(row, keys), repairs, columns, tags)[0] for row in rows)
        fit = [row for row, reject in (check(row, keys, validator) for row in mended) if reject is None]
        of_rows = RowKeys(validator.schema, format_, columns, ignored) if fit else None
        yield _Fit(name, len(fit), sum(_may_be_read(row, of_rows) for row in fit) if of_rows else 0)


def _may_be_read(row: Any, keys: RowKeys) -> bool:
    """Whether a row has no key that would make it a reject."""
    try:
        return keys.covers(row) or keys.unread(row) is not None
    except RowError:
        return False
