"""All compiled rows of a run, by number: the small columns in memory, the words in the objects' files.

A set may be larger than memory. Reading its rows in a random order would then read every object from disk again for
every shard. So the words are first spilled into one group of files for some shards each (`spill`): every object is read
once, in order, and each group fits into memory. This is one pass of a bucket sort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compiler.cache.layout import IN_FILE, Narrow, narrow
from compiler.cache.objects import Object
from compiler.cache.small import SmallColumns
from compiler.encode.shapes import Owner
from compiler.sets.mix import Examples
from compiler.sets.words import Extents, ObjectFile, SpilledRows, WordFile, WordLists, copy_lists
from compiler.units.compiled import CompiledDataset
from schemas.arrow import OBJECT
from schemas.memory import trim_memory
from schemas.order import Ints

_SPANS = ("spans", "rejected_spans")


@dataclass(frozen=True)
class ObjectRows:
    """The rows of one object, and where they are from: dataset, label of the file, number and byte of the first row."""

    object: Object
    dataset: str
    file: str
    first_row: int
    offset: int


@dataclass(frozen=True)
class PlacedWords:
    """Where the words of some rows are, in the order of the rows. Picklable; a process that has it needs no objects.

    An object numbers the owners that its spans name by itself: `owner_of` int32 gives what `CompiledRows.owners`
    numbers them, object after object, and `first_owner`, [N], where those of each row's object begin.
    """

    names: Sequence[str]
    files: list[WordFile]
    extents: Extents
    owner_of: npt.NDArray[np.int32]
    first_owner: Narrow

    def lists(self, rows: slice) -> WordLists:
        """Copy the word lists of some of the rows."""
        lists = copy_lists(self.extents[rows], self.files)
        first_owner = self.first_owner[rows]
        for name in _SPANS:
            if name in lists:
                offsets, words = lists[name]
                words[::2] = self.owner_of[np.repeat(first_owner, np.diff(offsets) // 2) + words[::2]]
        none = np.zeros(len(first_owner) + 1, np.int64), np.empty(0, np.int32)
        return {name: lists.get(name, none) for name in self.names}


class CompiledRows:
    """All rows of the objects, one object after the other. A row is named by its number, counted over all of them."""

    def __init__(self, parts: Sequence[ObjectRows]) -> None:
        self.parts = parts
        sizes = [part.object.num_rows for part in parts]
        self.starts: Ints = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        """The number of the first row of each object, and the number of rows, int64[P + 1]."""
        self._files = [ObjectFile(part.object.path, part.object.stamp, part.object.digest) for part in parts]
        nones = [np.zeros(size, np.uint8) for size in sizes]
        self._counts = {
            name: np.concatenate([part.object.counts.get(name, none) for part, none in zip(parts, nones, strict=True)])
            for name in IN_FILE
            if any(name in part.object.counts for part in parts)
        }
        """By list that has words, how many each row has."""
        self._begin = self._first_words()
        numbers: dict[Owner, int] = {}
        known = [part.object.info["owners"] for part in parts]
        alike = [numbers.setdefault((role, key), len(numbers)) for owners in known for role, key in owners]
        roles, keys = zip(*numbers, strict=True) if numbers else ((), ())
        self.owners = pa.array(roles, pa.string()), pa.array(keys, pa.string())
        """Role and policy key of each owner that spans name by its number."""
        self._numbers = np.array(alike, np.int32)
        """The numbers in `owners` of each object's own owners, object after object."""
        self._first_number = np.cumsum([0, *map(len, known)])
        self.small = self._small(sizes)
        """The columns that are not word lists, with each row's provenance."""
        self.lengths = self.small.numbers("length")
        """How many tokens each row has."""

    def _first_words(self) -> npt.NDArray[np.int32]:
        """The word of its object's file at which each row begins."""
        found = np.empty(int(self.starts[-1]), np.int32)
        for part, (low, high) in zip(self.parts, pairwise(self.starts.tolist()), strict=True):
            sizes = _summed(part.object.counts.values(), high - low)
            found[low:high] = part.object.first_word + np.cumsum(sizes) - sizes
        return found

    def _small(self, sizes: list[int]) -> SmallColumns:
        parts, count = self.parts, int(self.starts[-1])
        slices = [slice(low, high) for low, high in pairwise(self.starts.tolist())]

        def whole(name: str) -> pa.Array:
            chunks = [part.object.columns.column(name) for part in parts]
            type_ = OBJECT.field(name).type
            if pa.types.is_integer(type_) and not any(chunk.null_count for chunk in chunks):
                return pa.array(np.concatenate([np.empty(0, np.uint8), *(chunk.to_numpy() for chunk in chunks)]))
            return pa.chunked_array([chunk.cast(type_) for chunk in chunks], type_).combine_chunks()

        def moved(name: str, by: list[int]) -> pa.Array:
            """A column of places within units, as places within files."""
            found, is_null = np.empty(count, np.int64), np.zeros(count, np.bool_)
            for part, rows, first in zip(parts, slices, by, strict=True):
                column = part.object.columns.column(name)
                found[rows] = column.fill_null(0).to_numpy()
                found[rows] += first
                is_null[rows] = np.asarray(column.is_null())
            return pa.array(found, mask=is_null if is_null.any() else None)

        def named(values: list[str]) -> pa.Array:
            known = {value: i for i, value in enumerate(dict.fromkeys(values))}
            codes = np.repeat(np.array([known[value] for value in values], np.int32), sizes)
            return pa.DictionaryArray.from_arrays(codes, list(known))

        makers: dict[str, Callable[[], pa.Array]] = {
            "dataset": lambda: named([part.dataset for part in parts]),
            "file": lambda: named([part.file for part in parts]),
            "row": lambda: moved("index", [part.first_row for part in parts]),
            "offset": lambda: moved("offset", [part.offset for part in parts]),
        }
        names = ("images", "videos", "desirable", "num_trained", "repairs", "part", "length", *makers)
        # One is made after the other, so that no two are in memory as wide as they were.
        made = ((name, makers[name]() if name in makers else whole(name)) for name in names)
        return SmallColumns.of(count, made)

    @property
    def nbytes(self) -> int:
        """The bytes of the objects' files."""
        return sum({part.object.path: part.object.nbytes for part in self.parts}.values())

    def placed(self, rows: npt.NDArray[Any], names: Sequence[str], spilled: SpilledRows | None = None) -> PlacedWords:
        """Where the words of rows are, by their numbers, in any order; `names` are lists that follow each other.

        They are in the objects' files, or in one where words of just these lists are spilled.
        """
        part_of = np.searchsorted(self.starts, rows, side="right") - 1
        used, object_of = np.unique(part_of, return_inverse=True)
        counts = {name: self._counts[name][rows] for name in names if name in self._counts}
        if spilled is None:
            before = [name for name in IN_FILE[: IN_FILE.index(names[0])] if name in self._counts]
            begin = self._begin[rows] + _summed((self._counts[name][rows] for name in before), len(rows))
            files: list[WordFile] = [self._files[part] for part in used.tolist()]
            extents = Extents(narrow(object_of), narrow(begin), counts)
        else:
            files = [spilled.file]
            extents = Extents(np.zeros(len(rows), np.uint8), spilled.begin(rows), counts)
        numbers = [self._numbers[slice(*self._first_number[part : part + 2])] for part in used.tolist()]
        first_owner = np.cumsum([0, *map(len, numbers)])[object_of]
        owner_of = np.concatenate([np.zeros(0, np.int32), *numbers])
        return PlacedWords(names, files, extents, owner_of, narrow(first_owner))

    def lists(self, rows: Ints, names: Sequence[str]) -> WordLists:
        """Copy the word lists of rows by their numbers, in any order. Opens every object that has one of them once."""
        return self.placed(rows, names).lists(slice(None))

    def spill(self, groups: Sequence[npt.NDArray[Any]], names: Sequence[str], folder: Path) -> list[SpilledRows]:
        """Copy the words of each group of rows (any order, repeats allowed) into a file of their own in `folder`.

        Every object is read once.
        """
        groups = [np.unique(group) for group in groups]
        spilled = [SpilledRows(folder / str(i), group) for i, group in enumerate(groups)]
        for low, high in pairwise(self.starts.tolist()):
            for group, file in zip(groups, spilled, strict=True):
                a, b = np.searchsorted(group, [low, high])
                if b > a:
                    file.add(*self._side_by_side(group[a:b], names))
        for file in spilled:
            file.close()
        return spilled

    def _side_by_side(self, rows: npt.NDArray[Any], names: Sequence[str]) -> tuple[Ints, npt.NDArray[np.int32]]:
        """How many words rows have of these lists, and the words as their objects have them."""
        placed = self.placed(rows, names)
        sizes = _summed(placed.extents.counts.values(), len(rows))
        lists = copy_lists(replace(placed.extents, counts={"words": sizes}), placed.files)
        return sizes, lists["words"][1]


