"""A batch of encoded rows as the Arrow columns of an object: flat buffers and offsets, no loop over tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compiler.conversation import Conversation
from compiler.encode import IGNORED, Encoded, Stretch
from compiler.read import Row, Unit
from schemas.arrow import OBJECT, SPANS


def within(offset: int | None, unit: Unit) -> int | None:
    """Return an offset counted from the unit's start: an object serves its unit wherever the unit stands in a file."""
    return None if offset is None else offset - unit.offset


def columns_of(kept: list[tuple[Row, Conversation, Encoded]], unit: Unit) -> pa.RecordBatch:
    """Return the batch's columns from flat buffers and offsets."""
    examples = [example for _, _, example in kept]
    offsets = _offsets([len(example.ids) for example in examples])
    ids = np.concatenate([example.ids for example in examples])
    weights = np.concatenate([example.weights for example in examples])
    labels = np.where(weights > 0, ids, np.int32(IGNORED))
    trained = np.add.reduceat((weights > 0).astype(np.int32), offsets[:-1].astype(np.int64))
    emphasised = np.array([bool(((e.weights != 0) & (e.weights != 1)).any()) for e in examples])
    arrays = {
        "input_ids": pa.ListArray.from_arrays(offsets, ids),
        "labels": pa.ListArray.from_arrays(offsets, labels),
        "loss_weights": _nullable(offsets, weights, emphasised),
        "spans": _spans([example.stretches for example in examples]),
        "num_trained": pa.array(trained, pa.int32()),
        "index": pa.array([row.index for row, _, _ in kept], pa.int64()),
        "offset": pa.array([within(row.offset, unit) for row, _, _ in kept], pa.int64()),
        "fingerprint": pa.array([conversation.fingerprint() for _, conversation, _ in kept], pa.binary(16)),
    }
    return pa.RecordBatch.from_arrays([arrays[name] for name in OBJECT.names], schema=OBJECT)


def _nullable(
    offsets: npt.NDArray[np.int32], weights: npt.NDArray[np.float32], present: npt.NDArray[np.bool_]
) -> pa.ListArray:
    """Return a list column that is null in the rows where it is not `present`."""
    lengths = np.diff(offsets)
    kept = _offsets(np.where(present, lengths, 0).tolist())
    values = weights[np.repeat(present, lengths)]
    return pa.ListArray.from_arrays(kept, values, mask=pa.array(~present))


def _spans(rows: list[list[Stretch]]) -> pa.ListArray:
    merged = [_merge_spans(stretches) for stretches in rows]
    flat = [span for spans in merged for span in spans]
    struct = pa.StructArray.from_arrays(
        [
            pa.array([role for role, _, _ in flat], pa.string()),
            pa.array([key for _, key, _ in flat], pa.string()),
            pa.array([count for _, _, count in flat], pa.int32()),
        ],
        fields=list(SPANS.value_type),
    )
    return pa.ListArray.from_arrays(_offsets([len(spans) for spans in merged]), struct)


def _merge_spans(stretches: list[Stretch]) -> list[tuple[str, str, int]]:
    merged: list[tuple[str, str, int]] = []
    for stretch in stretches:
        if merged and merged[-1][:2] == stretch.who:
            merged[-1] = (*stretch.who, merged[-1][2] + stretch.length)
        else:
            merged.append((*stretch.who, stretch.length))
    return merged


def _offsets(lengths: list[int]) -> npt.NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
