"""Rows of a plan, copied from the objects into shards, as they are or several to a pack. Nothing is encoded here.

A shard is an Arrow IPC file of record batches; each batch gets its own fast digest, so that a trainer can check what
it is about to use, and the whole file a sha256, which is its identity. While rows are written and hashed, by a thread
of its own, the rows that follow are gathered.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from compiler.encode.shapes import Owner
from compiler.sets.gather import Bucket, Lists, Rows
from compiler.sets.mix import Plan
from compiler.sets.pack import Packs, pack, packed_columns
from compiler.units.compiled import CompiledDataset
from schemas.arrow import SPANS, SPLITS, WORD_LISTS, shard_schema
from schemas.disk import flush
from schemas.manifest import BatchEntry, ShardEntry
from schemas.order import Ints

SHARD_TOKENS = 32 << 20
"""Tokens after which a shard is closed: about 256 MB."""
BATCH_ROWS = 512
BLOCK_TOKENS = 8 << 20
"""Tokens that are gathered at once: every object that has some of their rows is opened for them."""


@dataclass(frozen=True)
class Split:
    """The examples of one split in order: rows int64[N] (numbers among all rows), repeats int64[N], and their packs."""

    rows: Ints
    repeats: Ints
    packs: Packs | None = None

    @property
    def edges(self) -> Ints:
        """Where a shard may begin, and the end: at every example, or at every pack, int64."""
        return np.arange(len(self.rows) + 1) if self.packs is None else self.packs.edges

    def shards(self, before: Ints) -> list[slice]:
        """Return the examples of each shard; `before` int64[N + 1] are the tokens before each. A pack is never cut."""
        return _cut(self.edges, before, SHARD_TOKENS)

    def blocks(self, shard: slice, before: Ints) -> list[slice]:
        """Return the examples of a shard in blocks that are gathered at once: whole batches, of some tokens."""
        return _cut(self._batch_edges(shard), before, BLOCK_TOKENS)

    def batches(self, block: slice) -> list[slice]:
        """Return the examples of a block, or of a shard, in batches."""
        return [slice(a, b) for a, b in pairwise(self._batch_edges(block).tolist())]

    def _batch_edges(self, part: slice) -> Ints:
        edges = self.edges[(self.edges >= part.start) & (self.edges <= part.stop)]
        return np.append(edges[:-1:BATCH_ROWS], part.stop)


def _cut(edges: Ints, before: Ints, size: int) -> list[slice]:
    """Return what lies between the first and the last edge in slices from edge to edge, of about `size` tokens."""
    begun = (before[edges[:-1]] - before[edges[0]]) // size
    first = edges[:-1][np.flatnonzero(np.diff(begun, prepend=-1))].tolist()
    return [slice(a, b) for a, b in zip(first, [*first[1:], int(edges[-1])], strict=True)]


def split_of(plan: Plan, val: bool, starts: Ints) -> Split:
    """Return the plan's rows of one split; `starts` is the number of each dataset's first row, int64[D]."""
    chosen = np.flatnonzero(plan.val == val)
    return Split(starts[plan.dataset[chosen]] + plan.position[chosen], plan.repeat[chosen])


def splits_of(plan: Plan, compiled: Iterable[CompiledDataset], rows: Rows, pack_length: int | None) -> dict[str, Split]:
    """What is written of each split, in order."""
    sizes = [sum(unit.num_rows for unit in one.loaded) for one in compiled]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    splits = {name: split_of(plan, name == "val", starts) for name in SPLITS}
    if pack_length is None:
        return splits
    return {name: packed(split, rows, pack_length) for name, split in splits.items()}


def packed(split: Split, rows: Rows, length: int) -> Split:
    """Return the split in packs of at most `length` tokens."""
    order, packs = pack(_lengths(split, rows), length)
    return Split(split.rows[order], split.repeats[order], packs)


def _lengths(split: Split, rows: Rows) -> Ints:
    """Return the tokens of each example, int64[N]."""
    return rows.light.column("length").to_numpy()[split.rows].astype(np.int64)


def write_split(
    folder: Path, split: Split, rows: Rows, kind: str, say: Callable[[str, int, int], None]
) -> list[ShardEntry]:
    """Write one split as shards; return their manifest entries. `say` hears how many of its examples are written."""
    if not len(split.rows):
        return []
    folder.mkdir(parents=True)
    schema = shard_schema(kind, packed=split.packs is not None)
    words = [name for name in WORD_LISTS if name in schema.names]
    before = np.concatenate([[0], np.cumsum(_lengths(split, rows))])
    shards = split.shards(before)
    stores = _stores(folder, [split.rows[shard] for shard in shards], rows, words)
    entries: list[Future[ShardEntry]] = []
    written: list[Future[None]] = []
    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as disk:
        for number, (shard, store) in enumerate(zip(shards, stores, strict=True)):
            file = _Shard(folder / f"shard-{number:05d}.arrow", schema, split.packs is not None)
            for block in split.blocks(shard, before):
                say(folder.name, block.start, len(split.rows))
                batches = list(_batches(split, block, rows, store.words(split.rows[block], words), schema))
                for one in written[-1:]:
                    one.result()  # two blocks in memory are enough; an error ends the run here
                written.append(writer.submit(file.write, batches))
            closed = writer.submit(file.close, int(before[shard.stop] - before[shard.start]))
            entries.append(disk.submit(_flushed, file.path, closed))
    shutil.rmtree(_buckets(folder), ignore_errors=True)
    for one in written:
        one.result()
    return [entry.result() for entry in entries]


def _flushed(path: Path, closed: Future[ShardEntry]) -> ShardEntry:
    """Return the entry of a shard when it is on disk, for which publishing would have to wait."""
    entry = closed.result()
    flush(path)
    return entry


def _buckets(folder: Path) -> Path:
    return folder.parent / f".{folder.name}-rows"


def _memory() -> int:
    """Return how many bytes of objects may be read at random: half of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _stores(folder: Path, shards: list[Ints], rows: Rows, names: list[str]) -> list[Rows | Bucket]:
    """Return what each shard's rows are gathered from: the objects, or where they exceed memory, sorted out of them."""
    groups = min(-(-rows.nbytes // _memory()), len(shards))
    if groups < 2:
        return [rows] * len(shards)
    group_of = [i * groups // len(shards) for i in range(len(shards))]
    shares = [np.concatenate([some for some, g in zip(shards, group_of, strict=True) if g == n]) for n in range(groups)]
    buckets = rows.scattered(shares, names, _buckets(folder))
    return [buckets[group] for group in group_of]


def _batches(split: Split, block: slice, rows: Rows, lists: Lists, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a block; `lists` are those of all its examples.

    Each has buffers of its own size. Arrow fills a buffer up to eight bytes with zeros then, and not with what stands
    behind it in a larger one: the bytes of a shard depend on its rows alone.
    """
    for batch in split.batches(block):
        first, last = batch.start - block.start, batch.stop - block.start
        some = {name: _part(*of_block, first, last) for name, of_block in lists.items()}
        examples = _examples(split.rows[batch], split.repeats[batch], rows, some)
        if split.packs is not None:
            examples = packed_columns(examples, split.packs.within(batch))
        yield pa.RecordBatch.from_arrays([examples[field.name].cast(field.type) for field in schema], schema=schema)


def _part(offsets: Ints, values: npt.NDArray[np.int32], first: int, last: int) -> tuple[Ints, npt.NDArray[np.int32]]:
    """Return the lists of the rows from `first` to `last`."""
    offsets = offsets[first : last + 1]
    return offsets - offsets[0], values[offsets[0] : offsets[-1]]


def _examples(chosen: Ints, repeats: Ints, rows: Rows, lists: Lists) -> dict[str, pa.Array]:
    """Return the columns of the rows, in this order, with their provenance."""
    light = rows.light.take(pa.array(chosen))
    columns: dict[str, pa.Array] = dict(zip(light.schema.names, light.columns, strict=True))
    for name, (offsets, values) in lists.items():
        is_spans = name.endswith("spans")
        columns[name] = _span_array(offsets, values, rows.whos) if is_spans else _list_array(name, offsets, values)
    lengths = np.diff(lists["input_ids"][0]).astype(np.int32)
    columns["seq_lens"] = pa.ListArray.from_arrays(np.arange(len(chosen) + 1, dtype=np.int32), lengths)
    columns["repeat"] = pa.array(repeats.astype(np.int32))
    return columns


def _span_array(offsets: Ints, values: npt.NDArray[np.int32], whos: list[Owner]) -> pa.ListArray:
    who, count = values.reshape(-1, 2).T
    spoken = [pa.array([one[i] for one in whos], pa.string()).take(pa.array(who)) for i in (0, 1)]
    spans = pa.StructArray.from_arrays([*spoken, pa.array(count)], fields=list(SPANS.value_type))
    return pa.ListArray.from_arrays((offsets // 2).astype(np.int32), spans)


def _list_array(name: str, offsets: Ints, values: npt.NDArray[np.int32]) -> pa.ListArray:
    if name.endswith("loss_weights"):  # null in rows that are weighed evenly
        none = pa.array(offsets[1:] == offsets[:-1])
        return pa.ListArray.from_arrays(offsets.astype(np.int32), values.view(np.float32), mask=none)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), values)


class _Hashed(io.RawIOBase):
    """A file that hashes what is written to it, batch by batch.

    Arrow writes a batch in dozens of pieces. If each was hashed and written by itself, each would wait for the thread
    that gathers to let Python go.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.size = 0
        self._pieces: list[Any] = []

    def writable(self) -> bool:
        """Return True: pyarrow asks."""
        return True

    def write(self, data: Any) -> int:
        """Take bytes of the batch."""
        self._pieces.append(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        """Return how much was written."""
        return self.size

    def batch(self) -> str:
        """Write what came since the last call; return its digest."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.file.write(data)
        self.sha256.update(data)
        return xxhash.xxh3_128_hexdigest(data)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        super().close()


class _Shard:
    """A shard being written, batch by batch."""

    def __init__(self, path: Path, schema: pa.Schema, is_packed: bool) -> None:
        self.path, self.is_packed = path, is_packed
        self.file = _Hashed(path)
        self.writer = pa.ipc.new_file(pa.PythonFile(self.file), schema)
        self.batches: list[BatchEntry] = []
        self.trained = 0

    def write(self, batches: list[pa.RecordBatch]) -> None:
        """Write the next rows."""
        for batch in batches:
            start = self.file.tell()
            self.writer.write_batch(batch)
            length = self.file.tell() - start
            entry: BatchEntry = {
                "offset": start, "length": length, "rows": batch.num_rows, "xxh3": self.file.batch(),
            }  # fmt: skip
            if self.is_packed:
                entry["sequences"] = len(batch.column("seq_lens").flatten())
            self.batches.append(entry)
            self.trained += int(np.sum(batch.column("num_trained").to_numpy(), dtype=np.int64))

    def close(self, tokens: int) -> ShardEntry:
        """Write the file's index; return the shard's entry."""
        self.writer.close()
        self.file.batch()  # the index
        self.file.close()
        # The writer puts the file's magic and schema before the first batch when that is written: not part of it.
        with self.path.open("rb") as file:
            header = 16 + int.from_bytes(file.read(16)[12:16], "little")
            file.seek(header)
            first = file.read(self.batches[0]["length"] - header)
        self.batches[0]["offset"], self.batches[0]["length"] = header, len(first)
        self.batches[0]["xxh3"] = xxhash.xxh3_128_hexdigest(first)
        entry: ShardEntry = {
            "file": f"{self.path.parent.name}/{self.path.name}",
            "rows": sum(batch["rows"] for batch in self.batches),
            "tokens": tokens,
            "trained_tokens": self.trained,
            "bytes": self.file.size,
            "sha256": self.file.sha256.hexdigest(),
            "batches": self.batches,
        }
        if self.is_packed:
            entry["sequences"] = sum(batch["sequences"] for batch in self.batches)
        return entry
