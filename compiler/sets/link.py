"""The link: rows of a plan become shards, as they are or several to a pack. Nothing is encoded here.

1. A split is cut into shards of some tokens, a shard into blocks, a block into batches of 512 rows or packs.
2. The words of a block are copied from the objects, all its batches at once: every object is opened once a block.
3. Meanwhile another thread writes and hashes the block before, and a third one flushes finished shards to disk.

The cost is one copy of every byte and two hashes over it; memory holds two blocks, and the small columns of all rows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compiler.sets.mix import MixPlan
from compiler.sets.pack import Packs, pack, packed_columns
from compiler.sets.rows import CompiledRows
from compiler.sets.shard import ShardWriter
from compiler.sets.words import SpilledRows, WordLists
from compiler.units.compiled import CompiledDataset
from schemas.arrow import SPANS, SPLITS, TEST, WORD_LISTS, shard_schema
from schemas.disk import flush
from schemas.manifest import ShardEntry
from schemas.order import Ints

SHARD_TOKENS = 32 << 20
"""Tokens after which a shard is closed: about 256 MB."""
BATCH_ROWS = 512
BLOCK_TOKENS = 8 << 20
"""Tokens that are copied at once: every object that has some of their rows is opened for them."""


@dataclass(frozen=True)
class PlannedSplit:
    """The examples of one split in order: numbers int64[N] among all rows, repeats int64[N], and their packs."""

    rows: Ints
    repeats: Ints
    packs: Packs | None = None

    @property
    def edges(self) -> Ints:
        """Where a shard may begin, and the end, int64: at every example, or at every pack."""
        return np.arange(len(self.rows) + 1) if self.packs is None else self.packs.edges

    def shards(self, before: Ints) -> list[slice]:
        """The examples of each shard; `before` int64[N + 1] counts the tokens before each example. Packs stay whole."""
        return _cut(self.edges, before, SHARD_TOKENS)

    def blocks(self, shard: slice, before: Ints) -> list[slice]:
        """The examples of each block of a shard: whole batches, of about BLOCK_TOKENS."""
        return _cut(self._batch_edges(shard), before, BLOCK_TOKENS)

    def batches(self, block: slice) -> list[slice]:
        """The examples of each batch of a block."""
        return [slice(a, b) for a, b in pairwise(self._batch_edges(block).tolist())]

    def _batch_edges(self, part: slice) -> Ints:
        edges = self.edges[(self.edges >= part.start) & (self.edges <= part.stop)]
        return np.append(edges[:-1:BATCH_ROWS], part.stop)


def _cut(edges: Ints, before: Ints, size: int) -> list[slice]:
    """Cut from the first to the last edge into slices from edge to edge, of about `size` tokens each."""
    begun = (before[edges[:-1]] - before[edges[0]]) // size
    first = edges[:-1][np.flatnonzero(np.diff(begun, prepend=-1))].tolist()
    return [slice(a, b) for a, b in zip(first, [*first[1:], int(edges[-1])], strict=True)]


def plan_splits(
    plan: MixPlan, compiled: Iterable[CompiledDataset], rows: CompiledRows, pack_length: int | None
) -> dict[str, PlannedSplit]:
    """Choose the rows of each split in order, and pack them if a length is given."""
    sizes = [sum(unit.num_rows for unit in one.loaded) for one in compiled]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    splits = {}
    for number, name in enumerate(SPLITS):
        chosen = np.flatnonzero(plan.split == number)
        if name == TEST and not len(chosen):
            continue
        split = PlannedSplit(starts[plan.dataset[chosen]] + plan.position[chosen], plan.repeat[chosen])
        splits[name] = split if pack_length is None else _packed(split, rows, pack_length)
    return splits


def _packed(split: PlannedSplit, rows: CompiledRows, length: int) -> PlannedSplit:
    order, packs = pack(_lengths(split, rows), length)
    return PlannedSplit(split.rows[order], split.repeats[order], packs)


def _lengths(split: PlannedSplit, rows: CompiledRows) -> Ints:
    """The tokens of each example, int64[N]."""
    return rows.small.column("length").to_numpy()[split.rows].astype(np.int64)


def write_split(
    folder: Path, split: PlannedSplit, rows: CompiledRows, kind: str, say: Callable[[str, int, int], None]
) -> list[ShardEntry]:
    """Write one split as shards; return their manifest entries. `say` hears how many of its examples are written."""
    if not len(split.rows):
        return []
    folder.mkdir(parents=True)
    schema = shard_schema(kind, packed=split.packs is not None)
    names = [name for name in WORD_LISTS if name in schema.names]
    before = np.concatenate([[0], np.cumsum(_lengths(split, rows))])
    shards = split.shards(before)
    sources = _sources(folder, [split.rows[shard] for shard in shards], rows, names)
    entries: list[Future[ShardEntry]] = []
    written: list[Future[None]] = []
    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as disk:
        for number, (shard, source) in enumerate(zip(shards, sources, strict=True)):
            file = ShardWriter(folder / f"shard-{number:05d}.arrow", schema, split.packs is not None)
            for block in split.blocks(shard, before):
                say(folder.name, block.start, len(split.rows))
                batches = list(_batches(split, block, rows, source.lists(split.rows[block], names), schema))
                for one in written[-1:]:
                    one.result()  # two blocks in memory are enough; an error ends the run here
                written.append(writer.submit(file.write, batches))
            closed = writer.submit(file.close, int(before[shard.stop] - before[shard.start]))
            entries.append(disk.submit(_flushed, file.path, closed))
    shutil.rmtree(_spill_folder(folder), ignore_errors=True)
    for one in written:
        one.result()
    return [entry.result() for entry in entries]


def _flushed(path: Path, closed: Future[ShardEntry]) -> ShardEntry:
    """Wait until a shard is closed and on disk, so that publishing need not; return its entry."""
    entry = closed.result()
    flush(path)
    return entry


def _spill_folder(folder: Path) -> Path:
    return folder.parent / f".{folder.name}-rows"


def _memory() -> int:
    """How many bytes of objects may be read in random order: half of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _sources(
    folder: Path, shards: list[Ints], rows: CompiledRows, names: list[str]
) -> list[CompiledRows | SpilledRows]:
    """Choose where each shard's words are copied from: the objects, or if these exceed memory, spilled files."""
    groups = min(-(-rows.nbytes // _memory()), len(shards))
    if groups < 2:
        return [rows] * len(shards)
    group_of = [i * groups // len(shards) for i in range(len(shards))]
    parts = [np.concatenate([some for some, g in zip(shards, group_of, strict=True) if g == n]) for n in range(groups)]
    spilled = rows.spill(parts, names, _spill_folder(folder))
    return [spilled[group] for group in group_of]


def _batches(
    split: PlannedSplit, block: slice, rows: CompiledRows, lists: WordLists, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a block; `lists` are those of all its examples.

    Every batch has buffers of exactly its own size. Arrow pads these with zeros; a slice of a larger one it would pad
    with the bytes that follow. So the bytes of a shard depend on its rows alone.
    """
    for batch in split.batches(block):
        first, last = batch.start - block.start, batch.stop - block.start
        part = {name: _slice(*of_block, first, last) for name, of_block in lists.items()}
        columns = _columns(split.rows[batch], split.repeats[batch], rows, part)
        if split.packs is not None:
            columns = packed_columns(columns, split.packs.within(batch))
        yield pa.RecordBatch.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _slice(offsets: Ints, words: npt.NDArray[np.int32], first: int, last: int) -> tuple[Ints, npt.NDArray[np.int32]]:
    """The lists from `first` to `last`. Nothing is copied but offsets."""
    offsets = offsets[first : last + 1]
    return offsets - offsets[0], words[offsets[0] : offsets[-1]]


def _columns(chosen: Ints, repeats: Ints, rows: CompiledRows, lists: WordLists) -> dict[str, pa.Array]:
    """All columns of the chosen rows, in this order, with their provenance."""
    small = rows.small.take(pa.array(chosen))
    columns: dict[str, pa.Array] = dict(zip(small.schema.names, small.columns, strict=True))
    for name, (offsets, words) in lists.items():
        is_spans = name.endswith("spans")
        columns[name] = _spans(offsets, words, rows) if is_spans else _list_array(name, offsets, words)
    lengths = np.diff(lists["input_ids"][0]).astype(np.int32)
    columns["seq_lens"] = pa.ListArray.from_arrays(np.arange(len(chosen) + 1, dtype=np.int32), lengths)
    columns["repeat"] = pa.array(repeats.astype(np.int32))
    return columns


def _spans(offsets: Ints, words: npt.NDArray[np.int32], rows: CompiledRows) -> pa.ListArray:
    """Spans as shards have them, of pairs (owner, number of tokens)."""
    owner, count = words.reshape(-1, 2).T
    role, key = (names.take(pa.array(owner)) for names in rows.owners)
    spans = pa.StructArray.from_arrays([role, key, pa.array(count)], fields=list(SPANS.value_type))
    return pa.ListArray.from_arrays((offsets // 2).astype(np.int32), spans)


def _list_array(name: str, offsets: Ints, words: npt.NDArray[np.int32]) -> pa.ListArray:
    if name.endswith("loss_weights"):  # null in rows whose weights are all 0 or 1
        none = pa.array(offsets[1:] == offsets[:-1])
        return pa.ListArray.from_arrays(offsets.astype(np.int32), words.view(np.float32), mask=none)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), words)
