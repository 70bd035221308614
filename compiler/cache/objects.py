"""Objects: compiled units in the cache, each named by a digest of everything that decides its bytes.

An object is two files. `KEY.arrow` holds the rows; `KEY.json`, its record, holds rejects, counts and the digest of the
rows, and is written last. An object that is missing, damaged or someone else's is compiled again, and never used.

Images that rows hold themselves are files of their own, named by their digest, which objects share; records list them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from compiler.cache.halves import stamp_of, write
from compiler.cache.layout import Counts, one_chunk, opened, side_by_side
from compiler.cache.records import load_record, paths_of, store_record
from compiler.cache.small import SmallColumns
from schemas.arrow import OBJECT_NEAR, sha256_of


@dataclass(frozen=True)
class Object:
    """A unit's compiled rows, and what was counted while they were compiled.

    Nearly all bytes of an object are its word lists (tokens, labels, weights, spans). They stay in the file, row after
    row; `counts` says how many words each row has (layout.py). A word is an int32, or a float32 in lists of weights.
    """

    path: Path
    stamp: tuple[int, ...]
    """Identifies the file, since another may be put in its place."""
    digest: str
    """xxh3 of the file's bytes."""
    info: dict[str, Any]
    columns: SmallColumns
    """The other columns, in memory; without `group` where that is always the fingerprint."""
    first_word: int
    """The word of the file with which the words of the first row begin."""
    counts: Counts
    """For each word list with words, how many each row has; rows hold the lists in this order."""
    lines: npt.NDArray[np.int32]
    """The runs of rows that begin on consecutive lines, int32[R, 2]: the first row and its line, within the unit."""

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return self.columns.count

    @property
    def small(self) -> pa.Table:
        """The other columns as a table, which is made anew each time."""
        found = {}
        for field in OBJECT_NEAR:
            name = "fingerprint" if field.name == "group" and "group" not in self.columns else field.name
            if name in self.columns:
                found[field.name] = self.columns.column(name).cast(field.type)
        return pa.table(found)

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self.stamp[0]

    def without_columns(self) -> Object:
        """The object with nothing of its rows in memory but their number."""
        return dataclasses.replace(self, columns=SmallColumns(self.num_rows, {}, {}), counts={})


def load(cache_dir: Path, key: str) -> Object | None:
    """Load an object; None if there is none or its bytes are not those of its record."""
    info = load_record(cache_dir, key)
    if info is None:
        return None
    path = paths_of(cache_dir, key)[0]
    try:
        with path.open("rb") as file:
            data, stamp = file.read(), stamp_of(file.fileno())
    except OSError:
        return None
    if info["rows_xxh3"] != xxhash.xxh3_128_hexdigest(data):
        return None
    if any(_size(cache_dir / uri) != size for uri, size in info["embedded"].items()):
        return None
    return _opened(path, stamp, info, pa.py_buffer(data))


def _opened(path: Path, stamp: tuple[int, ...], info: dict[str, Any], data: pa.Buffer) -> Object:
    """The object of a record and the bytes of its rows, whose digest is right; the bytes are not kept."""
    info = dict(info)
    digest = info.pop("rows_xxh3")
    table, first_word, counts = opened(pa.ipc.open_file(data).read_all(), data)
    names = [name for name in table.schema.names if name != "group" or not table[name].equals(table["fingerprint"])]
    columns = SmallColumns.of(table.num_rows, ((name, one_chunk(table[name])) for name in names))
    lines = np.array(info.pop("lines"), np.int32).reshape(-1, 2)  # a row each in the worst case: no lists of objects
    return Object(path, stamp, digest, info, columns, first_word, counts, lines)


def store(cache_dir: Path, key: str, table: pa.Table, info: dict[str, Any]) -> Object:
    """Write an object: the rows first, then the record that holds their digest, each by rename. Return it."""
    sink = pa.BufferOutputStream()
    whole = side_by_side(table)
    with pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole)
    rows, path = sink.getvalue(), paths_of(cache_dir, key)[0]
    stamp = write(cache_dir, path, rows)
    info = info | {"rows_xxh3": xxhash.xxh3_128_hexdigest(rows)}
    store_record(cache_dir, key, info)
    return _opened(path, stamp, info, rows)


def keep_file(cache_dir: Path, uri: str, data: bytes) -> None:
    """Keep a file that is named by its digest: whoever writes it writes the same. Sets link to it, so it is final."""
    path = cache_dir / uri
    if _size(path) != len(data):
        write(cache_dir, path, data, mode=0o444)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def remove(cache_dir: Path, key: str) -> None:
    """Remove an object, its record first."""
    rows, record = paths_of(cache_dir, key)
    record.unlink(missing_ok=True)
    rows.unlink(missing_ok=True)


def is_whole(rows: Path, digest: str) -> bool:
    """Whether a file of rows has the digest of its record."""
    try:
        with pa.memory_map(str(rows), "r") as file:
            return xxhash.xxh3_128_hexdigest(file.read_buffer()) == digest
    except OSError:
        return False


def is_named_by_digest(path: Path) -> bool:
    """Whether a file has the bytes that its name says."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256_of(path.name)
    except OSError:
        return False
