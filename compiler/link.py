"""Rows of a plan, copied from the objects into shards, as they are or several to a pack. Nothing is encoded here.

A shard is an Arrow IPC file of record batches; each batch gets its own fast digest, so that a trainer can check what
it is about to use, and the whole file a sha256, which is its identity. While a shard is written and hashed, by a thread
of its own, the next one is gathered.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from compiler.gather import Bucket, Rows
from compiler.mix import Plan
from compiler.order import Ints
from compiler.pack import Packs, pack, packed_table
from schemas.arrow import SPANS, WORD_LISTS, shard_schema

SHARD_TOKENS = 32 << 20
"""Tokens after which a shard is closed: about 256 MB."""
BATCH_ROWS = 512


@dataclass(frozen=True)
class Split:
    """The examples of one split in order: rows int64[N] (numbers among all rows), repeats int64[N], and their packs."""

    rows: Ints
    repeats: Ints
    packs: Packs | None = None

    def shards(self, tokens: Ints) -> list[slice]:
        """Return the examples of each shard; `tokens` int64[N]. A pack is never cut."""
        ends = np.cumsum(tokens)
        edges = np.arange(len(self.rows) + 1) if self.packs is None else self.packs.edges
        before = np.concatenate([[0], ends])[edges[:-1]]
        first = edges[:-1][np.flatnonzero(np.diff(before // SHARD_TOKENS, prepend=-1))].tolist()
        return [slice(a, b) for a, b in zip(first, [*first[1:], len(self.rows)], strict=True)]


def split_of(plan: Plan, val: bool, starts: Ints) -> Split:
    """Return the plan's rows of one split; `starts` is the number of each dataset's first row, int64[D]."""
    chosen = np.flatnonzero(plan.val == val)
    return Split(starts[plan.dataset[chosen]] + plan.position[chosen], plan.repeat[chosen])


def packed(split: Split, rows: Rows, length: int) -> Split:
    """Return the split in packs of at most `length` tokens."""
    order, packs = pack(rows.light.column("length").to_numpy()[split.rows].astype(np.int64), length)
    return Split(split.rows[order], split.repeats[order], packs)


def write_split(folder: Path, split: Split, rows: Rows, kind: str) -> list[dict[str, Any]]:
    """Write one split as shards; return their manifest entries."""
    if not len(split.rows):
        return []
    folder.mkdir(parents=True)
    schema = shard_schema(kind, packed=split.packs is not None)
    names = [name for name in WORD_LISTS if name in schema.names]
    tokens = rows.light.column("length").to_numpy()[split.rows].astype(np.int64)
    shards = split.shards(tokens)
    stores = _stores(folder, [split.rows[shard] for shard in shards], rows, names)
    entries: list[Future[dict[str, Any]]] = []
    with ThreadPoolExecutor(1) as writer:
        for number, (shard, store) in enumerate(zip(shards, stores, strict=True)):
            table = _table(rows, store, split.rows[shard], split.repeats[shard], names)
            if split.packs is not None:
                table = packed_table(table, split.packs.within(shard))
            path = folder / f"shard-{number:05d}.arrow"
            if entries:
                entries[-1].result()  # two shards in memory are enough; an error ends the run here
            table = table.select(schema.names).cast(schema)
            entries.append(writer.submit(_write_shard, path, table, is_packed=split.packs is not None))
            del table
    shutil.rmtree(_buckets(folder), ignore_errors=True)
    return [entry.result() | {"tokens": int(tokens[s].sum())} for entry, s in zip(entries, shards, strict=True)]


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


def _table(rows: Rows, store: Rows | Bucket, chosen: Ints, repeats: Ints, names: list[str]) -> pa.Table:
    """Return the rows in this order, with their provenance."""
    light = rows.light.take(pa.array(chosen)).combine_chunks()
    columns: dict[str, Any] = {name: light.column(name) for name in light.column_names}
    for name, (offsets, values) in store.words(chosen, names).items():
        columns[name] = _list_array(name, offsets, values, rows)
    n = len(chosen)
    lengths = np.diff(columns["input_ids"].offsets.to_numpy())
    columns["seq_lens"] = pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32), lengths)
    columns["repeat"] = pa.array(repeats.astype(np.int32))
    return pa.table(columns)


def _list_array(name: str, offsets: Ints, values: npt.NDArray[np.int32], rows: Rows) -> pa.ListArray:
    if name.endswith("spans"):
        who, count = values.reshape(-1, 2).T
        spoken = [pa.array([who[i] for who in rows.whos], pa.string()).take(pa.array(who)) for i in (0, 1)]
        spans = pa.StructArray.from_arrays([*spoken, pa.array(count)], fields=list(SPANS.value_type))
        return pa.ListArray.from_arrays((offsets // 2).astype(np.int32), spans)
    if name.endswith("loss_weights"):  # null in rows that are weighed evenly
        none = pa.array(offsets[1:] == offsets[:-1])
        return pa.ListArray.from_arrays(offsets.astype(np.int32), values.view(np.float32), mask=none)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), values)


class _Hashed(io.RawIOBase):
    """A file that hashes what is written to it: all of it, and what came since `batch` was last called."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.xxh3 = xxhash.xxh3_128()

    def writable(self) -> bool:
        """Return True: pyarrow asks."""
        return True

    def write(self, data: Any) -> int:
        """Write and hash."""
        self.file.write(data)
        self.sha256.update(data)
        self.xxh3.update(data)
        return len(data)

    def tell(self) -> int:
        """Return how much was written."""
        return self.file.tell()

    def batch(self) -> str:
        """Return the digest of what was written since the last call."""
        found = self.xxh3.hexdigest()
        self.xxh3.reset()
        return found

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        super().close()


def _write_shard(path: Path, table: pa.Table, *, is_packed: bool) -> dict[str, Any]:
    batches: list[dict[str, Any]] = []
    sink = _Hashed(path)
    with sink:
        with pa.ipc.new_file(pa.PythonFile(sink), table.schema) as writer:
            for batch in table.to_batches(max_chunksize=BATCH_ROWS):
                start = sink.tell()
                writer.write_batch(batch)
                length = sink.tell() - start
                batches.append({"offset": start, "length": length, "rows": batch.num_rows, "xxh3": sink.batch()})
                if is_packed:
                    batches[-1]["sequences"] = len(batch.column("seq_lens").flatten())
        size = sink.tell()
    # The writer puts the file's magic and schema before the first batch when that is written: not part of it.
    with path.open("rb") as file:
        header = 16 + int.from_bytes(file.read(16)[12:16], "little")
        file.seek(header)
        first = file.read(batches[0]["length"] - header)
    batches[0] |= {"offset": header, "length": len(first), "xxh3": xxhash.xxh3_128_hexdigest(first)}
    sequences = {"sequences": sum(batch["sequences"] for batch in batches)} if is_packed else {}
    return sequences | {
        "file": f"{path.parent.name}/{path.name}",
        "rows": table.num_rows,
        "trained_tokens": int(np.sum(table.column("num_trained").to_numpy(), dtype=np.int64)),
        "bytes": size,
        "sha256": sink.sha256.hexdigest(),
        "batches": batches,
    }
