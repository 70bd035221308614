"""The types of this package: a file, a unit of it, a row."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO

import orjson
import xxhash

from schemas.errors import InputError, Reason, Reject
from schemas.stores import AnyPath, StorePath, no_such, path_of

MAX_DEPTH = 256
"""How many objects and arrays may be open at once; `[[1]]` has depth 2."""


MAX_ROW = 1 << 27
"""The most bytes of a row of text. A longer one is no row, but a file without line ends or with an open quote."""
MAX_COLUMNS = 10_000
"""The most columns of a table: each is looked at in every row."""


class FileKind(StrEnum):
    """What the (decompressed) bytes of a file are."""

    JSONL = "jsonl"
    SESSION = "session"
    """JSON Lines that are one row together."""
    JSON = "json"
    OBJECTS = "objects"
    """JSON objects one after another, each over several lines: most often one, as documents print it."""
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    ARROW = "arrow"
    XLSX = "xlsx"
    TXT = "txt"


COLUMNAR = frozenset({FileKind.PARQUET, FileKind.ARROW, FileKind.XLSX})
"""Kinds whose rows are not byte ranges of the file."""
COUNTED = COLUMNAR | {FileKind.JSON}
"""Kinds whose rows are named by their number. Rows of the others are named by the line on which they begin."""


Stamp = tuple[int, int | str]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that can be opened, and how it is read; `notes` tell the user how it differs from its name."""

    path: AnyPath
    kind: FileKind
    compression: str  # "", "gz" or "zst"
    notes: tuple[str, ...] = ()
    start: int = 0  # where the text begins: 3 after a UTF-8 byte order mark


@dataclass(frozen=True, slots=True)
class Unit:
    """The piece of one file that is compiled at once; picklable.

    `offset` and `length` are a byte range of the decompressed file. For Parquet they are the number of the
    row group and 1, for Arrow the number of the record batch and 1, for a workbook 0 and 1.

    `digest` names everything that decides the values of the rows: the kind, the header and the bytes (text),
    or the sha256 of the whole decompressed file and the number of the group (columns). It does not depend on
    the path, the compression or the place in the file, so a unit that only moved keeps its digest. It is "" where it is
    left to `named`, which reads the unit.

    `data` is what is not read from `path` by range: the bytes of a compressed file, and of text in an object
    store, which would be fetched twice; one Arrow stream with the rows of the group for a compressed Parquet
    file or an Arrow stream (which has no index to seek by).
    """

    path: str
    kind: FileKind
    offset: int
    length: int
    digest: str
    data: bytes | None
    header: tuple[str, ...] = ()
    stamp: Stamp | None = None
    """The stamp of a table that is read again from its path: cheaper to compare than its bytes."""
    rows: int | None = None
    """Only the first so many rows of it; None = all."""
    line: int | None = None
    """The line of the file on which it begins, from 1; None for arrays and tables, whose rows are counted."""
    count: int = 0
    """The number of its rows in arrays and tables, and of its lines in other files; 0 = unknown."""
    checksum: str = ""
    """xxh3 of the bytes of a unit of text; "" of others."""


def stamp_of(path: str | AnyPath) -> Stamp:
    """(size, time of change in ns or ETag) of a file; it differs once the file was written."""
    path = path_of(path)
    if isinstance(path, StorePath):
        try:
            return path.stamp()
        except FileNotFoundError as error:
            raise no_such(path) from error
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def size_of(path: AnyPath) -> int:
    """The bytes of a file, for progress; 0 where it is in a store or cannot be asked."""
    try:
        return 0 if isinstance(path, StorePath) else path.stat().st_size
    except OSError:
        return 0