def _summed(counts: Iterable[Narrow], rows: int) -> Ints:
    """The words of each row in all lists."""
    return sum((some.astype(np.int64) for some in counts), np.zeros(rows, np.int64))


def forget_columns(compiled: Iterable[CompiledDataset], rows: CompiledRows) -> None:
    """Let go of the columns of objects, which `examples_of` and `rows_of` have copied: a third of a run's memory."""
    rows.parts = [replace(part, object=part.object.without_columns()) for part in rows.parts]
    records = (record for one in compiled for record in one.records)
    for record, part in zip(records, rows.parts, strict=True):
        record.object = part.object
    trim_memory()


def examples_of(one: CompiledDataset) -> Examples:
    """What the mix needs to know of a dataset's rows."""
    some = [unit.columns for unit in one.loaded]
    empty, none = [np.empty(0, np.uint8)], [np.empty(0, "S16")]
    grouped = any("group" in columns for columns in some)
    groups = [_prints(columns.column("group" if "group" in columns else "fingerprint")) for columns in some]
    return Examples(
        tokens=np.concatenate([columns.numbers("length") for columns in some] or empty).astype(np.int64),
        trained=np.concatenate([columns.numbers("num_trained") for columns in some] or empty).astype(np.int64),
        fingerprints=np.concatenate([_prints(columns.column("fingerprint")) for columns in some] or none),
        groups=np.concatenate(groups) if grouped else None,
        cap=one.dataset.num_samples,
    )


def _prints(column: pa.Array) -> npt.NDArray[np.bytes_]:
    """A column of 16 bytes a row as S16[N]."""
    buffer = column.buffers()[1]
    if buffer is None or not len(column):
        return np.empty(0, dtype="S16")
    return np.frombuffer(buffer, dtype="S16", count=len(column), offset=column.offset * 16)


def rows_of(compiled: Iterable[CompiledDataset]) -> CompiledRows:
    """The rows of all datasets, one after the other."""
    return CompiledRows(
        [
            ObjectRows(unit, one.dataset.name, record.file, first, record.offset)
            for one in compiled
            for unit, record, first in zip(one.loaded, one.records, one.first_rows(), strict=True)
        ]
    )
