"""What every batch of a shard must be before a process works with it: a valid one, with columns that fit together.

Digests show that a batch is as it was written. They say nothing of who wrote it: a set may come from elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.arrow import IGNORED, OF_SEQUENCES
from schemas.order import Ints


def read_batch(data: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """The batch in these bytes; ValueError if they are none, or one that could crash what works with it."""
    batch = _valid(data, schema, schema.names)
    for problem in _problems(batch):
        raise ValueError(problem)
    return batch


def read_columns(data: pa.Buffer, schema: pa.Schema, names: list[str]) -> pa.RecordBatch:
    """Some columns of the batch in these bytes, and nothing of the others; ValueError as in `read_batch`."""
    batch = _valid(data, schema, names)
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if not field.nullable and column.null_count:
            raise ValueError(f"{field.name} has no value in {column.null_count} rows")
    return batch


def _valid(data: pa.Buffer, schema: pa.Schema, names: list[str]) -> pa.RecordBatch:
    try:
        message = pa.ipc.read_message(data)
        if _is_compressed(message.metadata):
            raise ValueError("it is compressed, which no shard is")
        batch = pa.ipc.read_record_batch(message, schema).select(names)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, struct.error) as error:
        raise ValueError(str(error)) from error
    return batch


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Whether a message's buffers are compressed: few bytes could ask for any amount of memory then."""

    def field(table: int, number: int) -> int:
        """The place of a field of a flatbuffer's table; 0 if it has none."""
        vtable = table - struct.unpack_from("<i", data, table)[0]
        size = struct.unpack_from("<H", data, vtable)[0]
        inside = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0] if 4 + 2 * number < size else 0
        return table + inside if inside else 0

    data = memoryview(metadata)
    header = field(struct.unpack_from("<I", data)[0], 2)
    return bool(header and field(header + struct.unpack_from("<I", data, header)[0], 3))


def _problems(batch: pa.RecordBatch) -> Iterator[str]:
    """Yield what is wrong with the columns."""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if not field.nullable and column.null_count:
            yield f"{field.name} has no value in {column.null_count} rows"
    names = batch.schema.names
    for side in ("", "rejected_") if "rejected_input_ids" in names else ("",):
        yield from _of_side(batch, side)
    if not np.array_equal(_sums(batch.column("seq_lens")), _lengths(batch.column("input_ids"))):
        yield "seq_lens does not add up to the tokens"
    if pa.types.is_list(batch.schema.field("dataset").type):
        examples = _lengths(batch.column("seq_lens"))
        for name in OF_SEQUENCES:
            if not np.array_equal(_lengths(batch.column(name)), examples):
                yield f"{name} is not as long as seq_lens"
    for name in ("images", "videos"):
        media = batch.column(name)
        position = media.flatten().field("position").to_numpy(zero_copy_only=False)
        if np.any((position < 0) | (position >= np.repeat(_lengths(batch.column("input_ids")), _lengths(media)))):
            yield f"{name} stand outside of the tokens"


def _of_side(batch: pa.RecordBatch, side: str) -> Iterator[str]:
    ids, labels, weights = (batch.column(f"{side}{name}") for name in ("input_ids", "labels", "loss_weights"))
    if not np.array_equal(_lengths(labels), _lengths(ids)):
        yield f"{side}labels is not as long as {side}input_ids"
        return
    given = weights.is_valid().to_numpy(zero_copy_only=False)
    if not np.array_equal(_lengths(weights)[given], _lengths(ids)[given]):
        yield f"{side}loss_weights is not as long as {side}input_ids"
    spans = batch.column(f"{side}spans").flatten()
    if any(part.null_count for part in (ids.flatten(), labels.flatten(), weights.flatten(), spans)):
        yield f"a list of {side}input_ids, labels, loss_weights or spans has a null in it"
        return
    counts = spans.field("num_tokens").to_numpy()
    if np.any(counts < 0) or not np.array_equal(_totals(_lengths(batch.column(f"{side}spans")), counts), _lengths(ids)):
        yield f"{side}spans do not add up to the tokens"
    numbers, targets = ids.flatten().to_numpy(), labels.flatten().to_numpy()
    if numbers.size and numbers.min() < 0:
        yield f"{side}input_ids has a number below 0"
    if not np.all((targets == numbers) | (targets == IGNORED)):
        yield f"{side}labels are neither the ids nor {IGNORED}"
    factors = weights.flatten().to_numpy()
    if not np.all((factors >= 0) & (factors < np.inf)):
        yield f"{side}loss_weights are not all numbers from 0 on"


def _lengths(column: pa.ListArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The length of each list; 0 for a null."""
    return np.asarray(column.value_lengths().fill_null(0), dtype=np.int64)


def _sums(column: pa.ListArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The sum of each list."""
    return _totals(_lengths(column), column.flatten().to_numpy(zero_copy_only=False))


def _totals(lengths: Ints, values: np.ndarray[Any, Any]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The sum of each run of values, by the lengths of the runs."""
    ends = np.cumsum([0, *lengths])
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return np.asarray(total[ends[1:]] - total[ends[:-1]], dtype=np.int64)
