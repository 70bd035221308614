"""Rows of many objects as Arrow tables, in any order. What is heavy is copied once, from the objects' files.

An object's file is mapped only while rows are copied out of it: a set may be larger than memory. Where it is, rows are
first sorted into files of their own by the shard they go to (`scattered`), or every shard would read all of the set.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compiler.objects import Object, Words
from compiler.runs import Who
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


ROOM = 16
"""Words behind those of a list, for who needs them (`link._with_what_follows`)."""


Places = dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]
"""By column: where the words of each row begin and end, int32[N] or int64[N], in what holds the row."""


class _Holder(Protocol):
    """What rows are copied out of."""

    def open(self, names: Sequence[str]) -> dict[str, Words]: ...


class _OfObject:
    """An object's words, with its speakers numbered as `numbers` has them; None = as they are."""

    def __init__(self, object_: Object, numbers: npt.NDArray[np.int32] | None) -> None:
        self.object, self.numbers = object_, numbers

    def places(self, name: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return where the words of each row begin and end."""
        first, edges = self.object.lists[name]
        edges = edges + np.int32(0 if self._is_renumbered(name) else first)
        return edges[:-1], edges[1:]

    def _is_renumbered(self, name: str) -> bool:
        return self.numbers is not None and name in _SPANS

    def open(self, names: Sequence[str]) -> dict[str, Words]:
        try:
            words = self.object.words()
        except (OSError, ValueError) as error:
            raise IntegrityError(
                str(self.object.path), "an object that was just there is gone or damaged",
                "Run again; then check the disk.",
            ) from error  # fmt: skip
        opened = dict.fromkeys(names, words)
        for name in names:
            if self._is_renumbered(name):
                assert self.numbers is not None
                first, edges = self.object.lists[name]
                spans = np.array(words[first : first + int(edges[-1])], np.int32)
                spans[::2] = self.numbers[spans[::2]]
                opened[name] = spans.data
        return opened


class Bucket:
    """Some rows' words in files of their own, one for each column, in the order of the rows' numbers."""

    def __init__(self, folder: Path, names: Sequence[str], rows: Ints) -> None:
        """Make the files; `rows` are the numbers of the rows that will be added, in order, each once."""
        folder.mkdir(parents=True)
        self._rows = rows
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

    def open(self, names: Sequence[str]) -> dict[str, Words]:
        """Return the words of the columns, mapped for as long as they are held."""
        opened = {}
        for name in names:
            with self._paths[name].open("rb") as file:
                size = self._paths[name].stat().st_size
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            opened[name] = memoryview(whole).cast("i")
        return opened

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
        self.whos: list[Who] = []
        self._stores = self._numbered()
        self._places = {name: self._place(name) for name in WORD_LISTS}
        self.light = self._light(sizes)

    def _numbered(self) -> list[_OfObject]:
        """Return the parts' stores, speakers numbered alike in all of them."""
        numbers: dict[Who, int] = {}
        stores = []
        for part in self.parts:
            new = [numbers.setdefault((who[0], who[1]), len(numbers)) for who in part.object.info["whos"]]
            stores.append(_OfObject(part.object, None if new == list(range(len(new))) else np.array(new, np.int32)))
        self.whos = list(numbers)
        return stores

    def _place(self, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        begin, end = zip(*(store.places(name) for store in self._stores), strict=True)
        return np.concatenate(begin), np.concatenate(end)

    def _light(self, sizes: list[int]) -> pa.Table:
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
        return (
            table.drop_columns(["index", "offset"])
            .append_column("dataset", named([part.dataset for part in parts]))
            .append_column("file", named([part.file for part in parts]))
            .append_column("row", pa.array(row))
            .append_column("offset", pa.array(moved, mask=np.asarray(offset.is_null())))
        )

    @property
    def nbytes(self) -> int:
        """The bytes of the parts' files."""
        return sum(path.stat().st_size for path in {part.object.path for part in self.parts})

    def words(self, rows: Ints, names: Sequence[str]) -> Lists:
        """Return of each word list (offsets int64[N + 1], values int32[T]) for the rows, in their order."""
        part_of = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(part_of, kind="stable")
        used, counts = np.unique(part_of, return_counts=True)
        holders = [(self._stores[part], count) for part, count in zip(used.tolist(), counts.tolist(), strict=True)]
        return _gathered(self._places, rows, order, holders, names)

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
        found[name] = (offsets, np.zeros(int(offsets[-1]) + ROOM, np.int32)[:-ROOM])
        ranges[name] = (begin[order].tolist(), end[order].tolist(), offsets[order].tolist())
    low = 0
    for holder, count in holders:
        words, high = holder.open(names), low + count
        for name, (begins, ends, offsets) in ranges.items():
            source, into = words[name], found[name][1].data
            for begin, end, at in zip(begins[low:high], ends[low:high], offsets[low:high], strict=True):
                if begin != end:
                    into[at : at + end - begin] = source[begin:end]
        low = high
    return found
