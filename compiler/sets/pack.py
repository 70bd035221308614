"""Packing: examples are combined into rows of at most a given length, so that a batch has next to no padding.

Best fit decreasing over the whole split: the longest example first, each into the fullest pack that has room for it.
Time n log n; at most 11/9 of the fewest packs possible, plus 6/9 (Dosa 2007). With chat data next to no room is left.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from schemas.arrow import IGNORED, OF_SEQUENCES
from schemas.order import Ints
from schemas.packs import MEDIA_COLUMNS, lists, media_at, weight_lists


@dataclass(frozen=True)
class Packs:
    """The packs of ordered examples: pack k has examples edges[k] up to edges[k + 1], int64[K + 1]."""

    edges: Ints

    def within(self, examples: slice) -> Packs:
        """The packs of a slice of the examples, counted from its first one."""
        return Packs(self.edges[(self.edges >= examples.start) & (self.edges <= examples.stop)] - examples.start)


class _Room:
    """Packs by the room left in them. The least room that suffices is found fast: the rooms are bits of integers."""

    def __init__(self, length: int) -> None:
        self._packs: defaultdict[int, list[int]] = defaultdict(list)
        self._bits = [0] * (length // 1024 + 1)
        self._blocks = 0

    def put(self, pack: int, room: int) -> None:
        """Add a pack with this much room."""
        self._packs[room].append(pack)
        self._bits[room >> 10] |= 1 << (room & 1023)
        self._blocks |= 1 << (room >> 10)

    def take(self, size: int) -> tuple[int, int] | None:
        """Remove the fullest pack with room for `size`; return (pack, room), or None if there is none."""
        block = size >> 10
        if block >= len(self._bits):
            return None
        bits = self._bits[block] >> (size & 1023) << (size & 1023)
        if not bits:
            blocks = self._blocks >> (block + 1) << (block + 1)
            if not blocks:
                return None
            block = _lowest(blocks)
            bits = self._bits[block]
        room = (block << 10) + _lowest(bits)
        packs = self._packs[room]
        pack = packs.pop()
        if not packs:
            self._bits[block] &= ~(1 << (room & 1023))
            if not self._bits[block]:
                self._blocks &= ~(1 << block)
        return pack, room


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def pack(lengths: Ints, length: int) -> tuple[Ints, Packs]:
    """Put examples of these lengths, int64[N], into packs of at most `length` tokens.

    Returns (order int64[N], packs of the examples in this order). A pack stands where the first of its examples stood;
    within a pack examples keep their order. ValueError if an example is longer than a pack.
    """
    if len(lengths) and int(lengths.max()) > length:
        raise ValueError(f"an example of {int(lengths.max())} tokens in packs of {length}")
    room = _Room(length)
    pack_of = np.empty(len(lengths), np.int64)
    count = 0
    for i in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[i])
        found = room.take(size)
        if found is None:
            found = count, length
            count += 1
        pack_of[i] = found[0]
        room.put(found[0], found[1] - size)
    first = np.full(count, len(lengths))
    np.minimum.at(first, pack_of, np.arange(len(lengths)))
    order = np.lexsort((np.arange(len(lengths)), first[pack_of]))
    edges = np.flatnonzero(np.diff(first[pack_of][order], prepend=-1, append=-1))
    return order, Packs(edges.astype(np.int64))


def packed_columns(columns: dict[str, pa.Array], packs: Packs) -> dict[str, pa.Array]:
    """Turn the columns of examples into those of their packs: the inverse of `schemas.packs.unpacked`."""
    edges = packs.edges
    found: dict[str, pa.Array] = {}
    for name in OF_SEQUENCES:
        of_examples = columns[name]
        found[name] = lists(edges, of_examples.cast(pa.string()) if name in ("dataset", "file") else of_examples)
    lengths = columns["seq_lens"].values
    found["seq_lens"] = lists(edges, lengths)
    found["spans"] = lists(columns["spans"].offsets.to_numpy()[edges], columns["spans"].values)
    starts = np.concatenate([[0], np.cumsum(lengths.to_numpy())])
    for name in MEDIA_COLUMNS:
        found[name] = _media(columns[name], starts, edges)
    trained = columns["num_trained"].to_numpy().astype(np.int64)
    found["num_trained"] = pa.array(np.add.reduceat(trained, edges[:-1]).astype(np.int32))
    found |= {name: lists(starts[edges], columns[name].values) for name in ("input_ids", "labels")}
    found["loss_weights"] = _weights(columns["loss_weights"], columns["labels"], edges)
    return found


def _weights(weights: pa.ListArray, labels: pa.ListArray, edges: Ints) -> pa.ListArray:
    """The weights of packs, null where those of all their examples are."""
    starts = labels.offsets.to_numpy()
    of_packs = (labels.values.to_numpy() != IGNORED).astype(np.float32)
    of_packs[np.repeat(np.asarray(weights.is_valid()), np.diff(starts))] = weights.flatten().to_numpy()
    return weight_lists(starts[edges], of_packs)


def _media(column: pa.ListArray, starts: Ints, edges: Ints) -> pa.ListArray:
    """The images or videos of packs, with positions from the start of the pack."""
    offsets, values = column.offsets.to_numpy(), column.flatten()
    pack_of = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    moved = np.repeat(starts[:-1] - starts[edges[:-1]][pack_of], np.diff(offsets))
    return lists((offsets - offsets[0])[edges], media_at(values, values.field("position").to_numpy() + moved))
