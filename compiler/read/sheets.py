"""Rows of .xlsx: the first sheet is one unit, and its first row names the columns.

Cells become what a person reads there: 3.0 is "3", dates are ISO 8601, an empty cell is ""; booleans stay booleans.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import python_calamine

from compiler.read.decompress import Expansion
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
    _check_spread(path, data)
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


_CELL = re.compile(rb"""<(?:\w+:)?c\b|\sr\s*=\s*["']\$?([A-Za-z]{0,3})\$?(\d{1,9})["']""")
_AREA, _PER_CELL = 1 << 24, 16
"""Cells of the rectangle around a sheet: so many in any case, and so many for each cell that it has."""
_OPENED, _BLOCK = 1 << 26, 1 << 20
"""Bytes that a part of a workbook may have in any case, and that are looked at together."""


def _check_spread(path: str, data: bytes) -> None:
    """Raise InputError for a workbook that is small and asks for any amount of memory.

    The library makes the whole rectangle around a sheet's cells. One cell far away is enough to fill all memory.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            for part in parts.infolist():
                if part.file_size > max(_OPENED, part.compress_size * Expansion.most):
                    hint = "If that is what it should hold, allow it: --max-expansion N."
                    raise InputError(path, f"{part.filename} in it is {part.file_size:,} bytes when unpacked", hint)
                if part.filename.endswith(".xml") and "sharedStrings" not in part.filename:
                    with parts.open(part) as file:
                        _check_sheet(path, file)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError):
        return  # the library says what is wrong with it


def _check_sheet(path: str, file: IO[bytes]) -> None:
    cells = rows = columns = 0
    rest = b""
    while block := file.read(_BLOCK):
        text = rest + block
        end = text.rfind(b"<") if len(block) == _BLOCK else len(text)
        rest = text[end:][:_BLOCK]
        for match in _CELL.finditer(text, 0, max(end, 0)):
            if match[2] is None:
                cells += 1
                continue
            rows = max(rows, int(match[2]))
            column = 0
            for letter in match[1].upper():
                column = column * 26 + letter - 64
            columns = max(columns, column)
    if rows * columns > max(_AREA, cells * _PER_CELL):
        what = f"its cells reach to row {rows:,} and column {columns:,}, and only {cells:,} of these cells are there"
        raise InputError(path, what, "Remove what stands far from the table, or save it as CSV (UTF-8).")


def _cell_text(cell: Any) -> str | bool:
    """A cell as a person reads it; spreadsheets show 15 digits."""
    if isinstance(cell, bool | str):
        return cell
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() else f"{cell:.15g}"
    return cell.isoformat() if isinstance(cell, dt.date | dt.time) else str(cell)
