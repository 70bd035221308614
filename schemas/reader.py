"""Compiled sets, read: opened by their manifest, every batch checked against its digest before it is used.

    opened = CompiledSet.open("out")          a folder, or a URI of an object store
    split = opened.split("train")
    split.batch(3)                            a record batch, as the shard has it: of packs in a packed set
    split.find(70_000)                        (number of the batch, row in it)

The manifest says where in a shard each batch is. The file's own index is not read: no digest of a batch covers it.
Opening a set costs its manifest alone; a batch costs its bytes (mapped, or one request) and one hash over them.
"""

from __future__ import annotations

import hashlib
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import xxhash

from schemas.arrow import shard_schema
from schemas.checks import read_batch, read_columns
from schemas.disk import read_regular
from schemas.errors import InputError, IntegrityError, Problem
from schemas.manifest import REPLACED, Manifest, ShardEntry, files_of, read_manifest, whole
from schemas.order import Ints
from schemas.places import LINES, Places
from schemas.stores import AnyPath, StorePath, in_words, path_of


class ShardSource(Protocol):
    """Where the bytes of a set's shards come from."""

    def read(self, shard: ShardEntry, offset: int, length: int, *, again: bool = False) -> pa.Buffer:
        """Read bytes of the shard that the manifest has this entry for.

        OSError as files have it. `again`: what was read was damaged, so take nothing from a cache.
        """


