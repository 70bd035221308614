"""Seeded orders, made by hashing: the same on every machine, with every numpy, for any number of workers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

PIECE = 1 << 22
"""Numbers of a permutation that are held at once."""
_AT_ONCE = 1 << 15
"""Numbers that are hashed at once: what fits into a processor's cache takes half the time."""


def salt(seed: int, what: str) -> np.uint64:
    """A number that depends on a seed and a purpose."""
    return np.uint64(int.from_bytes(hashlib.sha256(f"{seed}:{what}".encode()).digest()[:8], "little"))


def hashes(seed: int, what: str, *columns: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint64]:
    """A uint64 for each row of the columns, [N], that looks random and depends on these arguments alone."""
    keys = np.full(len(columns[0]), salt(seed, what), dtype=np.uint64)
    for column in columns:
        keys = mix64(keys ^ column.astype(np.uint64))
    return keys


def mix64(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014), which mixes all bits of each key."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)  # a new array; the rest is in place
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys ^= keys >> np.uint64(shift)
        keys *= np.uint64(factor)
    keys ^= keys >> np.uint64(31)
    return keys


@dataclass
class Shuffled:
    """The numbers from 0 to `count` - 1 by their hashes, a part at a time: of a large count, no list of all is made.

    Hashes are spread evenly, so they are cut into pieces of equal width. One pass over all numbers finds those whose
    hash is in a piece, and counts those of the others.
    """

    count: int
    seed: int
    what: str
    piece: int = PIECE
    _edges: Ints | None = field(default=None, repr=False)
    """The place of the first number of each piece, and the count; None before the first pass."""
    _held: tuple[int, Ints] = field(default=(-1, np.empty(0, np.int64)), repr=False)

    def part(self, start: int, stop: int) -> Ints:
        """The numbers at these places of the order; `stop` may be beyond the end."""
        stop, parts = min(stop, self.count), [np.empty(0, np.int64)]
        while start < stop:
            guess = start * self._pieces // self.count
            edges = self._find(guess) if self._edges is None else self._edges
            number = int(np.searchsorted(edges, start, side="right")) - 1
            if self._held[0] != number:
                self._find(number)
            begin, end = int(edges[number]), int(edges[number + 1])
            parts.append(self._held[1][start - begin : stop - begin])
            start = end
        return np.concatenate(parts)

    @property
    def _pieces(self) -> int:
        return max(1, -(-self.count // self.piece))

    def _find(self, wanted: int) -> Ints:
        """Hold the numbers of a piece; the edges of all."""
        counts, found = np.zeros(self._pieces, np.int64), []
        for start in range(0, self.count, _AT_ONCE):
            keys = hashes(self.seed, self.what, np.arange(start, min(start + _AT_ONCE, self.count)))
            pieces = ((keys >> np.uint64(32)) * np.uint64(self._pieces) >> np.uint64(32)).astype(np.int64)
            counts += np.bincount(pieces, minlength=self._pieces)
            mine = np.flatnonzero(pieces == wanted)
            found.append((keys[mine], mine + start))
        order = np.argsort(np.concatenate([keys for keys, _ in found]), kind="stable")
        self._held = (wanted, np.concatenate([numbers for _, numbers in found])[order])
        self._edges = np.cumsum([0, *counts])
        return self._edges
