"""Units and rows of .parquet, .arrow, .feather (tables.py) and .xlsx (sheets.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import orjson

from compiler.read import sheets, tables
from compiler.read.model import FileKind, Row, SourceFile, Stamp, Unit, changed, digest_of_part, stamp_of
from compiler.read.source import open_stream


def cut(source: SourceFile) -> Iterator[Unit]:
    """A unit for each row group (Parquet) or record batch (Arrow), or one for the first sheet (.xlsx)."""
    stamp = stamp_of(source.path)  # before the bytes are read, so that later changes show
    with open_stream(source) as stream:
        data = stream.read() if source.compression or source.kind is FileKind.XLSX else None
        if data is None:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # a BufferedReader
        elif data:
            sha256 = hashlib.sha256(data).hexdigest()
        else:
            return

    def unit(
        number: int, packed: bytes | None, header: tuple[str, ...] = (), stamp: Stamp | None = None, count: int = 0
    ) -> Unit:
        digest = digest_of_part(source.kind, sha256, number)
        return Unit(str(source.path), source.kind, number, 1, digest, packed, header, stamp, count=count)

    if data is not None and source.kind is FileKind.XLSX:
        if header := sheets.header(str(source.path), data):
            yield unit(0, data if source.compression else None, header)
        return
    for number, rows, packed in tables.groups(source, data):
        if packed and data is None and stamp_of(source.path) != stamp:  # it was read again, after it was hashed
            raise changed(source.path)
        if rows:
            yield unit(number, packed, stamp=None if packed else stamp, count=rows)


def read(unit: Unit) -> Iterator[Row]:
    """The rows of a unit of a table; they have no offsets."""
    values = sheets.rows(unit) if unit.kind is FileKind.XLSX else tables.rows(unit)
    for index, (value, reject) in enumerate(values):
        raw = orjson.dumps(value, default=str)
        yield Row(index, None, None, None if reject else value, raw, reject)
