"""Which rows are listed: by dataset, text, source and step, and in which order. Nothing is decoded here.

Columns of numbers are read when they are first needed, for a whole split, and kept: 16 bytes a row. They are read
without their digests; rows that are shown are not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from compiler.inspect.find import Source, contains
from compiler.report.packs import examples_of
from compiler.report.rows import RowPages
from schemas.arrow import IGNORED, TRAIN
from schemas.order import Ints
from schemas.reader import CompiledSet, SplitReader

SECONDS, MOST = 2.0, 1000
"""A search for a text ends after this time, or with so many rows, and says how far it came."""
_MAPPED = 256
"""Batches that are read from one mapping."""
SORTS = {
    "": "order of the set",
    "longest": "longest first",
    "shortest": "shortest first",
    "most-trained": "largest trained share first",
    "least-trained": "smallest trained share first",
}


@dataclass(frozen=True)
class Columns:
    """Numbers of each example of a split. `tokens` are those stored, of both sides of a pair."""

    tokens: Ints
    trained: npt.NDArray[np.int32]
    dataset: npt.NDArray[np.int32]


@dataclass(frozen=True)
class RowQuery:
    """What is asked for. A text is looked for from the row `start` on."""

    split: str
    dataset: str = ""
    text: str = ""
    start: int = 0
    sort: str = ""


@dataclass(frozen=True)
class FoundRows:
    """The rows that were found, in the order in which they are listed, and the first row not searched for the text."""

    rows: Ints
    total: int
    searched: int


class Finder:
    """Finds rows of one set."""

    def __init__(self, opened: CompiledSet, pages: RowPages) -> None:
        self._opened, self._pages = opened, pages
        self._columns: dict[str, Columns] = {}
        self._last: list[tuple[RowQuery, FoundRows]] = []
        self.names = [entry["name"] for entry in opened.manifest["datasets"]]

    def found(self, asked: RowQuery) -> FoundRows:
        """The rows that are asked for; the last few answers are kept, for their next pages."""
        for known, found in self._last:
            if known == asked:
                return found
        total = self._pages.examples(asked.split).num_rows
        if asked.sort:
            found = self.found(replace(asked, sort=""))
            found = replace(found, rows=self._sorted(asked.split, found.rows, asked.sort))
        elif asked.text:
            found = self._search(asked, total)
        else:
            rows = np.arange(total)
            if asked.dataset:
                rows = rows[self.columns(asked.split).dataset == self.names.index(asked.dataset)]
            found = FoundRows(rows, total, total)
        self._last = [(asked, found), *self._last[:3]]
        return found

    def _search(self, asked: RowQuery, total: int) -> FoundRows:
        rows: list[Ints] = []
        end, count, searched = time.monotonic() + SECONDS, 0, total
        for start, batch in self._pages.examples(asked.split).scan(asked.start):
            if count >= MOST or time.monotonic() > end:
                searched = start
                break
            keep = contains(batch.column("input_ids"), asked.text, self._pages.vocabulary)
            if "rejected_input_ids" in batch.schema.names:
                keep |= contains(batch.column("rejected_input_ids"), asked.text, self._pages.vocabulary)
            if asked.dataset:
                keep &= np.asarray(pc.equal(batch.column("dataset"), asked.dataset))
            numbers = start + np.flatnonzero(keep)
            rows.append(numbers[numbers >= asked.start])
            count += len(rows[-1])
        return FoundRows(np.concatenate([np.empty(0, np.int64), *rows]), total, searched)

    def _sorted(self, split: str, rows: Ints, sort: str) -> Ints:
        columns = self.columns(split)
        key: npt.NDArray[Any] = columns.tokens[rows]
        if sort.endswith("trained"):
            key = columns.trained[rows] / np.maximum(key, 1)
        ordered: Ints = rows[np.argsort(-key if sort in ("longest", "most-trained") else key, kind="stable")]
        return ordered

    def columns(self, name: str) -> Columns:
        """The numbers of a split's examples."""
        if name not in self._columns:
            parts = [self._numbers(split, number) for split, number in self._batches(name)]  # of a split with rows
            self._columns[name] = Columns(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        return self._columns[name]

    def _batches(self, name: str) -> Iterator[tuple[SplitReader, int]]:
        """Yield (reader, number) of each batch. Files are mapped anew at times, to let go of their pages."""
        for number in range(len(self._opened.split(name).entries)):
            if number % _MAPPED == 0:
                split = CompiledSet.of(self._opened.folder, self._opened.manifest).split(name)
            yield split, number

    def _numbers(self, split: SplitReader, number: int) -> tuple[npt.NDArray[Any], ...]:
        names = [name for name in ("rejected_input_ids",) if name in split.schema.names]
        if self._opened.is_packed:
            batch = split.columns(number, ["seq_lens", "labels", "dataset"])
            tokens = batch.column("seq_lens").flatten().to_numpy()
            labels = batch.column("labels").flatten().to_numpy()
            starts = np.cumsum(tokens) - tokens
            trained = np.add.reduceat(labels != IGNORED, starts, dtype=np.int32)
            datasets = batch.column("dataset").flatten()
        else:
            batch = split.columns(number, ["input_ids", "num_trained", "dataset", *names])
            tokens = sum(pc.list_value_length(batch.column(name)).to_numpy() for name in ("input_ids", *names))
            trained, datasets = batch.column("num_trained").to_numpy(), batch.column("dataset")
        codes = pc.index_in(datasets, pa.array(self.names)).fill_null(-1).to_numpy()
        return tokens.astype(np.int64), trained.astype(np.int32), codes.astype(np.int32)

    def of_source(self, source: Source) -> Iterator[tuple[str, int]]:
        """Yield (split, number) of the examples that a row of a source file became."""
        wanted = {"file": source[1], "dataset": source[0]}
        for name in self._opened.manifest["splits"]:
            start = 0
            for split, number in self._batches(name):
                rows = self._values(split, number, "row")
                at = np.flatnonzero(pc.equal(rows, source[2]))
                for column, value in wanted.items():
                    if len(at):
                        at = at[np.asarray(pc.equal(self._values(split, number, column).take(at), value))]
                yield from ((name, start + int(one)) for one in at)
                start += len(rows)

    def _values(self, split: SplitReader, number: int, name: str) -> pa.Array:
        column = split.columns(number, [name]).column(name)
        return column.flatten() if self._opened.is_packed else column

    def of_rows(self, rows: Ints) -> Ints:
        """The numbers of the examples in these rows of the training split: of a packed set, those of the packs."""
        if not self._opened.is_packed:
            return rows
        split = self._opened.split(TRAIN)
        return np.array([number for row in rows for number in examples_of(split, int(row))], np.int64)
