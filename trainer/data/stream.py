"""Compiled sets, read: any row of a split at once, every batch of a shard checked before it is used."""

from __future__ import annotations

import functools
import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from schemas.arrow import shard_schema
from schemas.errors import IntegrityError, UsageError
from schemas.manifest import read_manifest
from schemas.order import Ints
from schemas.stores import path_of
from trainer.data.store import Store, store_of

Row = dict[str, Any]
"""One row's columns: lists as numpy arrays, the rest as Python values."""


@dataclass
class Set:
    """A compiled set: its manifest and where its shards are."""

    where: str
    manifest: dict[str, Any]
    store: Store

    @classmethod
    def open(cls, where: str) -> Set:
        """Return the set in a folder or at an object store's URL; InputError or IntegrityError where there is none."""
        folder = path_of(where)
        manifest = read_manifest(folder)
        return cls(str(folder), manifest, store_of(folder, manifest))

    @property
    def kind(self) -> str:
        """sft, pretrain, preference or kto."""
        return str(self.manifest["kind"])

    @property
    def packed(self) -> bool:
        """Whether a row is a pack of sequences."""
        return "packing" in self.manifest

    @property
    def has_media(self) -> bool:
        """Whether the set was compiled for a model that takes images or videos."""
        return self.manifest.get("media") is not None

    def split(self, name: str) -> Split:
        """Return a split's rows; UsageError where it is empty."""
        entry = self.manifest["splits"][name]
        if not entry["rows"]:
            hint = "Compile it with --val-size, or set eval_strategy: no." if name == "val" else "Compile some rows."
            raise UsageError(f"{self.where}: split {name}", "it is empty", hint)
        return Split(self.where, entry["shards"], self.store, shard_schema(self.kind, packed=self.packed))


@dataclass(eq=False)
class Split:
    """The rows of a split. Batches are opened when they are needed, and stay mapped."""

    where: str
    shards: list[dict[str, Any]]
    store: Store
    schema: pa.Schema
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @functools.cached_property
    def _batches(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(shard, batch) for shard in self.shards for batch in shard["batches"]]

    @functools.cached_property
    def _starts(self) -> Ints:
        """int64[batches + 1]: the first row of each batch, and the number of rows."""
        return np.cumsum([0, *(batch["rows"] for _, batch in self._batches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @functools.lru_cache(maxsize=4096)  # noqa: B019  # a split lives as long as the run
    def _read(self, number: int) -> pa.RecordBatch:
        """Return one batch, its digest checked; IntegrityError names the shard and its rows."""
        shard, entry = self._batches[number]
        with self._lock:
            for anew in (False, True):
                data = self.store.read(shard, entry["offset"], entry["length"], again=anew)
                whole = xxhash.xxh3_128_hexdigest(data) == entry["xxh3"]
                if whole:
                    break
        if not whole:
            raise self._damaged(number, "is damaged")
        try:
            # Not through the file's footer, which the digests of batches do not cover: the manifest says where it is.
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(data), self.schema)
        except pa.ArrowInvalid as error:
            raise self._damaged(number, f"is not as its schema says: {error}") from error
        if batch.num_rows != entry["rows"]:
            raise self._damaged(number, f"holds {batch.num_rows} rows")
        return batch

    def _damaged(self, number: int, what: str) -> IntegrityError:
        shard, entry = self._batches[number]
        of_shard = next(i for i, (other, _) in enumerate(self._batches) if other is shard)
        first = int(self._starts[number] - self._starts[of_shard])
        return IntegrityError(
            f"{self.where}/{shard['file']}",
            f"batch with rows {first} to {first + entry['rows'] - 1} {what}",
            "Copy the set again from where it is whole, or compile it again; cli verify names all damage.",
        )

    def _place(self, row: int) -> tuple[pa.RecordBatch, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._read(number), int(row - self._starts[number])

    def row(self, number: int) -> Row:
        """Return row `number` of the split in the set's own order."""
        batch, inside = self._place(number)
        found: Row = {}
        for name in self.schema.names:
            value = batch.column(name)[inside]
            if pa.types.is_list(value.type) and pa.types.is_primitive(value.type.value_type) and value.is_valid:
                found[name] = value.values.to_numpy(zero_copy_only=False)
            else:
                found[name] = value.as_py()
        return found

    def lengths(self, rows: Ints) -> Ints:
        """Return the tokens of these rows (of both sides of a pair); one batch at a time is read."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.zeros(len(rows), np.int64)
        for number in np.unique(numbers):
            mine = numbers == number
            batch = self._read(int(number))
            for name in ("input_ids", "rejected_input_ids"):
                if name in self.schema.names:
                    offsets = batch.column(name).offsets.to_numpy()
                    found[mine] += np.diff(offsets)[rows[mine] - self._starts[number]]
        return found

    def longest_sequence(self) -> int:
        """Return the tokens of the longest sequence; every batch is looked into."""
        batches = (self._read(number) for number in range(len(self._batches)))
        return max(int(pc.max(pc.list_flatten(batch.column("seq_lens"))).as_py()) for batch in batches)

    def describe(self, row: int) -> str:
        """Return where a row is from, for messages: `dataset file:row`, of a pack the first few."""
        one = self.row(row)
        if isinstance(one["dataset"], str):
            return f"row {row} ({one['dataset']} {one['file']}:{one['row']})"
        several = [f"{d} {f}:{r}" for d, f, r in zip(one["dataset"], one["file"], one["row"], strict=True)]
        more = f", ... {len(several) - 3} more" if len(several) > 3 else ""
        return f"pack {row} ({', '.join(several[:3])}{more})"


def sequences(row: Row) -> list[Row]:
    """Return the sequences of a pack as rows of their own; of an unpacked row, itself."""
    if isinstance(row["dataset"], str):
        return [row]
    found, start = [], 0
    for i, length in enumerate(row["seq_lens"]):
        cut = slice(start, start + int(length))
        one = {key: row[key][i] for key in ("dataset", "file", "row")}
        one |= {key: row[key] if row[key] is None else row[key][cut] for key in ("input_ids", "labels", "loss_weights")}
        found.append({**row, **one, "seq_lens": np.array([length])})
        start += int(length)
    return found


def check_files(manifest: dict[str, Any], model: Path, known: tuple[str, ...]) -> None:
    """Raise unless the model's tokenizer (chat template, processor) is the one the set was compiled with, to the byte.

    `known` are the names of files that can decide an id or a rendering.
    """
    mine = {
        name.removeprefix("tokenizer/"): d for name, d in manifest["files"].items() if name.startswith("tokenizer/")
    }
    for name in sorted({*mine, *(n for n in known if (model / n).is_file())}):
        path = model / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        if found == mine.get(name):
            continue
        what = "it is not the one that the set was compiled with"
        if name not in mine or found is None:
            what = "there was none when the set was compiled" if found else "the model's folder has none"
        raise IntegrityError(
            str(path), f"not the tokenizer of the set: {what}",
            "Token ids, templates and labels would not be the model's. Compile with --tokenizer "
            f"{model}, or use the model that the set is for (its files are in the set's folder tokenizer).",
        )  # fmt: skip
