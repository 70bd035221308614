"""Rows of .xlsx: the first sheet is one unit, and its first row names the columns.

Cells become what a person reads there: 3.0 is "3", dates are ISO 8601, an empty cell is ""; booleans stay booleans.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import python_calamine

from compiler.read.model import Unit, changed, check_header, digest_of_part, open_file, without_index
from schemas.errors import InputError, Reject


def header(path: str, data: bytes) -> tuple[str, ...]:
    """The names of the columns; () where there is no row below them."""
    found = _sheet(path, data)
    if not found:
        return ()
    names = tuple(str(name).upper() if isinstance(name, bool) else name for name in found[0])
    check_header(path, names)
    return names if len(found) > 1 else ()


def rows(unit: Unit) -> Iterator[tuple[dict[str, Any], Reject | None]]:
    """The value of each row below the header, and its reject."""
    data = unit.data
    if data is None:
        with open_file(unit.path) as file:
            data = file.read()
        if digest_of_part(unit.kind, hashlib.sha256(data).hexdigest(), 0) != unit.digest:
            raise changed(unit.path)
    for row in _sheet(unit.path, data)[1:]:
        value = dict(zip(unit.header, row, strict=True))
        yield value, without_index(value)


def _sheet(path: str, data: bytes) -> list[list[str | bool]]:
    """The rows of the first sheet that hold something; the first of them is the header.

    The columns after the last one that holds anything are left out: formatting alone makes such columns.
    """
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        cells = book.get_sheet_by_index(0).to_python()
    except python_calamine.CalamineError as error:
        hint = "Open it in a spreadsheet program and save it again, or save it as CSV (UTF-8)."
        raise InputError(path, f"cannot be read as a workbook: {error}", hint) from error
    texts = [[_cell_text(cell) for cell in row] for row in cells]
    rows = [row for row in texts if any(cell != "" for cell in row)]
    width = max((number for row in rows for number, cell in enumerate(row, 1) if cell != ""), default=0)
    return [row[:width] for row in rows]


def _cell_text(cell: Any) -> str | bool:
    """A cell as a person reads it; spreadsheets show 15 digits."""
    if isinstance(cell, bool | str):
        return cell
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() else f"{cell:.15g}"
    return cell.isoformat() if isinstance(cell, dt.date | dt.time) else str(cell)
