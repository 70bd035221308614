"""Rows of many objects as Arrow tables, in any order. What is heavy is copied once, from the objects' files.

A set may be larger than memory. Then rows are first sorted into files of their own by the shard they go to
(`scattered`), or every shard would read all of the set.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from compiler.cache.objects import Object, stamp_of
from compiler.encode.shapes import Owner
from compiler.sets.mix import Examples
from compiler.units.compiled import CompiledDataset
from schemas.arrow import WORD_LISTS
from schemas.errors import IntegrityError
from schemas.order import Ints

_SPANS = ("spans", "rejected_spans")


@dataclass(frozen=True)
class Part:
    """One unit's rows and where they come from: dataset, file label, number of the first row, byte of the unit."""

    object: Object
    dataset: str
    file: str
    first_row: int
    offset: int


Lists = dict[str, tuple[Ints, npt.NDArray[np.int32]]]
"""By column: (where each row begins, int64[N + 1], its words int32[T])."""


Places = dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]
"""By column: where the words of each row begin and end, int32[N] or int64[N], in what holds the row."""


class _Holder(Protocol):
    """What rows are copied out of."""

    @property
    def path(self) -> Path:
        """What a message names."""

    def open(self, names: Sequence[str]) -> AbstractContextManager[dict[str, int]]:
        """Return the descriptor of the file that holds the words of each column."""


