"""Step 1, choose: files -> units -> rows, each row with the bytes it came from.

    source = open_source(path)      what the file is; InputError if it cannot be read as that
    for unit in cut(source):        pieces that are compiled at once, found without holding the file
        for row in read(unit):      values and rejects; a bad row never ends the run

The rules that hold for every kind:

* The text of a row is never changed: no trimming, no normalising, no guessing of types.
* A row of a file of lines knows the line on which it begins (`Unit.line + Row.line`); rows of arrays and tables do not.
* `Row.offset` and `Row.length` are bytes in the decompressed file, counted from its real start (a byte
  order mark counts 3). The slice is exactly the JSON value, the CSV record or the line, without its ending.
* The rows are the same for any `target_bytes`, and the same for a file and its .gz or .zst.
* Bad input is a `Reject` of one row, or an `InputError` if it is unclear where the next row begins.
  `open_source`, `cut` and `read` may all raise InputError.

    module         what it knows
    model.py       FileKind, SourceFile, Unit, Row
    source.py      names, and contents that contradict the name
    decompress.py  .gz and .zst
    text.py        .jsonl .json .csv .tsv .txt
    lines.py       the units of .jsonl and .txt
    records.py     the records of .csv and .tsv
    elements.py    where the elements of a JSON array are
    value.py       one JSON value, and everything that can be wrong with it
    together.py    the values of many rows at once
    literal.py     a list or object as Python prints it
    columns.py     the units and rows of tables
    tables.py      .parquet .arrow .feather
    cells.py       their cells as JSON values
    sheets.py      .xlsx
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from types import ModuleType

from compiler.read import text
from compiler.read.lines import Ask
from compiler.read.model import (
    COLUMNAR,
    MAX_DEPTH,
    FileKind,
    Row,
    SourceFile,
    Unit,
    changed,
    no_rows,
    size_of,
    stamp_of,
)
from compiler.read.source import as_session, open_source
from compiler.read.text import lines_of_items, named
from schemas.places import spell
from schemas.stores import StorePath

__all__ = [
    "COLUMNAR",
    "MAX_DEPTH",
    "Ask",
    "FileKind",
    "Row",
    "SourceFile",
    "Unit",
    "as_session",
    "cut",
    "first_rows",
    "lines_of_items",
    "named",
    "numbered",
    "open_source",
    "place_of",
    "read",
    "size_of",
    "stamp_of",
]


def cut(
    source: SourceFile,
    target_bytes: int = 1 << 20,
    digests: Callable[[], bool] = lambda: True,
    ask: Callable[[], Ask | None] = lambda: None,
) -> Iterator[Unit]:
    """Yield the units of a file, in order; each has about `target_bytes` (text) or one row group (columns).

    A row is never split: a row longer than the target makes a longer unit. Memory is bounded by a few
    `target_bytes` (or by the longest row) for text, compressed or not. InputError if there is no row.

    `digests()` says of each unit of text whether it gets its digest, which takes most of the time of cutting lines;
    `named` gives it one later. `ask()` is what calls functions in other processes, where there are some by now: large
    files of lines are cut there.
    """
    if target_bytes < 1:
        raise ValueError(f"target_bytes must be at least 1, got {target_bytes}")
    found = False
    in_store = isinstance(source.path, StorePath)
    stamp = stamp_of(source.path) if in_store else None
    is_table = source.kind in COLUMNAR
    for unit in _columns().cut(source) if is_table else text.cut(source, target_bytes, digests, ask):
        found = True
        yield unit
    if not found:
        raise no_rows(source.path)
    if in_store and stamp_of(source.path) != stamp:  # units of text are not read again later, where it would be noticed
        raise changed(source.path)


def read(unit: Unit) -> Iterator[Row]:
    """Yield the rows of a unit, in order; InputError if the file is no longer the one that was cut.

    A table is compared before its first byte is read and after its last: what came of it is only stored after that.
    """
    yield from islice(_columns().read(unit) if unit.kind in COLUMNAR else text.read(unit), unit.rows)
    if unit.stamp is not None and stamp_of(unit.path) != unit.stamp:
        raise changed(unit.path)


def first_rows(units: Iterable[Unit], rows: int) -> Iterator[tuple[Unit, int]]:
    """Yield the units that hold the first `rows` rows, each with the number of them that is left after it.

    The last unit is cut to what is needed. Only these units are read, and no bytes behind them.
    """
    for unit in units:
        found = sum(1 for _ in islice(read(unit), rows + 1))
        if found > rows:
            unit, found = replace(unit, rows=rows), rows
        rows -= found
        yield unit, rows
        if not rows:
            return


def numbered(source: SourceFile) -> Iterator[tuple[int, int | None, Row]]:
    """Yield every row of a file with its number, and the line on which it begins; None where it has none."""
    number = count()
    for unit in cut(source):
        for row in read(unit):
            yield next(number), None if unit.line is None or row.line is None else unit.line + row.line, row


def place_of(source: SourceFile, file: str, number: int, pointer: str) -> str:
    """The place in a row of a file that is called `file`; `number` counts the rows that can be read."""
    for row, line, found in numbered(source):
        if found.reject is None:
            number -= 1
        if number < 0:
            return spell(file, row, line, pointer)
    raise ValueError(f"{file} has fewer rows")


def _columns() -> ModuleType:
    """The module for columnar files; importing it loads pyarrow, which text files do not need."""
    from compiler.read import columns

    return columns
