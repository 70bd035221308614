"""A batch of examples as the Arrow columns of an object: flat buffers and offsets, no loop over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from compiler.conversation import Conversation
from compiler.encode.batch import Encoded, joined
from compiler.encode.shapes import Owner
from compiler.read import Row, Unit
from compiler.rows.shingles import shingles_of, signatures
from schemas.arrow import MEDIA, OBJECT, OBJECT_NEAR, SHINGLES
from schemas.packs import weight_lists


@dataclass(slots=True)
class Example:
    """One example of a row, ready to be written. `part` counts the examples of the row."""

    row: Row
    part: int
    conversation: Conversation
    encoded: Encoded
    rejected: Encoded | None = None
    """Preference: the same context with the other reply."""
    piece: int = 0
    """Which piece of its document it is."""


def within(offset: int | None, unit: Unit) -> int | None:
    """An offset counted from the unit's start: an object serves its unit wherever the unit stands in a file."""
    return None if offset is None else offset - unit.offset


def columns_of(kept: list[Example], unit: Unit, owners: dict[Owner, int], *, near: bool = False) -> pa.RecordBatch:
    """The columns of a batch. `owners` numbers the owners of tokens; new ones are added to it.

    With `near`, also those by which near duplicates are found.
    """
    conversations = [example.conversation for example in kept]
    wholes = [conversation.fingerprint() for conversation in conversations]
    prints = wholes
    if any(example.piece for example in kept):
        prints = [_print(whole, example.piece) for whole, example in zip(wholes, kept, strict=True)]
    groups = [one.group or whole for one, whole in zip(conversations, wholes, strict=True)]
    chosen, lengths, trained = _sequences("", [example.encoded for example in kept], owners)
    rejected, more, also_trained = _sequences("rejected_", [example.rejected for example in kept], owners)
    arrays = {
        **chosen,
        **rejected,
        **_media(kept),
        "desirable": pa.array([one.desirable for one in conversations], pa.bool_()),
        "num_trained": pa.array((trained + also_trained).astype(np.int32)),
        "repairs": pa.array([one.repairs or None for one in conversations], pa.list_(pa.string())),
        "part": pa.array([example.part for example in kept], pa.int32()),
        "index": pa.array([example.row.index for example in kept], pa.int64()),
        "offset": pa.array([within(example.row.offset, unit) for example in kept], pa.int64()),
        "length": pa.array((lengths + more).astype(np.int32)),
        "fingerprint": _digests(prints),
        "group": _digests(groups),
    }
    schema = OBJECT
    if near:
        schema = OBJECT_NEAR
        sets = [shingles_of(example.conversation, example.piece) for example in kept]
        arrays |= {"signature": pa.array(signatures(sets), pa.binary()), SHINGLES: _lists(sets)}
    columns = [arrays[field.name].cast(field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _lists(sets: list[npt.NDArray[np.uint32]]) -> pa.ListArray:
    return pa.ListArray.from_arrays(_offsets(np.array(list(map(len, sets)))), np.concatenate(sets).view(np.int32))


def _print(whole: bytes, piece: int) -> bytes:
    """The conversation's fingerprint, another one for each further piece of a document."""
    return xxhash.xxh3_128_digest(whole + piece.to_bytes(8)) if piece else whole


def _digests(some: list[bytes]) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(16), len(some), [None, pa.py_buffer(b"".join(some))])


def _sequences(
    prefix: str, sides: Sequence[Encoded | None], owners: dict[Owner, int]
) -> tuple[dict[str, pa.Array], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The token columns of one side of the examples, null where there is none; the numbers of tokens that the model
    sees, and of trained ones."""
    present = np.array([side is not None for side in sides])
    if not present.any():
        return _no_sequences(prefix, len(sides))
    batch = joined([side for side in sides if side is not None])
    mask = None if present.all() else pa.array(~present)
    offsets = _offsets(_spread(np.diff(batch.edges), present))
    spans, edges = batch.spans(owners)
    runs, counts = batch.trained_runs
    columns = {
        "input_ids": pa.ListArray.from_arrays(offsets, batch.ids, mask=mask),
        "trained": pa.ListArray.from_arrays(_offsets(_spread(counts, present)), runs, mask=mask),
        "loss_weights": weight_lists(offsets, batch.weights),
        "spans": pa.ListArray.from_arrays(_offsets(_spread(2 * np.diff(edges), present)), spans.reshape(-1), mask=mask),
    }
    lengths, trained = np.array(batch.lengths, np.int64), np.array(batch.num_trained, np.int64)
    named = {f"{prefix}{name}": column for name, column in columns.items()}
    return named, _spread(lengths, present), _spread(trained, present)


def _no_sequences(prefix: str, count: int) -> tuple[dict[str, pa.Array], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The same of examples that all lack this side: the other reply of rows that are no pairs."""
    offsets, mask = np.zeros(count + 1, np.int32), pa.array(np.ones(count, np.bool_))
    ids, weights = (pa.ListArray.from_arrays(offsets, np.empty(0, of), mask=mask) for of in (np.int32, np.float32))
    columns = {"input_ids": ids, "trained": ids, "loss_weights": weights, "spans": ids}
    none = np.zeros(count, np.int64)
    return {f"{prefix}{name}": column for name, column in columns.items()}, none, none


def _spread(values: npt.NDArray[np.int64], present: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Values of the examples that have this side, 0 for the others."""
    found = np.zeros(len(present), np.int64)
    found[present] = values
    return found


def _media(kept: list[Example]) -> dict[str, pa.Array]:
    """The references of each kind in each example, with where they stand in the ids."""
    names = {"images": "image", "videos": "video"}
    if any(example.encoded.placed for example in kept):
        return {name: pa.array([_references(example, kind) for example in kept], MEDIA) for name, kind in names.items()}
    none = pa.ListArray.from_arrays(pa.array([0] * (len(kept) + 1), pa.int32()), pa.array([], MEDIA.value_type))
    return dict.fromkeys(names, none)


def _references(example: Example, kind: str) -> list[dict[str, Any]]:
    media = example.conversation.media()
    found = []
    for placed in example.encoded.placed:
        one = media[placed.media]
        if one.kind != kind or one.facts is None:
            continue
        found.append(
            {
                "uri": one.uri,
                "sha256": one.facts.sha256,
                "width": one.facts.width,
                "height": one.facts.height,
                "position": placed.position,
                "num_tokens": placed.num_tokens,
            }
        )
    return found


def _offsets(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
