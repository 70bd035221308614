"""Compiled sets as training reads them: any row of a split at once, by threads, every batch checked."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import IntegrityError, UsageError
from schemas.manifest import CONVERTED, Manifest, has_media
from schemas.order import Ints
from schemas.packs import unpacked
from schemas.places import Places
from schemas.reader import CompiledSet, SplitReader
from schemas.stores import AnyPath, StorePath
from trainer.data.store import CachedShards

HELD = 4096
"""The most batches of a split that stay mapped."""
FETCHED_AT_ONCE = 16
"""Batches that are fetched from a store, or whose lengths are read, at the same time."""
Row = dict[str, Any]
"""One row's columns: lists as numpy arrays, the rest as Python values."""


class TrainingSet(CompiledSet):
    """A compiled set whose rows are read in any order; batches from an object store are kept on disk."""

    @property
    def cache(self) -> CachedShards | None:
        """What keeps its batches on disk; None of a set in a folder."""
        return self.source if isinstance(self.source, CachedShards) else None

    @classmethod
    def of(cls, folder: AnyPath, manifest: Manifest) -> Self:
        """The set in `folder` with this manifest."""
        opened = super().of(folder, manifest)
        files = opened.files
        return replace(opened, source=CachedShards(files)) if isinstance(files, StorePath) else opened

    @property
    def where(self) -> str:
        """The set's folder, for messages."""
        return str(self.folder)

    @property
    def has_media(self) -> bool:
        """Whether its rows have images or videos."""
        return has_media(self.manifest, "image") or has_media(self.manifest, "video")

    def split(self, name: str) -> SplitRows:
        """The rows of a split; UsageError where it is empty."""
        if not self.shards(name):
            hints = {
                "val": "Compile it with --val-size or --val FILE, or set eval_strategy: no.",
                "test": "Compile it with --test FILE.",
            }
            raise UsageError(f"{self.where}: split {name}", "it is empty", hints.get(name, "Compile some rows."))
        return SplitRows(self, name)