@dataclass(slots=True)
class Row:
    """One row, or the reason why there is none: exactly one of `value` and `reject` counts.

    `index` is 0-based within the unit. `raw` is the slice of the file; for columnar kinds, which have no
    such slice, it is the value as JSON (NaN shows as null, a cell that cannot be shown is left out).
    """

    index: int
    offset: int | None
    length: int | None
    value: Any
    raw: bytes
    reject: Reject | None = None
    not_json: dict[str, Reject] | None = None
    """Keys of the value under which the file has NaN or Infinity, read as null, and the reject if the key is needed."""
    line: int | None = None
    """The line on which it begins, from 0 within the unit; None for arrays and tables."""


def checksum_of(data: bytes | memoryview) -> str:
    """The checksum of a unit of text, which takes a fraction of the time of its digest."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_of(kind: FileKind, header: tuple[str, ...], data: bytes | memoryview) -> str:
    """The digest of a unit of text; the header is written as JSON so that its end is certain."""
    digest = hashlib.sha256(kind.encode() + b"\0" + orjson.dumps(header) + b"\0")
    digest.update(data)
    return digest.hexdigest()


def digest_of_part(kind: FileKind, sha256: str, number: int) -> str:
    """The digest of a unit of a table: that of the whole file, and which part of it the unit is."""
    return hashlib.sha256(f"{kind}\0{sha256}\0{number}".encode()).hexdigest()


def open_file(path: str | AnyPath) -> BinaryIO:
    """The file, opened for reading; every error of the operating system becomes an InputError."""
    try:
        return path_of(path).open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | AnyPath, error: OSError) -> InputError:
    """The InputError for what the operating system said about a file."""
    path = path_of(path)
    if isinstance(error, FileNotFoundError) and isinstance(path, StorePath):
        return no_such(path)
    if isinstance(error, PermissionError):
        return InputError(str(path), "permission denied", "Make the file readable for this user.")
    if isinstance(error, FileNotFoundError):
        return InputError(
            str(path), "no such file or folder", "Check the path; a relative path starts at the current folder."
        )
    what = os.strerror(error.errno) if error.errno else str(error)
    return InputError(str(path), f"cannot be read ({what})")


def no_rows(path: str | AnyPath) -> InputError:
    """The InputError for a file without a single row."""
    return InputError(str(path), "has no rows", "Leave it out, or check the program that wrote it.")


def changed(path: str | AnyPath) -> InputError:
    """The InputError for a file that is not the one that was cut into units."""
    return InputError(str(path), "changed since it was cut into units", "Run again when nothing writes to it.")


def too_long(path: str | AnyPath, at: int, most: int) -> InputError:
    """The InputError for a row that has no end within the limit."""
    what = f"a row that begins at byte {at} or later has more than {most >> 20} MiB"
    return InputError(str(path), what, "Write one row per line, or take that one out.")


def check_header(where: str, names: tuple[str, ...]) -> None:
    """Raise InputError unless the column names are non-empty and unique: each becomes a key of every row.

    The first may be empty, as pandas writes the index of its rows; see `without_index`.
    """
    hint = "The first row must name every column, each name once."
    if len(names) > MAX_COLUMNS:
        raise InputError(where, f"has {len(names):,} columns, and at most {MAX_COLUMNS:,} are read", "Leave some out.")
    places: dict[str, int] = {}
    for column, name in enumerate(names, start=1):
        if not name.strip() and (column > 1 or len(names) == 1):
            raise InputError(where, f"column {column} of the header has no name", hint)
        if (first := places.setdefault(name, column)) < column:
            what = f"columns {first} and {column} of the header are both named {name!r}"
            raise InputError(where, what, hint)


def without_index(value: dict[str, Any]) -> Reject | None:
    """Remove a first column without a name, the index that pandas writes; a reject if it holds anything else."""
    name = next(iter(value), "_")
    if name.strip():
        return None
    found = str(value.pop(name))
    if not found or found.removesuffix(".0").isdecimal():
        return None
    what = f"the first column has no name and holds {found[:40]!r}, not the number of a row; name it in the first row"
    return Reject(Reason.CSV, what)
