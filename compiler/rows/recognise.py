"""Which source format a file has, by its first rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler.formats import FORMATS
from compiler.formats.kinds import columns_for
from compiler.rows.mend import mend
from compiler.rows.unpack import check, held_columns, unpack
from compiler.rows.validate import Validator


def recognise(rows: list[Any], kind: str = "sft", repairs: Sequence[str] = ()) -> tuple[str | None, dict[str, int]]:
    """(the format that most of the rows fit, the number of fitting rows by format); None if no row fits any format.

    Of formats that fit equally many, the first. For each format, rows are repaired with its columns and tags.
    """
    fits = {}
    for name, format_ in FORMATS.items():
        if kind not in format_.kinds:
            continue
        columns, tags = columns_for(format_, kind, rows), dict[str, str | None](format_.tags)
        validator = Validator(format_, columns, tags, name, kind)
        if format_.session:  # all its rows are one
            fits[name] = 0 if validator.check({"lines": rows}) else len(rows)
            continue
        keys = held_columns(format_, columns)
        mended = (mend(unpack(row, keys), repairs, columns, tags)[0] for row in rows)
        fits[name] = sum(check(row, keys, validator)[1] is None for row in mended)
    best = max(fits, key=lambda name: fits[name])
    return (best if fits[best] else None), fits
