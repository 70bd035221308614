"""Rows of a plan, taken from the memory-mapped objects into shards. Nothing is encoded here.

A shard is an Arrow IPC file of record batches; each batch gets its own fast digest, so that a trainer can check what
it is about to use, and the whole file a sha256, which is its identity.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from compiler.mix import Plan
from schemas.arrow import shard_schema
from schemas.order import Ints

SHARD_TOKENS = 32 << 20
"""Tokens after which a shard is closed: about 256 MB."""
BATCH_ROWS = 512


@dataclass(frozen=True)
class Part:
    """One unit's rows and where they come from: file label, the row number and the byte at which the unit begins."""

    table: pa.Table
    file: str
    first_row: int
    offset: int


@dataclass
class Source:
    """One dataset's parts in order; a position of the plan counts through them."""

    name: str
    parts: list[Part]

    def starts(self) -> Ints:
        """Return the position at which each part begins, and the total, int64[P + 1]."""
        return np.concatenate([[0], np.cumsum([part.table.num_rows for part in self.parts])]).astype(np.int64)


def write_split(folder: Path, plan: Plan, val: bool, sources: list[Source], kind: str) -> list[dict[str, Any]]:
    """Write the plan's rows of one split as shards; return their manifest entries."""
    chosen = np.flatnonzero(plan.val == val)
    if not len(chosen):
        return []
    folder.mkdir(parents=True)
    tokens = _tokens(plan, chosen, sources)
    shard_of = (np.cumsum(tokens) - tokens) // SHARD_TOKENS
    entries = []
    for number, rows in enumerate(np.split(chosen, np.flatnonzero(np.diff(shard_of)) + 1)):
        path = folder / f"shard-{number:05d}.arrow"
        entries.append(_write_shard(path, plan, rows, sources, shard_schema(kind)))
    return entries


def _tokens(plan: Plan, chosen: Ints, sources: list[Source]) -> Ints:
    tokens = np.empty(len(chosen), dtype=np.int64)
    for number, source in enumerate(sources):
        mine = plan.dataset[chosen] == number
        if mine.any():
            lengths = np.concatenate([part.table.column("length").to_numpy() for part in source.parts])
            tokens[mine] = lengths[plan.position[chosen][mine]]
    return tokens


def _lengths(table: pa.Table) -> Ints:
    column = table.column("input_ids")
    return np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks] or [np.empty(0)]).astype(
        np.int64
    )


def _write_shard(path: Path, plan: Plan, rows: Ints, sources: list[Source], schema: pa.Schema) -> dict[str, Any]:
    taken = _take(plan, rows, sources)
    table = taken.select(schema.names).cast(schema)
    batches = []
    with path.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in table.to_batches(max_chunksize=BATCH_ROWS):
            start = file.tell()
            writer.write_batch(batch)
            batches.append({"offset": start, "length": file.tell() - start, "rows": batch.num_rows})
    with pa.memory_map(str(path), "r") as source:
        data = memoryview(source.read_buffer())
        # The writer puts the file's magic and schema before the first batch when that is written: not part of it.
        header = 16 + int.from_bytes(data[12:16], "little")
        if batches:
            batches[0] = {"offset": header, "length": batches[0]["length"] - header, "rows": batches[0]["rows"]}
        for entry in batches:
            entry["xxh3"] = xxhash.xxh3_128_hexdigest(data[entry["offset"] : entry["offset"] + entry["length"]])
        sha256 = hashlib.sha256(data).hexdigest()
        size = len(data)
        data.release()
    return {
        "file": f"{path.parent.name}/{path.name}",
        "rows": table.num_rows,
        "tokens": int(np.sum(taken.column("length").to_numpy(), dtype=np.int64)),
        "trained_tokens": int(np.sum(table.column("num_trained").to_numpy(), dtype=np.int64)),
        "bytes": size,
        "sha256": sha256,
        "batches": batches,
    }


def _take(plan: Plan, rows: Ints, sources: list[Source]) -> pa.Table:
    """Return the rows in the plan's order, with their provenance."""
    pieces: list[pa.Table] = []
    places: list[Ints] = []
    for number, source in enumerate(sources):
        mine = np.flatnonzero(plan.dataset[rows] == number)
        if not len(mine):
            continue
        positions, repeats = plan.position[rows][mine], plan.repeat[rows][mine]
        starts = source.starts()
        part_of = np.searchsorted(starts, positions, side="right") - 1
        for p in np.unique(part_of).tolist():
            here = np.flatnonzero(part_of == p)
            local = positions[here] - starts[p]
            pieces.append(_shard_columns(source.name, source.parts[p], local, repeats[here]))
            places.append(mine[here])
    table = pa.concat_tables(pieces)
    order = np.empty(len(rows), dtype=np.int64)
    order[np.concatenate(places)] = np.arange(len(rows))
    return table.take(pa.array(order)).combine_chunks()


def _shard_columns(dataset: str, part: Part, local: Ints, repeats: Ints) -> pa.Table:
    taken = part.table.take(pa.array(local)).combine_chunks()
    n = taken.num_rows
    lengths = _lengths(taken).astype(np.int32)
    kept = {name: taken.column(name) for name in taken.column_names if name not in ("index", "fingerprint", "group")}
    columns = kept | {
        "seq_lens": pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32), lengths),
        "dataset": pa.repeat(dataset, n),
        "file": pa.repeat(part.file, n),
        "row": pa.array(taken.column("index").to_numpy() + part.first_row),
        "offset": pc.add(taken.column("offset"), part.offset),
        "repeat": pa.array(repeats.astype(np.int32)),
    }
    return pa.table(columns)


def prints(table: pa.Table, name: str) -> npt.NDArray[np.bytes_]:
    """Return a column of 16 bytes as S16[N]."""
    column = table.column(name).combine_chunks()
    buffer = column.buffers()[1] if len(column) else None
    if buffer is None:
        return np.empty(0, dtype="S16")
    return np.frombuffer(buffer, dtype="S16", count=len(column), offset=column.offset * 16)