class _OfObject:
    """An object's words."""

    def __init__(self, object_: Object) -> None:
        self.object = object_
        self._stamp = object_.stamp

    def places(self, name: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return where the words of each row begin and end."""
        first, edges = self.object.lists[name]
        edges = edges + np.int32(first)
        return edges[:-1], edges[1:]

    @property
    def path(self) -> Path:
        return self.object.path

    @contextmanager
    def open(self, names: Sequence[str]) -> Iterator[dict[str, int]]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise _gone(self.path) from error
        try:
            self._check(descriptor)
            yield dict.fromkeys(names, descriptor)
        finally:
            os.close(descriptor)

    def _check(self, descriptor: int) -> None:
        """Raise unless the file has the bytes that were loaded: another run may have compiled the unit again."""
        stamp = stamp_of(descriptor)
        if stamp != self._stamp:
            if xxhash.xxh3_128_hexdigest(os.pread(descriptor, stamp[0], 0)) != self.object.digest:
                raise _gone(self.path)
            self._stamp = stamp


def _gone(path: Path) -> IntegrityError:
    what = "an object that was just there is gone or damaged"
    return IntegrityError(str(path), what, "Run again; then check the disk.")


class Bucket:
    """Some rows' words in files of their own, one for each column, in the order of the rows' numbers."""

    def __init__(self, folder: Path, names: Sequence[str], rows: Ints) -> None:
        """Make the files; `rows` are the numbers of the rows that will be added, in order, each once."""
        folder.mkdir(parents=True)
        self.path, self._rows = folder, rows
        self._paths = {name: folder / name for name in names}
        self._lengths: dict[str, list[Ints]] = {name: [] for name in names}
        self._places: Places = {}

    def add(self, found: Lists) -> None:
        """Add the next rows."""
        for name, (offsets, values) in found.items():
            self._lengths[name].append(np.diff(offsets))
            with self._paths[name].open("ab") as file:
                file.write(values.data)

    def close(self) -> None:
        """Note where each row begins."""
        for name, lengths in self._lengths.items():
            edges = np.cumsum(np.concatenate([[0], *lengths]))
            self._places[name] = edges[:-1], edges[1:]

    @contextmanager
    def open(self, names: Sequence[str]) -> Iterator[dict[str, int]]:
        """Return the descriptor of the file that holds the words of each column."""
        with ExitStack() as files:
            yield {name: files.enter_context(self._paths[name].open("rb")).fileno() for name in names}

    def words(self, rows: Ints, names: Sequence[str]) -> Lists:
        """Return what `Rows.words` does."""
        mine = np.searchsorted(self._rows, rows)
        return _gathered(self._places, mine, np.arange(len(rows)), [(self, len(rows))], names)


class Rows:
    """All rows of the parts, one after the other; a row is named by its number among them."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        sizes = [part.object.num_rows for part in parts]
        self.starts: Ints = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        """The number of the first row of each part, and how many rows there are, int64[P + 1]."""
        self._stores = [_OfObject(part.object) for part in parts]
        self._places = {name: self._place(name) for name in WORD_LISTS}
        numbers: dict[Owner, int] = {}
        known = [part.object.info["whos"] for part in parts]
        alike = [numbers.setdefault((who[0], who[1]), len(numbers)) for whos in known for who in whos]
        self.whos = list(numbers)
        self._numbers = np.array(alike, np.int32)
        """The numbers in `whos` of each part's own speakers, part after part."""
        self._first_number = np.cumsum([0, *map(len, known)])
        self.light = self._light(sizes)

    def _place(self, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        begin, end = zip(*(store.places(name) for store in self._stores), strict=True)
        return np.concatenate(begin), np.concatenate(end)

    def _light(self, sizes: list[int]) -> pa.RecordBatch:
        """Return the columns that are not word lists, with each row's provenance."""
        parts = self.parts
        names = ("images", "videos", "desirable", "num_trained", "repairs", "part", "offset", "index", "length")
        table = pa.concat_tables([part.object.light.select(names) for part in parts]).combine_chunks()

        def of_part(values: list[int]) -> Ints:
            return np.repeat(np.array(values, np.int64), sizes)

        def named(values: list[str]) -> pa.Array:
            known = {value: i for i, value in enumerate(dict.fromkeys(values))}
            codes = of_part([known[value] for value in values]).astype(np.int32)
            return pa.DictionaryArray.from_arrays(codes, list(known))

        offset = table.column("offset").combine_chunks()
        moved = offset.fill_null(0).to_numpy() + of_part([part.offset for part in parts])
        row = table.column("index").to_numpy() + of_part([part.first_row for part in parts])
        [light] = (
            table.drop_columns(["index", "offset"])
            .append_column("dataset", named([part.dataset for part in parts]))
            .append_column("file", named([part.file for part in parts]))
            .append_column("row", pa.array(row))
            .append_column("offset", pa.array(moved, mask=np.asarray(offset.is_null())))
            .to_batches()
        )
        return light

    @property
    def nbytes(self) -> int:
        """The bytes of the parts' files."""
        return sum({part.object.path: part.object.nbytes for part in self.parts}.values())

    def words(self, rows: Ints, names: Sequence[str]) -> Lists:
        """Return of each word list (offsets int64[N + 1], values int32[T]) for the rows, in their order."""
        part_of = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(part_of, kind="stable")
        used, counts = np.unique(part_of, return_counts=True)
        holders = [(self._stores[part], count) for part, count in zip(used.tolist(), counts.tolist(), strict=True)]
        found = _gathered(self._places, rows, order, holders, names)
        for name in _SPANS:
            if name in found:
                offsets, values = found[name]
                first = np.repeat(self._first_number[part_of], np.diff(offsets) // 2)
                values[::2] = self._numbers[first + values[::2]]
        return found

    def scattered(self, shares: Sequence[Ints], names: Sequence[str], folder: Path) -> list[Bucket]:
        """Return a bucket for each share of the rows (numbers, any order, repeats); every object is read just once."""
        shares = [np.unique(share) for share in shares]
        buckets = [Bucket(folder / str(i), names, share) for i, share in enumerate(shares)]
        for low, high in pairwise(self.starts.tolist()):
            for share, bucket in zip(shares, buckets, strict=True):
                a, b = np.searchsorted(share, [low, high])
                if b > a:
                    bucket.add(self.words(share[a:b], names))
        for bucket in buckets:
            bucket.close()
        return buckets


def examples_of(one: CompiledDataset) -> Examples:
    """What the mix needs to know of a dataset's rows."""
    tables = [unit.light for unit in one.loaded]
    empty, none = [np.empty(0, np.int64)], [np.empty(0, "S16")]
    return Examples(
        tokens=np.concatenate([t.column("length").to_numpy() for t in tables] or empty).astype(np.int64),
        trained=np.concatenate([t.column("num_trained").to_numpy() for t in tables] or empty).astype(np.int64),
        fingerprints=np.concatenate([_prints(t, "fingerprint") for t in tables] or none),
        groups=np.concatenate([_prints(t, "group") for t in tables] or none),
        cap=one.dataset.num_samples,
    )


def _prints(table: pa.Table, name: str) -> npt.NDArray[np.bytes_]:
    """A column of 16 bytes a row as S16[N]."""
    column = table.column(name).combine_chunks()
    buffer = column.buffers()[1] if len(column) else None
    if buffer is None:
        return np.empty(0, dtype="S16")
    return np.frombuffer(buffer, dtype="S16", count=len(column), offset=column.offset * 16)


def rows_of(compiled: Iterable[CompiledDataset]) -> Rows:
    """The rows of all datasets, one after the other."""
    return Rows(
        [
            Part(unit, one.dataset.name, record.file, first, record.offset)
            for one in compiled
            for unit, record, first in zip(one.loaded, one.records, one.first_rows(), strict=True)
        ]
    )


def _gathered(
    places: Places, rows: Ints, order: Ints, holders: Sequence[tuple[_Holder, int]], names: Sequence[str]
) -> Lists:
    """Return the word lists of the rows, which have those places.

    `order` int64[N] sorts them by what holds them: the first holder has the first so many of them, and so on.
    """
    found, ranges = {}, {}
    for name in names:
        begin, end = (column[rows] for column in places[name])
        offsets = np.concatenate([[0], np.cumsum(end - begin, dtype=np.int64)])
        found[name] = (offsets, np.empty(int(offsets[-1]), np.int32))
        ranges[name] = tuple((4 * column[order].astype(np.int64)).tolist() for column in (begin, end, offsets[:-1]))
    low = 0
    for holder, count in holders:
        high = low + count
        with holder.open(names) as words:
            for name, places_of in ranges.items():
                some = zip(*(column[low:high] for column in places_of), strict=True)
                if not _copied(words[name], some, found[name][1].view(np.uint8).data):
                    raise _gone(holder.path)
        low = high
    return found


def _copied(descriptor: int, places: Iterator[tuple[int, int, int]], into: memoryview) -> bool:
    """Copy bytes from [begin, end) to where they belong; return whether they were all there.

    Reading each row costs a call of the system. A mapped file costs as many page faults, and more where a block has few
    rows of each object, as in a large set.
    """
    for begin, end, at in places:
        if begin == end:
            continue
        if os.preadv(descriptor, [into[at : at + end - begin]], begin) != end - begin:
            return False
    return True
