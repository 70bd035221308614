"""All compiled rows of a run, by number: the small columns in memory, the words in the objects' files.

A set may be larger than memory. Reading its rows in a random order would then read every object from disk again for
every shard. So the words are first spilled into one group of files for some shards each (`spill`): every object is read
once, in order, and each group fits into memory. This is one pass of a bucket sort.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compiler.cache.objects import Object
from compiler.encode.shapes import Owner
from compiler.sets.mix import Examples
from compiler.sets.words import Extents, ObjectFile, SpilledRows, WordFiles, WordLists, copy_lists
from compiler.units.compiled import CompiledDataset
from schemas.arrow import SHINGLES, WORD_LISTS
from schemas.memory import trim_memory
from schemas.order import Ints

_SPANS = ("spans", "rejected_spans")
_IN_FILE = (*WORD_LISTS, SHINGLES)


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
    numbers them, file after file, and `first_owner` int64 where a file's begin.
    """

    files: list[WordFiles]
    file_of: npt.NDArray[np.int32]
    extents: Extents
    owner_of: npt.NDArray[np.int32]
    first_owner: Ints
    is_renumbered: bool = False
    """Whether spans name the owners as `CompiledRows.owners` numbers them already."""

    def lists(self, rows: slice) -> WordLists:
        """Copy the word lists of some of the rows."""
        extents = {name: (begin[rows], length[rows]) for name, (begin, length) in self.extents.items()}
        lists = copy_lists(extents, self.file_of[rows], self.files, list(extents))
        for name in () if self.is_renumbered else _SPANS:
            if name in lists:
                offsets, words = lists[name]
                first = np.repeat(self.first_owner[self.file_of[rows]], np.diff(offsets) // 2)
                words[::2] = self.owner_of[first + words[::2]]
        return lists


class CompiledRows:
    """All rows of the objects, one object after the other. A row is named by its number, counted over all of them."""

    def __init__(self, parts: Sequence[ObjectRows]) -> None:
        self.parts = parts
        sizes = [part.object.num_rows for part in parts]
        self.starts: Ints = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        """The number of the first row of each object, and the number of rows, int64[P + 1]."""
        self._files = [ObjectFile(part.object.path, part.object.stamp, part.object.digest) for part in parts]
        self._edges = {
            name: np.concatenate([part.object.edges(name) for part in parts])
            for name in _IN_FILE
            if any(name in part.object.lists for part in parts)
        }
        """By column that has words, where each row begins among those of its object, and where the last one ends,
        int32[N + P]."""
        self._first_words = {
            name: np.array([part.object.lists.get(name, (0,))[0] for part in parts], np.int32) for name in _IN_FILE
        }
        """By column, its first word in each object's file."""
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

    def _small(self, sizes: list[int]) -> pa.RecordBatch:
        parts = self.parts
        names = ("images", "videos", "desirable", "num_trained", "repairs", "part", "offset", "index", "length")
        table = pa.concat_tables([part.object.small.select(names) for part in parts]).combine_chunks()

        def of_part(values: list[int]) -> Ints:
            return np.repeat(np.array(values, np.int64), sizes)

        def named(values: list[str]) -> pa.Array:
            known = {value: i for i, value in enumerate(dict.fromkeys(values))}
            codes = of_part([known[value] for value in values]).astype(np.int32)
            return pa.DictionaryArray.from_arrays(codes, list(known))

        offset = table.column("offset").combine_chunks()
        moved = offset.fill_null(0).to_numpy() + of_part([part.offset for part in parts])
        row = table.column("index").to_numpy() + of_part([part.first_row for part in parts])
        [batch] = (
            table.drop_columns(["index", "offset"])
            .append_column("dataset", named([part.dataset for part in parts]))
            .append_column("file", named([part.file for part in parts]))
            .append_column("row", pa.array(row))
            .append_column("offset", pa.array(moved, mask=np.asarray(offset.is_null())))
            .to_batches()
        )
        return batch

    @property
    def nbytes(self) -> int:
        """The bytes of the objects' files."""
        return sum({part.object.path: part.object.nbytes for part in self.parts}.values())

    def placed(self, rows: Ints, names: Sequence[str]) -> PlacedWords:
        """Where the words of rows are, by their numbers, in any order."""
        part_of = np.searchsorted(self.starts, rows, side="right") - 1
        used, file_of = np.unique(part_of, return_inverse=True)
        extents: Extents = {}
        for name in names:
            edges = self._edges.get(name)
            if edges is None:
                none = np.zeros(len(rows), np.int32)
                extents[name] = none, none
                continue
            begin = edges[rows + part_of]
            extents[name] = begin + self._first_words[name][part_of], edges[rows + part_of + 1] - begin
        lengths = np.diff(self._first_number)[used]
        first_owner = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        whole = np.repeat(self._first_number[used] - first_owner, lengths) + np.arange(int(lengths.sum()))
        files: list[WordFiles] = [self._files[part] for part in used.tolist()]
        return PlacedWords(files, file_of.astype(np.int32), extents, self._numbers[whole], first_owner)

    def lists(self, rows: Ints, names: Sequence[str]) -> WordLists:
        """Copy the word lists of rows by their numbers, in any order. Opens every object that has one of them once."""
        return self.placed(rows, names).lists(slice(None))

    def spill(self, groups: Sequence[Ints], names: Sequence[str], folder: Path) -> list[SpilledRows]:
        """Copy the words of each group of rows (any order, repeats allowed) into files of their own below `folder`.

        Every object is read once.
        """
        groups = [np.unique(group) for group in groups]
        spilled = [SpilledRows(folder / str(i), names, group) for i, group in enumerate(groups)]
        for low, high in pairwise(self.starts.tolist()):
            for group, files in zip(groups, spilled, strict=True):
                a, b = np.searchsorted(group, [low, high])
                if b > a:
                    files.add(self.lists(group[a:b], names))
        for files in spilled:
            files.close()
        return spilled


def forget_columns(compiled: Iterable[CompiledDataset], rows: CompiledRows) -> None:
    """Let go of the columns of objects, which `examples_of` and `rows_of` have copied: a third of a run's memory."""
    rows.parts = [replace(part, object=part.object.without_columns()) for part in rows.parts]
    records = (record for one in compiled for record in one.records)
    for record, part in zip(records, rows.parts, strict=True):
        record.object = part.object
    trim_memory()


def placed_in(spilled: SpilledRows, rows: Ints, names: Sequence[str]) -> PlacedWords:
    """Where the words of spilled rows are, by their numbers, in any order."""
    none = np.zeros(0, np.int32)
    extents, file_of = spilled.extents(rows, names), np.zeros(len(rows), np.int32)
    return PlacedWords([spilled.files], file_of, extents, none, none.astype(np.int64), is_renumbered=True)


def examples_of(one: CompiledDataset) -> Examples:
    """What the mix needs to know of a dataset's rows."""
    tables = [unit.small for unit in one.loaded]
    empty, none = [np.empty(0, np.int64)], [np.empty(0, "S16")]
    grouped = any(not t.column("group").equals(t.column("fingerprint")) for t in tables)
    return Examples(
        tokens=np.concatenate([t.column("length").to_numpy() for t in tables] or empty).astype(np.int64),
        trained=np.concatenate([t.column("num_trained").to_numpy() for t in tables] or empty).astype(np.int64),
        fingerprints=np.concatenate([_prints(t, "fingerprint") for t in tables] or none),
        groups=np.concatenate([_prints(t, "group") for t in tables] or none) if grouped else None,
        cap=one.dataset.num_samples,
    )


def _prints(table: pa.Table, name: str) -> npt.NDArray[np.bytes_]:
    """A column of 16 bytes a row as S16[N]."""
    column = table.column(name).combine_chunks()
    buffer = column.buffers()[1] if len(column) else None
    if buffer is None:
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