class MappedShards:
    """Shards in a folder of this machine, each mapped into memory once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mapped: dict[str, pa.Buffer] = {}

    def read(self, shard: ShardEntry, offset: int, length: int, *, again: bool = False) -> pa.Buffer:  # noqa: ARG002
        """Slice the mapping: nothing is copied."""
        name = shard["file"]
        if name not in self._mapped:
            path = self.folder / name
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise _WrongSizeError("is not a regular file")  # which could be endless, or wait for ever
            _check_size(shard, found.st_size)
            if not found.st_size:
                return pa.py_buffer(b"")  # an empty file cannot be mapped
            self._mapped[name] = pa.memory_map(str(path), "r").read_buffer()
        _check_end(shard, offset + length)
        return self._mapped[name].slice(offset, length)


class StoredShards:
    """Shards in an object store: one request a batch."""

    def __init__(self, folder: StorePath) -> None:
        self.folder = folder

    def read(self, shard: ShardEntry, offset: int, length: int, *, again: bool = False) -> pa.Buffer:  # noqa: ARG002
        """Fetch the bytes."""
        path = self.folder / shard["file"]
        store, name = path.filesystem()
        with in_words(path), store.open_input_file(name) as file:
            _check_size(shard, file.size())
            _check_end(shard, offset + length)
            return pa.py_buffer(file.read_at(length, offset))


class _WrongSizeError(Exception):
    """A shard is not as long as the manifest says."""


def _check_size(shard: ShardEntry, size: int) -> None:
    if size != shard["bytes"]:
        raise _WrongSizeError(f"expected {shard['bytes']} bytes, found {size}")


def _check_end(shard: ShardEntry, end: int) -> None:
    if end > shard["bytes"]:
        raise _WrongSizeError(f"a batch should end at byte {end}, after the file's {shard['bytes']}")


@dataclass(frozen=True)
class CompiledSet:
    """A compiled set: where it is, its manifest, and what reads its shards."""

    folder: AnyPath
    manifest: Manifest
    source: ShardSource

    @classmethod
    def open(cls, where: str | AnyPath) -> Self:
        """Open the set in a folder or at a URI; IntegrityError or InputError with one message where there is none."""
        folder = path_of(where)
        found = whole(folder)
        if found != folder:
            try:
                opened = cls.of(found, read_manifest(found))
            except InputError:
                return cls.of(folder, read_manifest(folder))  # the new set came into its place meanwhile
            how = "Compile into it again, which puts the old set back or the new one in its place."
            print(
                f"{folder}: a new set is being put there, or that was cut short; read is the old set\n  {how}",
                file=sys.stderr,
            )
            return opened
        return cls.of(folder, read_manifest(folder))

    @classmethod
    def of(cls, folder: AnyPath, manifest: Manifest) -> Self:
        """The set in `folder` that this manifest is of."""
        files = files_of(folder, manifest)
        return cls(folder, manifest, StoredShards(files) if isinstance(files, StorePath) else MappedShards(files))

    @property
    def files(self) -> AnyPath:
        """The folder that the names in the manifest are in."""
        return files_of(self.folder, self.manifest)

    @property
    def kind(self) -> str:
        """sft, preference, kto or pretrain."""
        return str(self.manifest["kind"])

    @property
    def is_packed(self) -> bool:
        """Whether a row is a pack of several examples."""
        return "packing" in self.manifest

    @property
    def schema(self) -> pa.Schema:
        """The columns of its shards."""
        return shard_schema(self.kind, packed=self.is_packed)

    def shards(self, split: str) -> list[ShardEntry]:
        """The manifest's entries of a split's shards."""
        entry = self.manifest["splits"].get(split)
        return [] if entry is None else entry["shards"]

    def split(self, name: str) -> SplitReader:
        """The reader of a split, which may be empty."""
        return SplitReader(self, name)

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield a split's rows as dicts of Python values, in order."""
        for batch in self.split(split).batches():
            yield from batch.to_pylist()

    def table(self, split: str) -> pa.Table:
        """A split's rows as one table, every batch checked."""
        return pa.Table.from_batches(self.split(split).batches(), self.schema)

    @cached_property
    def places(self) -> Places:
        """The places of its rows in their sources."""
        if LINES not in self.manifest["files"]:
            return Places({}, known=False)
        return Places.load(self.read_file(LINES))

    def was_replaced(self) -> bool:
        """Whether another set is in its place now."""
        try:
            return read_manifest(self.folder)["digest"] != self.manifest["digest"]
        except Problem:
            return isinstance(self.folder, Path) and self.folder.name == REPLACED and not self.folder.exists()

    def damage(self, what: str) -> IntegrityError:
        """The error for something in the set that is not as it was written."""
        if self.was_replaced():
            return IntegrityError(str(self.folder), "another set took its place while it was read", "Run again.")
        hint = f"cli verify {self.folder} names every damage. Copy the set again from where it is whole, or compile it."
        return IntegrityError(str(self.folder), what, hint)

    def read_file(self, name: str) -> bytes:
        """Read a file beside the shards; IntegrityError unless it is what the manifest says."""
        try:
            data = read_regular(self.files / name)
        except OSError as error:
            raise self.damage(f"{name}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != self.manifest["files"].get(name):
            raise self.damage(f"{name}: is damaged or was edited")
        return data


class SplitReader:
    """The batches of a split by number, each checked when it is read."""

    def __init__(self, opened: CompiledSet, name: str) -> None:
        self.opened, self.name, self.schema = opened, name, opened.schema
        self.shards = opened.shards(name)
        self._places = [(shard, n) for shard in self.shards for n in range(len(shard["batches"]))]
        self.entries = [shard["batches"][n] for shard, n in self._places]
        """What the manifest says of each batch."""
        self.starts: Ints = np.cumsum([0, *(entry["rows"] for entry in self.entries)], dtype=np.int64)
        """The first row of each batch, and the number of rows: int64[batches + 1]."""

    def __len__(self) -> int:
        """The number of rows, by the manifest."""
        return int(self.starts[-1])

    def find(self, row: int) -> tuple[int, int]:
        """The number of the batch that has a row, and the row's place in it."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return number, int(row - self.starts[number])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all batches in order."""
        return map(self.batch, range(len(self.entries)))

    def batch(self, number: int) -> pa.RecordBatch:
        """Read one batch; IntegrityError with the shard and the rows if it is not as it was written."""
        data = self._checked(number)
        if data is None:
            raise self._damaged(number)
        return self._parsed(number, lambda: read_batch(data, self.schema))

    def columns(self, number: int, names: list[str]) -> pa.RecordBatch:
        """Read some columns of a batch and no bytes of the others; so they are not compared with the batch's digest.

        It is for searches: what is shown of a row is read with `batch`.
        """
        shard, entry = self._places[number][0], self.entries[number]
        with self._as_problems(number):
            data = self.opened.source.read(shard, entry["offset"], entry["length"])
        return self._parsed(number, lambda: read_columns(data, self.schema, names))

    def _parsed(self, number: int, parse: Callable[[], pa.RecordBatch]) -> pa.RecordBatch:
        inside, rows = self._places[number][1], self.entries[number]["rows"]
        try:
            batch = parse()
        except ValueError as error:
            raise self._damage(number, f"batch {inside} is not as its schema says: {error}") from error
        if batch.num_rows != rows:
            raise self._damage(number, f"batch {inside} has {batch.num_rows} rows, expected {rows}")
        return batch

    def _damaged(self, number: int) -> IntegrityError:
        first, rows = self.place(number)[1], self.entries[number]["rows"]
        return self._damage(number, f"batch {self._places[number][1]} (rows {first} to {first + rows - 1}) is damaged")

    def check(self, number: int) -> None:
        """Raise IntegrityError unless the bytes of a batch have the manifest's digest."""
        if self._checked(number) is None:
            raise self._damaged(number)

    def place(self, number: int) -> tuple[ShardEntry, int]:
        """The shard that has a batch, and the number of the batch's first row in it."""
        shard, inside = self._places[number]
        return shard, sum(batch["rows"] for batch in shard["batches"][:inside])

    def _checked(self, number: int) -> pa.Buffer | None:
        """Read the bytes of a batch; None if they do not have the manifest's digest, twice."""
        shard, entry = self._places[number][0], self.entries[number]
        with self._as_problems(number):
            for again in (False, True):
                data = self.opened.source.read(shard, entry["offset"], entry["length"], again=again)
                if xxhash.xxh3_128_hexdigest(data) == entry["xxh3"]:
                    return data
        return None

    @contextmanager
    def _as_problems(self, number: int) -> Iterator[None]:
        """Raise what happens while a batch's bytes are read as what the user can do something about."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._damage(number, str(error.strerror)) from error
        except _WrongSizeError as error:
            raise self._damage(number, str(error)) from error
        except OSError as error:
            path = self.opened.files / self._places[number][0]["file"]
            raise InputError(str(path), f"cannot be read: {error.strerror or error}") from error

    def _damage(self, number: int, what: str) -> IntegrityError:
        return self.opened.damage(f"{self._places[number][0]['file']}: {what}")
