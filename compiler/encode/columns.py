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
from compiler.encode.shapes import Owner
from compiler.encode.tokens import Encoded, labels_of
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
    wholes = [example.conversation.fingerprint() for example in kept]
    groups = [example.conversation.group or whole for example, whole in zip(kept, wholes, strict=True)]
    chosen, trained = _sequences("", [example.encoded for example in kept], owners)
    rejected, also_trained = _sequences("rejected_", [example.rejected for example in kept], owners)
    lengths = np.array([example.encoded.length for example in kept])
    lengths += np.array([0 if example.rejected is None else example.rejected.length for example in kept])
    arrays = {
        **chosen,
        **rejected,
        "images": pa.array([_media(example, "image") for example in kept], MEDIA),
        "videos": pa.array([_media(example, "video") for example in kept], MEDIA),
        "desirable": pa.array([example.conversation.desirable for example in kept], pa.bool_()),
        "num_trained": pa.array((trained + also_trained).astype(np.int32)),
        "repairs": pa.array([example.conversation.repairs or None for example in kept], pa.list_(pa.string())),
        "part": pa.array([example.part for example in kept], pa.int32()),
        "index": pa.array([example.row.index for example in kept], pa.int64()),
        "offset": pa.array([within(example.row.offset, unit) for example in kept], pa.int64()),
        "length": pa.array(lengths, pa.int32()),
        "fingerprint": pa.array([_print(whole, one.piece) for whole, one in zip(wholes, kept, strict=True)]),
        "group": pa.array(groups),
    }
    schema = OBJECT
    if near:
        schema = OBJECT_NEAR
        sets = [shingles_of(example.conversation, example.piece) for example in kept]
        arrays |= {"signature": pa.array(signatures(sets), pa.binary()), SHINGLES: _lists(sets)}
    columns = [arrays[field.name].cast(field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _lists(sets: list[npt.NDArray[np.uint32]]) -> pa.ListArray:
    return pa.ListArray.from_arrays(_offsets(list(map(len, sets))), np.concatenate(sets).view(np.int32))


def _print(whole: bytes, piece: int) -> bytes:
    """The conversation's fingerprint, another one for each further piece of a document."""
    return xxhash.xxh3_128_digest(whole + piece.to_bytes(8)) if piece else whole


def _sequences(
    prefix: str, sides: Sequence[Encoded | None], owners: dict[Owner, int]
) -> tuple[dict[str, pa.Array], npt.NDArray[np.int64]]:
    """The token columns of one side of the examples, null where there is none, and the numbers of trained tokens."""
    present = [side for side in sides if side is not None]
    absent = np.array([side is None for side in sides])
    mask = pa.array(absent) if absent.any() else None
    offsets = _offsets([0 if side is None else len(side.ids) for side in sides])
    ids = np.concatenate([side.ids for side in present] or [np.empty(0, np.int32)])
    weights = np.concatenate([side.weights for side in present] or [np.empty(0, np.float32)])
    columns = {
        "input_ids": pa.ListArray.from_arrays(offsets, ids, mask=mask),
        "labels": pa.ListArray.from_arrays(offsets, labels_of(ids, weights), mask=mask),
        "loss_weights": weight_lists(offsets, weights),
        "spans": _spans(sides, owners, mask),
    }
    return {f"{prefix}{name}": column for name, column in columns.items()}, _counts(weights > 0, offsets)


def _counts(holds: npt.NDArray[np.bool_], offsets: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """The number of tokens of each row for which `holds` is true, int64[N]."""
    return np.diff(np.concatenate([[0], np.cumsum(holds)])[offsets])


def _media(example: Example, kind: str) -> list[dict[str, Any]]:
    """The references of one kind with where they stand in the ids."""
    if not example.encoded.placed:
        return []
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


def _spans(sides: Sequence[Encoded | None], owners: dict[Owner, int], absent: pa.Array | None) -> pa.ListArray:
    """Numbers of owners and of tokens by turns, for each side."""
    known: dict[int, tuple[list[Owner], npt.NDArray[np.int32]]] = {}  # holds the lists, so that no other has their id
    empty = np.empty(0, np.int32)
    numbers: list[npt.NDArray[np.int32]] = [empty]
    counts: list[npt.NDArray[Any]] = [empty]
    lengths = []
    for side in sides:
        if side is None:
            lengths.append(0)
            continue
        found, count = side.spans()
        if (numbered := known.get(id(found))) is None:
            numbered = found, np.array([owners.setdefault(owner, len(owners)) for owner in found], np.int32)
            known[id(found)] = numbered
        numbers.append(numbered[1])
        counts.append(count)
        lengths.append(2 * len(found))
    values = np.stack([np.concatenate(numbers), np.concatenate(counts)], axis=1, dtype=np.int32, casting="unsafe")
    return pa.ListArray.from_arrays(_offsets(lengths), values.reshape(-1), mask=absent)


def _offsets(lengths: list[int]) -> npt.NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
