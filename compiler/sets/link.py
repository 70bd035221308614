"""The link: rows of a plan become shards, as they are or several to a pack. Nothing is encoded here.

1. A split is cut into shards of some tokens. What a shard holds is planned here (`ShardJob`); any process can write it
   (`write_shard`), since its bytes depend on the job and the objects alone.
2. A shard is cut into blocks, a block into batches of 512 rows or packs. The words of a block are copied from the
   objects, all its batches at once: every object is opened once a block.
3. Meanwhile another thread makes the batches of the block before, writes and hashes them.

The cost is one copy of every byte and two hashes over it; memory holds the words of two blocks for each shard that is
being written, and the small columns of all rows.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compiler.cache.layout import Narrow, narrow
from compiler.cache.small import SmallColumns, exact, repeated
from compiler.sets.mix import MixPlan
from compiler.sets.pack import Packs, pack, packed_columns
from compiler.sets.rows import CompiledRows, PlacedWords
from compiler.sets.shard import ShardWriter
from compiler.sets.words import SpilledRows, WordLists
from compiler.units.compiled import CompiledDataset
from schemas.arrow import IGNORED, SPANS, SPLITS, TEST, shard_schema, word_lists
from schemas.disk import flush
from schemas.manifest import ShardEntry
from schemas.order import Ints

SHARD_TOKENS = 32 << 20
"""Tokens after which a shard is closed: about 256 MB."""
BATCH_ROWS = 512
BLOCK_TOKENS = 8 << 20
"""Tokens that are copied at once: every object that has some of their rows is opened for them."""
ROW_TOKENS = 32
"""Tokens that a row counts as beside its own, in blocks: it has about as many other words."""


@dataclass(frozen=True)
class PlannedSplit:
    """The examples of one split in order: numbers among all rows, [N], repeats, [N], and their packs."""

    rows: Narrow
    repeats: Narrow
    packs: Packs | None = None

    @property
    def edges(self) -> Ints:
        """Where a shard may begin, and the end, int64: at every example, or at every pack."""
        return np.arange(len(self.rows) + 1) if self.packs is None else self.packs.edges

    def shards(self, before: Ints) -> list[slice]:
        """The examples of each shard; `before` int64[N + 1] counts the tokens before each example. Packs stay whole."""
        return _cut(self.edges, before, SHARD_TOKENS)


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
        numbers = starts[plan.dataset[chosen]] + plan.position[chosen]
        split = PlannedSplit(narrow(numbers), narrow(plan.repeat[chosen]))
        splits[name] = split if pack_length is None else _packed(split, rows, pack_length)
    return splits


def _packed(split: PlannedSplit, rows: CompiledRows, length: int) -> PlannedSplit:
    order, packs = pack(_lengths(split, rows), length)
    return PlannedSplit(split.rows[order], split.repeats[order], packs)


def _lengths(split: PlannedSplit, rows: CompiledRows) -> Ints:
    """The tokens of each example, int64[N]."""
    return rows.lengths[split.rows].astype(np.int64)


@dataclass(frozen=True)
class ShardJob:
    """A shard that can be written by any process that sees the cache and the set. Picklable.

    It holds everything of its examples but their words, in order.
    """

    split: str
    file: Path
    kind: str
    small: SmallColumns
    """The columns that are not word lists."""
    repeats: Narrow
    lengths: Narrow
    """The tokens of each example."""
    edges: Ints | None
    """Where packs begin, and the end; None where examples are not packed."""
    words: PlacedWords
    owners: tuple[pa.StringArray, pa.StringArray]

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the shard."""
        return shard_schema(self.kind, packed=self.edges is not None)

    @cached_property
    def of_examples(self) -> pa.Schema:
        """The columns of its examples, if these were not packed."""
        return shard_schema(self.kind)


Link = Callable[[Callable[[ShardJob], ShardEntry], Iterable[ShardJob], int], Iterable[tuple[ShardJob, ShardEntry]]]
"""Writes shards: calls a function with each job, here or elsewhere, of which a worker has so many at once; yields the
jobs as they are done."""


