"""The order of training where rows are shuffled within windows: what is read at a time is a small part of a split.

The shards are put in an order of their own in each epoch. Their rows are cut into lanes of equal length, and a step has
equally many rows of each lane. A lane is shuffled a window at a time. The first windows of lanes differ in length, so
that no two lanes begin a window in the same step: reads are spread evenly.

A process trains rows of the same lanes in every step, so that several read each shard once between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from schemas.order import Ints, hashes

LANES = 32
"""The most lanes: so many machines read different shards. Rows of similar length are found within a lane."""


@dataclass
class Windows:
    """The order of a split's rows, by lanes."""

    shards: Ints
    """The rows of each shard."""
    step_rows: int
    seed: int
    together: int
    """The shards whose rows are shuffled together, in the windows of all lanes."""
    _epoch: tuple[int, Ints, Ints] = field(default=(-1, np.empty(0, np.int64), np.empty(0, np.int64)), repr=False)
    _held: dict[int, tuple[tuple[int, int], Ints]] = field(default_factory=dict, repr=False)

    @cached_property
    def window(self) -> int:
        """The rows that are shuffled together: so many shards have on average."""
        return max(1, int(self.shards.sum()) * self.together // len(self.shards))

    @cached_property
    def lanes(self) -> int:
        """How many lanes there are: a power of two that divides the rows of a step, at most one for each shard."""
        return math.gcd(self.step_rows, 1 << (min(LANES, self.together).bit_length() - 1))

    @property
    def share(self) -> int:
        """The rows of a step that are of one lane."""
        return self.step_rows // self.lanes

    @cached_property
    def length(self) -> int:
        """The rows of a lane."""
        return int(self.shards.sum()) // self.step_rows * self.share

    def part(self, epoch: int, lane: int, start: int, stop: int) -> Ints:
        """The rows at these places of a lane, shuffled; `stop` may be beyond its end."""
        width = max(1, self.window // self.lanes)
        first = max(1, width * (lane + 1) // self.lanes)
        parts, stop = [np.empty(0, np.int64)], min(stop, self.length)
        while start < stop:
            number = 0 if start < first else 1 + (start - first) // width
            begin, end = (0 if number == 0 else first + (number - 1) * width), min(first + number * width, self.length)
            parts.append(self._window(epoch, lane, begin, end)[start - begin : stop - begin])
            start = min(end, stop)
        return np.concatenate(parts)

    def rest(self, epoch: int) -> Ints:
        """The rows of an epoch that are too few for a step."""
        return self._rows(epoch, self.lanes * self.length, int(self.shards.sum()))

    def _window(self, epoch: int, lane: int, begin: int, end: int) -> Ints:
        known, rows = self._held.get(lane, ((-1, -1), np.empty(0, np.int64)))
        if known != (epoch, begin):
            rows = self._rows(epoch, lane * self.length + begin, lane * self.length + end)
            rows = rows[np.argsort(hashes(self.seed, f"epoch:{epoch}", rows), kind="stable")]
            self._held[lane] = (epoch, begin), rows
        return rows

    def _rows(self, epoch: int, start: int, stop: int) -> Ints:
        """The rows at these places of the shards in the epoch's order."""
        if self._epoch[0] != epoch:
            order = np.argsort(hashes(self.seed, f"shards:{epoch}", np.arange(len(self.shards))), kind="stable")
            ends = np.cumsum(self.shards[order])
            # What to add to a place in the epoch's order for a place in the split's own.
            shifts = (np.cumsum(self.shards) - self.shards)[order] - (ends - self.shards[order])
            self._epoch = (epoch, ends, shifts)
        _, ends, shifts = self._epoch
        places = np.arange(start, stop)
        return places + shifts[np.searchsorted(ends, places, side="right")]