class SplitRows(SplitReader):
    """The rows of a split by number. A batch is read when a row of it is needed, and stays mapped."""

    opened: TrainingSet

    def __init__(self, opened: TrainingSet, name: str) -> None:
        super().__init__(opened, name)
        self._locks = [threading.Lock() for _ in range(FETCHED_AT_ONCE)]
        self._held = functools.lru_cache(self._most_held())(self._read)
        self.more: Callable[[int], Row] | None = None
        """Further columns of a row, by its number, which the set does not have."""
        self.expect: Callable[[pa.RecordBatch], None] | None = None
        """What raises for a batch that is not as the configuration expects."""

    def _most_held(self) -> int:
        """The batches that stay mapped: of a store at most half of what its cache may take, which they keep on disk."""
        if (cache := self.opened.cache) is None:
            return HELD
        return max(1, min(HELD, cache.limit * len(self.entries) // (2 * max(self.size, 1))))

    def batch(self, number: int) -> pa.RecordBatch:
        """Read one batch as `SplitReader` does, and hold it."""
        return self._held(number)

    def _read(self, number: int) -> pa.RecordBatch:
        with self._locks[number % FETCHED_AT_ONCE]:  # so that each is fetched once
            batch = super().batch(number)
        if self.expect is not None:
            self.expect(batch)
        return batch

    @property
    def size(self) -> int:
        """The bytes of its shards."""
        return sum(shard["bytes"] for shard in self.shards)

    def row(self, number: int) -> Row:
        """Row `number` of the split in the set's own order."""
        batch, inside = self.find(number)
        row = _row(self.batch(batch), inside)
        return row if self.more is None else row | self.more(number)

    def sequences(self, number: int) -> list[Row]:
        """The examples of a pack as rows of their own; of an unpacked set, the row itself."""
        if not self.opened.is_packed:
            return [self.row(number)]
        batch, inside = self.find(number)
        examples, first = self._examples(batch)
        return [_row(examples, i) for i in range(first[inside], first[inside + 1])]

    @functools.lru_cache(maxsize=HELD)  # noqa: B019  # tokens and labels are not copied
    def _examples(self, number: int) -> tuple[pa.RecordBatch, Ints]:
        """The examples of a batch of packs, and where those of each pack begin."""
        batch = self.batch(number)
        counts = pc.list_value_length(batch.column("seq_lens")).to_numpy()
        return unpacked(batch, self.opened.kind), np.cumsum([0, *counts])

    def lengths(self, rows: Ints) -> Ints:
        """The tokens of these rows (of both sides of a pair), int64[N]."""
        numbers, of_row = np.unique(np.searchsorted(self.starts, rows, side="right") - 1, return_inverse=True)
        with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
            each = list(pool.map(self._lengths, numbers.tolist()))
        firsts = np.cumsum([0, *map(len, each)])[:-1]
        return np.concatenate([np.empty(0, np.int64), *each])[firsts[of_row] + rows - self.starts[numbers[of_row]]]

    @functools.lru_cache(maxsize=HELD)  # noqa: B019  # a split lives as long as the run
    def _lengths(self, number: int) -> Ints:
        """The tokens of a batch's rows.

        In a folder their bytes alone are read, a few KiB of several MiB: the first step waits for lengths of 64 steps.
        The batch is compared with its digest before a row of it is trained.
        """
        names = [name for name in ("input_ids", "rejected_input_ids") if name in self.schema.names]
        try:
            batch = self.columns(number, names) if self.opened.cache is None else self.batch(number)
        except IntegrityError:
            batch = self.batch(number)  # which says what is damaged
        return np.sum([np.diff(batch.column(name).offsets.to_numpy()) for name in names], axis=0, dtype=np.int64)

    def longest_example(self, batches: int) -> int:
        """The tokens of the longest example in the first batches."""
        return max(self.longest_of(self.batch(number)) for number in range(min(batches, len(self.entries))))

    def longest_of(self, batch: pa.RecordBatch) -> int:
        """The tokens of the longest example of a batch. A picture that is one placeholder counts nothing."""
        media = self.opened.manifest.get("media")
        lengths = pc.list_flatten(batch.column("seq_lens")).to_numpy(zero_copy_only=False)
        if media is not None and not media["repeats_pad"]:
            lengths = lengths - pc.list_value_length(batch.column("images")).to_numpy(zero_copy_only=False)
        return int(lengths.max())

    def describe(self, row: int) -> str:
        """Which row it is and where it is from, for messages."""
        one = self.row(row)
        return f"{'row' if isinstance(one['dataset'], str) else 'pack'} {row} ({from_where(one, self.opened.places)})"


def from_where(row: Row, places: Places) -> str:
    """Where a row is from, for messages: `dataset place`; of a pack the first few examples."""
    several = [row["dataset"]], [row["file"]], [row["row"]]
    if not isinstance(row["dataset"], str):
        several = row["dataset"], row["file"], row["row"]
    shown = [f"{one} {places.place(one, file, int(number))}" for one, file, number in zip(*several, strict=True)]
    return ", ".join(shown[:3]) + (f", ... {len(shown) - 3} more" if len(shown) > 3 else "")


def _row(batch: pa.RecordBatch, inside: int) -> Row:
    found: Row = {}
    for name in batch.schema.names:
        value = batch.column(name)[inside]
        if pa.types.is_list(value.type) and pa.types.is_primitive(value.type.value_type) and value.is_valid:
            found[name] = value.values.to_numpy(zero_copy_only=False)
        else:
            found[name] = value.as_py()
    return found


def check_files(manifest: Manifest, model: Path, known: tuple[str, ...]) -> None:
    """Raise unless the model's tokenizer (chat template, processor) is byte for byte the one of the set.

    `known`: names of files that can change an id or a rendering.
    """
    mine = {
        name.removeprefix("tokenizer/"): digest
        for name, digest in manifest["files"].items()
        if name.startswith("tokenizer/") and not name.startswith(f"{CONVERTED}/")
    }
    for name in sorted({*mine, *(n for n in known if (model / n).is_file())}):
        path = model / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        if found == mine.get(name):
            continue
        what = "it differs from the one that the set was compiled with"
        if name not in mine or found is None:
            what = "there was none when the set was compiled" if found else "the model's folder has none"
        raise IntegrityError(
            str(path), f"not the tokenizer of the set: {what}",
            "Token ids, templates and labels would not fit the model. Compile with --tokenizer "
            f"{model}, or use the model that the set is for (its files are in the set's folder tokenizer).",
        )  # fmt: skip
