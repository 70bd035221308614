"""What a published set holds, read only if its digest is the manifest's: batches of rows, and files beside them."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pyarrow as pa
import xxhash

from compiler.sets.folder import ShardSet
from compiler.sets.pack import unpacked
from schemas.arrow import shard_schema
from schemas.errors import IntegrityError


def damage(opened: ShardSet, what: str) -> IntegrityError:
    """Return the error for a set of which something is not as it was written."""
    hint = f"cli verify {opened.folder} names every damage; compile the set again."
    return IntegrityError(str(opened.folder), what, hint)


def read_file(opened: ShardSet, name: str) -> bytes:
    """Return the bytes of a file beside the shards; IntegrityError unless they are what the manifest says."""
    try:
        data = (opened.files / name).read_bytes()
    except OSError as error:
        raise damage(opened, f"{name}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != opened.manifest["files"].get(name):
        raise damage(opened, f"{name}: is damaged or was edited")
    return data


def rejects(opened: ShardSet) -> list[dict[str, Any]]:
    """Return the entries of rejects.jsonl."""
    return [json.loads(line) for line in read_file(opened, "rejects.jsonl").splitlines()]


class Split:
    """The batches of one split, each checked against its digest when it is read.

    A batch is read where the manifest says it is: the file's own index is not needed, and `cli verify` looks at it.
    """

    def __init__(self, opened: ShardSet, name: str) -> None:
        self.opened, self.name = opened, name
        self._batches = [(shard, n) for shard in opened.shards(name) for n in range(len(shard["batches"]))]
        self._packed = "packing" in opened.manifest
        self._schema = shard_schema(opened.manifest["kind"], packed=self._packed)
        counts = (shard["batches"][n] for shard, n in self._batches)
        self._starts = [0, *accumulate(entry.get("sequences", entry["rows"]) for entry in counts)]
        self._last: tuple[int, pa.RecordBatch] | None = None

    @property
    def num_rows(self) -> int:
        """The rows of the split, by the manifest; in packed sets the examples are the rows here."""
        return self._starts[-1]

    def scan(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (number of its first row, batch)."""
        for i, start in enumerate(self._starts[:-1]):
            yield start, self._batch(i)

    def row(self, number: int) -> dict[str, Any]:
        """Return the columns of one row."""
        i = bisect_right(self._starts, number) - 1
        [columns] = self._batch(i).slice(number - self._starts[i], 1).to_pylist()
        return columns

    def _batch(self, i: int) -> pa.RecordBatch:
        if self._last is None or self._last[0] != i:
            self._last = (i, self._read(*self._batches[i]))
        return self._last[1]

    def _read(self, shard: dict[str, Any], number: int) -> pa.RecordBatch:
        name, entry = shard["file"], shard["batches"][number]
        data = self._bytes(shard, entry)
        if xxhash.xxh3_128_hexdigest(data) != entry["xxh3"]:
            first = sum(batch["rows"] for batch in shard["batches"][:number])
            last = first + entry["rows"] - 1
            raise damage(self.opened, f"{name}: batch {number} (rows {first} to {last}) is damaged")
        try:
            batch = pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)
        except pa.ArrowException as error:
            raise damage(self.opened, f"{name}: batch {number} is no Arrow batch: {error}") from error
        if batch.num_rows != entry["rows"]:
            raise damage(self.opened, f"{name}: batch {number} has {batch.num_rows} rows, expected {entry['rows']}")
        return unpacked(batch, shard_schema(self.opened.manifest["kind"])) if self._packed else batch

    def _bytes(self, shard: dict[str, Any], entry: dict[str, Any]) -> bytes:
        name = shard["file"]
        try:
            with (self.opened.files / name).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if entry["offset"] + entry["length"] > size:
                    raise damage(self.opened, f"{name}: expected {shard['bytes']} bytes, found {size}")
                file.seek(entry["offset"])
                return file.read(entry["length"])
        except OSError as error:
            raise damage(self.opened, f"{name}: {error.strerror}") from error
