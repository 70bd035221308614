"""The pass over all rows of a set: how long they are, how much of them is trained, and which of them are shown."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.manifest import ShardEntry
from schemas.order import Ints
from schemas.packs import unpacked
from schemas.reader import CompiledSet, MappedShards

SHARES = 20
"""The number of bars of the histogram of trained shares."""
LONGEST = 100_000
"""Rows of more tokens are counted and not shown: decoding one takes about 1 KB a token."""
Track = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass
class Figures:
    """The rows of a dataset: how many there are of each length and of each trained share."""

    rows: int = 0
    tokens: int = 0
    trained: int = 0
    lengths: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    shares: Ints = field(default_factory=lambda: np.zeros(SHARES, np.int64))

    def add(self, lengths: Ints, trained: Ints, tokens: Ints) -> None:
        """Count some rows. `tokens` differs from `lengths` in pairs, of which the longer side is the length."""
        self.rows += len(lengths)
        self.tokens += int(tokens.sum())
        self.trained += int(trained.sum())
        counts = np.bincount(lengths, minlength=len(self.lengths))
        counts[: len(self.lengths)] += self.lengths
        self.lengths = counts
        share = trained / np.maximum(tokens, 1)
        self.shares += np.bincount(np.minimum((share * SHARES).astype(np.int64), SHARES - 1), minlength=SHARES)

    def quantile(self, part: float) -> int:
        """The smallest length that this part of the rows does not exceed."""
        return int(np.searchsorted(np.cumsum(self.lengths), part * self.rows)) if self.rows else 0


@dataclass
class Measured:
    """What one pass over a set found. `drawn` has (split, number) in the order in which rows are to be shown."""

    figures: dict[str, Figures]
    drawn: list[tuple[str, int]]
    fills: Ints
    """Packs by how full they are, in 20 steps; zeros for sets that are not packed."""
    too_long: int
    """The number of rows that are never drawn, because they are longer than LONGEST."""


class _ReadShards(MappedShards):
    """Shards in a folder, read instead of mapped: pages of a mapping stay in memory as long as there is room."""

    def read(self, shard: ShardEntry, offset: int, length: int, *, again: bool = False) -> pa.Buffer:
        super().read(shard, offset, 0, again=again)  # checks the file and its size
        with (self.folder / shard["file"]).open("rb") as file:
            return pa.py_buffer(os.pread(file.fileno(), length, offset))


def read_plainly(opened: CompiledSet) -> CompiledSet:
    """The same set, with shards in a folder read a batch at a time."""
    files = opened.files
    return CompiledSet(opened.folder, opened.manifest, _ReadShards(files)) if isinstance(files, Path) else opened


def measure(opened: CompiledSet, shown: int, seed: int, track: Track = iter) -> Measured:
    """Read all rows once; draw `shown` of them, from the datasets of each split in turn."""
    generator = np.random.Generator(np.random.PCG64(seed))
    found = Measured({}, [], np.zeros(20, np.int64), 0)
    drawn: dict[tuple[str, str], tuple[npt.NDArray[np.float64], Ints]] = defaultdict(
        lambda: (np.empty(0), np.empty(0, np.int64))
    )
    splits = [opened.split(name) for name in opened.manifest["splits"]]
    names = {entry["name"]: place for place, entry in enumerate(opened.manifest["datasets"])}
    starts = dict.fromkeys(opened.manifest["splits"], 0)
    for split, number in track([(one, number) for one in splits for number in range(len(one.entries))]):
        batch = split.batch(number)
        if opened.is_packed:
            found.fills += _fills(batch, opened.manifest["packing"]["length"])
            batch = unpacked(batch, opened.kind)
        lengths, trained, tokens = _lengths(batch, opened)
        keys = generator.random(len(lengths))
        found.too_long += int((lengths > LONGEST).sum())
        for name, rows in _by_dataset(batch):
            if name not in names:
                raise opened.damage(f"rows of the dataset {name!r}, which the manifest does not list")
            found.figures.setdefault(name, Figures()).add(lengths[rows], trained[rows], tokens[rows])
            short = rows[lengths[rows] <= LONGEST]
            earlier = drawn[split.name, name]
            all_keys = np.concatenate([earlier[0], keys[short]])
            numbers = np.concatenate([earlier[1], starts[split.name] + short])
            first = np.argsort(all_keys, kind="stable")[:shown]
            drawn[split.name, name] = all_keys[first], numbers[first]
        starts[split.name] += len(lengths)
    turns = [(turn, key, int(n)) for key, (_, numbers) in drawn.items() for turn, n in enumerate(numbers)]
    order = {name: place for place, name in enumerate(opened.manifest["splits"])}
    turns.sort(key=lambda one: (one[0], order[one[1][0]], names[one[1][1]]))
    found.drawn = [(split_name, number) for _, (split_name, _), number in turns[:shown]]
    return found


def _by_dataset(batch: pa.RecordBatch) -> Iterator[tuple[str, Ints]]:
    """Yield each dataset of a batch with the numbers of its rows."""
    coded = pc.dictionary_encode(batch.column("dataset"))
    codes = coded.indices.to_numpy()
    for code, name in enumerate(coded.dictionary.to_pylist()):
        yield name, np.flatnonzero(codes == code)


def _lengths(batch: pa.RecordBatch, opened: CompiledSet) -> tuple[Ints, Ints, Ints]:
    """The lengths of rows as the model sees them, their trained tokens, and the tokens of both sides of pairs."""
    lengths = _of_lists(batch.column("input_ids"))
    media = opened.manifest.get("media")
    extra = np.zeros(len(lengths), np.int64)
    if media is not None and not media["repeats_pad"]:  # one placeholder stands for all tokens of an image
        extra = sum((_beyond(batch.column(name)) for name in ("images", "videos")), extra)
    lengths = lengths + extra
    tokens = lengths
    if "rejected_input_ids" in batch.schema.names:
        other = _of_lists(batch.column("rejected_input_ids")) + extra
        lengths, tokens = np.maximum(lengths, other), lengths + other
    return lengths, batch.column("num_trained").to_numpy().astype(np.int64), tokens


def _beyond(media: pa.ListArray) -> Ints:
    """The tokens of each row's media beyond their placeholders."""
    tokens = media.flatten().field("num_tokens").to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(_of_lists(media))])
    return np.diff(np.concatenate([[0], np.cumsum(tokens - 1)])[ends])


def _of_lists(column: pa.ListArray) -> Ints:
    return np.asarray(pc.fill_null(pc.list_value_length(column), 0), dtype=np.int64)


def _fills(batch: pa.RecordBatch, length: int) -> Ints:
    share = _of_lists(batch.column("input_ids")) / max(length, 1)
    return np.bincount(np.clip((share * 20).astype(np.int64), 0, 19), minlength=20)