def link(
    folder: Path,
    splits: dict[str, PlannedSplit],
    rows: CompiledRows,
    kind: str,
    run: Link,
    say: Callable[[str, int, int], None],
) -> dict[str, list[ShardEntry]]:
    """Write the splits as shards; return their manifest entries. `say` hears how many examples are written."""
    found: dict[str, list[tuple[Path, ShardEntry]]] = {name: [] for name in splits}
    done = dict.fromkeys(splits, 0)
    jobs = chain.from_iterable(_jobs(folder / name, split, rows, kind) for name, split in splits.items())
    with ThreadPoolExecutor(1) as disk:  # so that publishing need not wait for it
        flushed = []
        for job, entry in run(write_shard, jobs, 1):  # a job of short rows is large
            found[job.split].append((job.file, entry))
            flushed.append(disk.submit(flush, job.file))
            done[job.split] += len(job.repeats)
            say(job.split, done[job.split], len(splits[job.split].rows))
    for one in flushed:
        one.result()
    for name in splits:
        shutil.rmtree(_spill_folder(folder / name), ignore_errors=True)
        for half in (folder / name).glob(".*"):  # of a machine that fell silent
            half.unlink()
    return {name: [entry for _, entry in sorted(some, key=itemgetter(0))] for name, some in found.items()}


def _jobs(folder: Path, split: PlannedSplit, rows: CompiledRows, kind: str) -> Iterator[ShardJob]:
    """Yield the shards of a split, whose folder is made."""
    if not len(split.rows):
        return
    folder.mkdir(parents=True)
    schema = shard_schema(kind)
    names, small = word_lists(schema), [name for name in schema.names if name in rows.small]
    before = np.concatenate([[0], np.cumsum(_lengths(split, rows))])
    shards = split.shards(before)
    sources = _sources(folder, [split.rows[shard] for shard in shards], rows, names)
    for number, (shard, source) in enumerate(zip(shards, sources, strict=True)):
        chosen = split.rows[shard]
        yield ShardJob(
            split=folder.name,
            file=folder.absolute() / f"shard-{number:05d}.arrow",
            kind=kind,
            small=rows.small.take(chosen, small),
            repeats=split.repeats[shard],
            lengths=rows.lengths[chosen],
            edges=None if split.packs is None else split.packs.within(shard).edges,
            words=rows.placed(chosen, names, source),
            owners=rows.owners,
        )


def write_shard(job: ShardJob) -> ShardEntry:
    """Write a shard; return its manifest entry.

    The file gets its name when it is whole: where a machine falls silent and another one writes the shard again, both
    may be at it.
    """
    half = job.file.with_name(f".{job.file.name}-{uuid.uuid4().hex[:8]}")
    edges = np.arange(len(job.repeats) + 1) if job.edges is None else job.edges
    before = np.concatenate([[0], np.cumsum(job.lengths, dtype=np.int64)])
    file = ShardWriter(half, job.schema, job.edges is not None)
    written: list[Future[None]] = []
    with ThreadPoolExecutor(1) as writer:
        for block in _cut(_batch_edges(edges), before + ROW_TOKENS * np.arange(len(before)), BLOCK_TOKENS):
            lists = job.words.lists(block)
            for one in written[-1:]:
                one.result()  # two blocks in memory are enough; an error ends the run here
            written.append(writer.submit(file.write, _batches(job, lists, block, edges)))
    for one in written:
        one.result()
    entry = file.close(f"{job.split}/{job.file.name}", int(before[-1]))
    half.replace(job.file)
    return entry


def _batch_edges(edges: Ints) -> Ints:
    return np.append(edges[:-1:BATCH_ROWS], edges[-1])


def _spill_folder(folder: Path) -> Path:
    return folder.parent / f".{folder.name}-rows"


