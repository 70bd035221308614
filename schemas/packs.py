"""What a row of a packed set holds: examples one after the other, and how they are told apart again.

A pack's `seq_lens` are the lengths of its examples. Columns of `OF_SEQUENCES` have one element for each; tokens, labels
and weights follow each other; spans too; media know their position from the start of the pack.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import IGNORED, MEDIA, OF_SEQUENCES, shard_schema

MEDIA_COLUMNS = ("images", "videos")


def unpacked(batch: pa.RecordBatch, kind: str) -> pa.RecordBatch:
    """Turn a batch of packs into the batch of their examples, as an unpacked set of this kind has them.

    Everything is cut at the same places, column by column: the cost is that of copying the weights and the media.
    """
    lengths = batch.column("seq_lens").flatten().to_numpy()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    packs = np.concatenate([[0], np.cumsum(pc.list_value_length(batch.column("seq_lens")).to_numpy())])
    columns: dict[str, Any] = {name: batch.column(name).flatten() for name in OF_SEQUENCES}
    columns["seq_lens"] = lists(np.arange(len(starts)), pa.array(lengths))
    columns |= {name: lists(starts, batch.column(name).flatten()) for name in ("input_ids", "labels")}
    trained = batch.column("labels").flatten().to_numpy() != IGNORED
    columns["num_trained"] = pa.array(np.add.reduceat(trained, starts[:-1], dtype=np.int32))
    spans = batch.column("spans").flatten()
    ends = np.concatenate([[0], np.cumsum(spans.field("num_tokens").to_numpy())])
    columns["spans"] = lists(np.searchsorted(ends, starts), spans)
    weights = trained.astype(np.float32)
    given = np.repeat(np.repeat(np.asarray(batch.column("loss_weights").is_valid()), np.diff(packs)), lengths)
    weights[given] = batch.column("loss_weights").flatten().to_numpy()
    columns["loss_weights"] = weight_lists(starts, weights)
    for name in MEDIA_COLUMNS:
        media = batch.column(name)
        of_pack = np.repeat(np.arange(len(media)), pc.list_value_length(media).to_numpy())
        values = media.flatten()
        position = values.field("position").to_numpy() + starts[packs[of_pack]]
        owner = np.searchsorted(starts, position, side="right") - 1
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(lengths)))])
        columns[name] = lists(offsets, media_at(values, position - starts[owner]))
    schema = shard_schema(kind)
    return pa.RecordBatch.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)


def lists(edges: npt.NDArray[Any], values: Any) -> pa.ListArray:
    """Lists of the values between each two edges, int64[N + 1]."""
    return pa.ListArray.from_arrays(edges.astype(np.int32), values)


def weight_lists(edges: npt.NDArray[np.integer[Any]], weights: npt.NDArray[np.float32]) -> pa.ListArray:
    """The column `loss_weights` of rows between these edges: null where all weights of a row are 0 or 1."""
    others = (weights != 0) & (weights != 1)
    if not others.any():  # of most batches
        none = np.zeros(len(edges), np.int32)
        return pa.ListArray.from_arrays(none, weights[:0], mask=pa.array(np.ones(len(edges) - 1, np.bool_)))
    lengths = np.diff(edges)
    uneven = np.logical_or.reduceat(np.append(others, False), edges[:-1]) & (lengths > 0)
    kept = np.concatenate([[0], np.cumsum(np.where(uneven, lengths, 0))]).astype(np.int32)
    given = weights if uneven.all() else weights[np.repeat(uneven, lengths)]
    return pa.ListArray.from_arrays(kept, given, mask=pa.array(~uneven))


def media_at(media: pa.StructArray, position: npt.NDArray[Any]) -> pa.StructArray:
    """The media at other positions."""
    fields = {field.name: media.field(field.name) for field in MEDIA.value_type}
    fields["position"] = pa.array(position.astype(np.int32))
    return pa.StructArray.from_arrays(list(fields.values()), fields=list(MEDIA.value_type))
