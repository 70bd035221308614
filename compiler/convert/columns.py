"""What the columns of several targets are made of. Everything is cut with numpy, a batch at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from compiler.convert.base import Columns
from schemas.arrow import IGNORED
from schemas.order import Ints


def edges(column: pa.ListArray) -> Ints:
    """Where the lists of a column begin in its flattened values, and the end: int64[N + 1]."""
    return np.concatenate([[0], np.cumsum(pc.list_value_length(column).to_numpy(), dtype=np.int64)])


def like(column: pa.ListArray, values: npt.NDArray[np.generic]) -> pa.ListArray:
    """Lists as long as those of a column, of other values."""
    return pa.ListArray.from_arrays(edges(column).astype(np.int32), pa.array(values))


def ones(column: pa.ListArray) -> pa.ListArray:
    """An attention mask for rows that are not padded."""
    return like(column, np.ones(len(column.flatten()), np.int8))


def cut(column: pa.ListArray, starts: Ints, stops: Ints) -> pa.ListArray:
    """A part of each list, from `starts` to `stops`, which count within the list."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(edges(column)[:-1] + starts - (ends - lengths), lengths)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(column.flatten().to_numpy()[at]))


def joined(first: pa.ListArray, second: pa.ListArray) -> pa.ListArray:
    """Each list of one column followed by that of another."""
    a, b = edges(first), edges(second)
    offsets = a + b
    values = np.empty(offsets[-1], first.flatten().to_numpy().dtype)
    for one, own, shift in ((first, a, b[:-1]), (second, b, a[1:])):
        flat = one.flatten().to_numpy()
        values[np.arange(len(flat)) + np.repeat(shift, np.diff(own))] = flat
    return pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(values))


class Replies(NamedTuple):
    """Where the trained tokens of each row are, int64[N]: the first, behind the last, and how many."""

    first: Ints
    stop: Ints
    trained: Ints


def replies(labels: pa.ListArray) -> Replies:
    """The trained tokens of each row; where there are none, `first` and `stop` are the length."""
    bounds = edges(labels)
    trained = np.flatnonzero(labels.flatten().to_numpy() != IGNORED)
    low, high = np.searchsorted(trained, bounds[:-1]), np.searchsorted(trained, bounds[1:])
    any_ = high > low
    lengths = np.diff(bounds)
    padded = np.append(trained, 0)
    first = np.where(any_, padded[np.minimum(low, len(trained))] - bounds[:-1], lengths)
    stop = np.where(any_, padded[high - 1] + 1 - bounds[:-1], lengths)
    return Replies(first, stop, high - low)


def mismatched(rows: pa.RecordBatch, after: pa.RecordBatch) -> Columns:
    """KTO's mismatched pairs: the prompt of a row, and what follows the prompt in the row after it."""
    own, other = replies(rows.column("labels")).first, replies(after.column("labels")).first
    ends = np.diff(edges(after.column("labels")))
    return {
        name: joined(cut(rows.column(name), np.zeros_like(own), own), cut(after.column(name), other, ends))
        for name in ("input_ids", "labels")
    }


def sequence_starts(rows: pa.RecordBatch) -> Ints:
    """Where the examples of a batch of packs begin among its tokens, int64."""
    lengths = rows.column("seq_lens").flatten().to_numpy().astype(np.int64)
    return np.cumsum(lengths) - lengths


def predicted_labels(rows: pa.RecordBatch) -> npt.NDArray[np.int32]:
    """The labels of packs without those of first tokens, which no token of their own example predicts."""
    labels: npt.NDArray[np.int32] = rows.column("labels").flatten().to_numpy().copy()
    labels[sequence_starts(rows)] = IGNORED
    return labels
