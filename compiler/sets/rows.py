"""All compiled rows of a run, by number: the small columns in memory, the words in the objects' files.

A set may be larger than memory. Reading its rows in a random order would then read every object from disk again for
every shard. So the words are first spilled into one group of files for some shards each (`spill`): every object is read
once, in order, and each group fits into memory. This is one pass of a bucket sort.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compiler.cache.objects import Object
from compiler.encode.shapes import Owner
from compiler.sets.mix import Examples
from compiler.sets.words import ObjectFile, SpilledRows, WordLists, copy_lists
from compiler.units.compiled import CompiledDataset
from schemas.arrow import SHINGLES, WORD_LISTS
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


class CompiledRows:
    """All rows of the objects, one object after the other. A row is named by its number, counted over all of them."""

    def __init__(self, parts: Sequence[ObjectRows]) -> None:
        self.parts = parts
        sizes = [part.object.num_rows for part in parts]
        self.starts: Ints = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        """The number of the first row of each object, and the number of rows, int64[P + 1]."""
        self._files = [ObjectFile(part.object) for part in parts]
        has_shingles = all(SHINGLES in part.object.lists for part in parts)
        in_file = (*WORD_LISTS, SHINGLES) if has_shingles else WORD_LISTS
        self._extents = {name: self._extents_of(name) for name in in_file}
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

    def _extents_of(self, name: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        begin, end = zip(*(file.extents(name) for file in self._files), strict=True)
        return np.concatenate(begin), np.concatenate(end)

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

    def lists(self, rows: Ints, names: Sequence[str]) -> WordLists:
        """Copy the word lists of rows by their numbers, in any order. Opens every object that has one of them once."""
        part_of = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(part_of, kind="stable")
        used, counts = np.unique(part_of, return_counts=True)
        files = [(self._files[part], count) for part, count in zip(used.tolist(), counts.tolist(), strict=True)]
        lists = copy_lists(self._extents, rows, order, files, names)
        for name in _SPANS:
            if name in lists:  # an object numbers its owners by itself
                offsets, words = lists[name]
                first = np.repeat(self._first_number[part_of], np.diff(offsets) // 2)
                words[::2] = self._numbers[first + words[::2]]
        return lists

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


def examples_of(one: CompiledDataset) -> Examples:
    """What the mix needs to know of a dataset's rows."""
    tables = [unit.small for unit in one.loaded]
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


def rows_of(compiled: Iterable[CompiledDataset]) -> CompiledRows:
    """The rows of all datasets, one after the other."""
    return CompiledRows(
        [
            ObjectRows(unit, one.dataset.name, record.file, first, record.offset)
            for one in compiled
            for unit, record, first in zip(one.loaded, one.records, one.first_rows(), strict=True)
        ]
    )