def _memory() -> int:
    """How many bytes of objects may be read in random order: half of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _sources(folder: Path, shards: list[Narrow], rows: CompiledRows, names: list[str]) -> Sequence[SpilledRows | None]:
    """Choose where each shard's words are copied from: the objects (None), or if these exceed memory, spilled files."""
    groups = min(-(-rows.nbytes // _memory()), len(shards))
    if groups < 2:
        return [None] * len(shards)
    group_of = [i * groups // len(shards) for i in range(len(shards))]
    parts = [np.concatenate([some for some, g in zip(shards, group_of, strict=True) if g == n]) for n in range(groups)]
    spilled = rows.spill(parts, names, _spill_folder(folder))
    return [spilled[group] for group in group_of]


def _batches(job: ShardJob, lists: WordLists, block: slice, edges: Ints) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a block with these word lists.

    Every batch has buffers of exactly its own size. Arrow pads these with zeros; a slice of a larger one it would pad
    with the bytes that follow. So the bytes of a shard depend on its rows alone.
    """
    alike: Alike = {}
    edges = edges[(edges >= block.start) & (edges <= block.stop)]
    for first, last in pairwise(_batch_edges(edges).tolist()):
        inside = first - block.start, last - block.start
        # Labels are made a batch at a time: what is needed for them stays in the processor's cache.
        some = with_labels({name: _slice(*found, *inside) for name, found in lists.items()})
        columns = _columns(job, slice(first, last), some, alike)
        if job.edges is not None:
            columns = packed_columns(columns, Packs(job.edges).within(slice(first, last)))
        arrays = [columns[field.name].cast(field.type) for field in job.schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=job.schema)


def with_labels(lists: WordLists) -> WordLists:
    """The lists with labels in place of the run lengths that say which ids are trained."""
    found = {}
    for name, (offsets, words) in lists.items():
        found[name] = offsets, words
        if name.endswith("trained"):
            run = np.arange(len(words)) - np.repeat(offsets[:-1], np.diff(offsets))  # counted within its row
            ids_offsets, ids = lists[name.replace("trained", "input_ids")]
            labels = np.repeat(np.where(run % 2 == 1, _ANY, np.int32(IGNORED)), words)
            np.minimum(labels, ids, out=labels)  # takes half the time of np.where
            found[name.replace("trained", "labels")] = ids_offsets, labels
            del found[name]
    return found


_ANY = np.int32(np.iinfo(np.int32).max)
"""No id is above it, and all are above `IGNORED`."""


def _slice(offsets: Ints, words: npt.NDArray[np.int32], first: int, last: int) -> tuple[Ints, npt.NDArray[np.int32]]:
    """The lists from `first` to `last`. Nothing is copied but offsets."""
    offsets = offsets[first : last + 1]
    return offsets - offsets[0], words[offsets[0] : offsets[-1]]


Alike = dict[tuple[str, int], pa.Array]
"""By column whose rows are all equal, and number of rows."""


def _columns(job: ShardJob, batch: slice, lists: WordLists, alike: Alike) -> dict[str, pa.Array]:
    """All columns of a batch, with the provenance of its rows."""
    count = batch.stop - batch.start
    types = {field.name: field.type for field in job.of_examples}
    columns = {name: exact(column[batch], types[name]) for name, column in job.small.others.items()}
    for name, one in job.small.same.items():
        if (name, count) not in alike:
            alike[name, count] = repeated(one.cast(types[name]), count)
        columns[name] = alike[name, count]
    for name, (offsets, words) in lists.items():
        is_spans = name.endswith("spans")
        columns[name] = _spans(offsets, words, job.owners) if is_spans else _list_array(name, offsets, words)
    lengths = np.diff(lists["input_ids"][0]).astype(np.int32)
    columns["seq_lens"] = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), lengths)
    columns["repeat"] = pa.array(job.repeats[batch].astype(np.int32))
    return columns


def _spans(offsets: Ints, words: npt.NDArray[np.int32], owners: tuple[pa.StringArray, pa.StringArray]) -> pa.ListArray:
    """Spans as shards have them, of pairs (owner, number of tokens)."""
    owner, count = words.reshape(-1, 2).T
    role, key = (names.take(pa.array(owner)) for names in owners)
    spans = pa.StructArray.from_arrays([role, key, pa.array(count)], fields=list(SPANS.value_type))
    return pa.ListArray.from_arrays((offsets // 2).astype(np.int32), spans)


def _list_array(name: str, offsets: Ints, words: npt.NDArray[np.int32]) -> pa.ListArray:
    if name.endswith("loss_weights"):  # null in rows whose weights are all 0 or 1
        none = pa.array(offsets[1:] == offsets[:-1])
        return pa.ListArray.from_arrays(offsets.astype(np.int32), words.view(np.float32), mask=none)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), words)
