"""The examples of a published set, one by one, also where they are stored in packs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.order import Ints
from schemas.packs import unpacked
from schemas.reader import CompiledSet


def rejects(opened: CompiledSet) -> Iterator[dict[str, Any]]:
    """Yield the entries of rejects.jsonl, each with its place."""
    for line in io.BytesIO(opened.read_file("rejects.jsonl")):
        entry: dict[str, Any] = json.loads(line)
        entry["place"] = opened.places.place(entry["dataset"], entry["file"], entry["row"], entry["pointer"])
        yield entry


def raw_of(entry: dict[str, Any]) -> str:
    """What a rejected row was, as text."""
    if "raw_left_out" in entry:
        return f"(left out by {entry['raw_left_out']})"
    return str(entry["raw"]) if "raw" in entry else f"bytes {entry['raw_hex']}"


class SplitExamples:
    """The examples of one split, by number. The batch that was read last is kept."""

    def __init__(self, opened: CompiledSet, name: str) -> None:
        self.opened, self.name = opened, name
        self._batches = opened.split(name)
        counts = [entry.get("sequences", entry["rows"]) for entry in self._batches.entries]
        self._starts: Ints = np.cumsum([0, *counts], dtype=np.int64)
        self._last: tuple[int, pa.RecordBatch] | None = None

    @property
    def num_rows(self) -> int:
        """The number of examples, by the manifest."""
        return int(self._starts[-1])

    def scan(self, first: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (number of its first example, batch), from the batch with the example `first` on."""
        for i in range(self._batch_of(first), len(self._starts) - 1):
            yield int(self._starts[i]), self._batch(i)

    def row(self, number: int) -> dict[str, Any]:
        """The columns of one example."""
        i = self._batch_of(number)
        [columns] = self._batch(i).slice(number - int(self._starts[i]), 1).to_pylist()
        return columns

    def length(self, number: int) -> int:
        """The stored tokens of one example, of both sides of a pair."""
        i = self._batch_of(number)
        at, batch = number - int(self._starts[i]), self._batch(i)
        sides = [name for name in ("input_ids", "rejected_input_ids") if name in batch.schema.names]
        return sum(len(batch.column(name)[at]) for name in sides)

    def _batch_of(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _batch(self, i: int) -> pa.RecordBatch:
        if self._last is None or self._last[0] != i:
            batch = self._batches.batch(i)
            self._last = (i, unpacked(batch, self.opened.kind) if self.opened.is_packed else batch)
        return self._last[1]
