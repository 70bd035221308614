"""The order of training: a function of (rows, seed, epoch, step), the same on any machine.

The position in a run is one integer, the number of finished steps. A step is `step_rows` rows, whatever the number of
processes. An epoch is every row once; its last step has the rows that are left, however few. Rows are shuffled over the
whole epoch, or within windows (windows.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np

from schemas.order import Ints, Shuffled, hashes
from schemas.windows import Windows

BLOCK_STEPS = 64
"""Rows are grouped by length within blocks of at most this many steps; larger blocks need more lengths at once."""
ALL: Literal["all"] = "all"
Together = int | Literal["all"]
"""The shards whose rows are shuffled together."""
NOBODYS = -1
"""What stands for a row whose process is another one."""


@dataclass
class Order:
    """The order of a split's rows."""

    rows: int
    step_rows: int
    seed: int
    lengths: Callable[[Ints], Ints] | None = None
    """Rows -> their lengths in tokens; if given, rows of similar length share a step."""
    windows: Windows | None = None
    """What rows are shuffled within; None = the whole epoch."""
    _epoch: tuple[int, Shuffled] = field(default=(-1, Shuffled(0, 0, "")), repr=False)
    _blocks: dict[int, tuple[tuple[int, int], Ints]] = field(default_factory=dict, repr=False)
    """The block that each lane is in, and its rows."""

    @classmethod
    def of(
        cls,
        shards: Sequence[int],
        step_rows: int,
        seed: int,
        lengths: Callable[[Ints], Ints] | None,
        together: Together,
    ) -> Self:
        """The order of a split by the rows of its shards, where the rows of so many shards are shuffled together."""
        rows = sum(shards)
        if together == ALL:
            return cls(rows, step_rows, seed, lengths)
        return cls(rows, step_rows, seed, lengths, Windows(np.array(shards), step_rows, seed, together))

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every row has been trained once."""
        return -(-self.rows // self.step_rows)

    @property
    def block_steps(self) -> int:
        """The steps that rows are grouped within: no more than half a window has, or more than that would be read."""
        if self.windows is None:
            return BLOCK_STEPS
        return min(BLOCK_STEPS, max(1, self.windows.window // self.step_rows // 2))

    def step(self, number: int, places: Ints | None = None) -> Ints:
        """The rows of step `number` (0-based, over all epochs), the longest of a lane first where lengths are known.

        With `places` in the step, lengths of rows in other lanes are not looked up; such rows may be NOBODYS. Without
        windows there is one lane.
        """
        epoch, inside = divmod(number, self.steps_per_epoch)
        block, place = divmod(inside, self.block_steps)
        if self.windows is None:
            return self._part(epoch, block, 0)[place * self.step_rows : (place + 1) * self.step_rows]
        if (inside + 1) * self.step_rows > self.rows:
            return self.windows.rest(epoch)
        share = self.windows.share
        rows = np.full((self.windows.lanes, share), NOBODYS)
        for lane in range(self.windows.lanes) if places is None else np.unique(places // share).tolist():
            rows[lane] = self._part(epoch, block, lane)[place * share : (place + 1) * share]
        return rows.reshape(-1)

    def _part(self, epoch: int, block: int, lane: int) -> Ints:
        """The rows of a block that are of one lane."""
        known, rows = self._blocks.get(lane, ((-1, -1), np.empty(0, np.int64)))
        if known != (epoch, block):
            rows = self._grouped(epoch, block, *self._shuffled(epoch, block, lane))
            self._blocks[lane] = (epoch, block), rows
        return rows

    def _shuffled(self, epoch: int, block: int, lane: int) -> tuple[Ints, int]:
        """The rows of a block that are of one lane, before they are grouped, and how many of them a step has."""
        if self.windows is not None:
            share = self.windows.share
            size = self.block_steps * share
            return self.windows.part(epoch, lane, block * size, (block + 1) * size), share
        if self._epoch[0] != epoch:
            self._epoch = (epoch, Shuffled(self.rows, self.seed, f"epoch:{epoch}"))
        size = BLOCK_STEPS * self.step_rows
        return self._epoch[1].part(block * size, (block + 1) * size), self.step_rows

    def _grouped(self, epoch: int, block: int, rows: Ints, share: int) -> Ints:
        if self.lengths is None:
            return rows
        whole = len(rows) // share * share
        rest, rows = rows[whole:], rows[:whole]  # the rest is the epoch's last step and stays last
        rest = rest[np.argsort(-self.lengths(rest), kind="stable")]
        steps = rows[np.argsort(-self.lengths(rows), kind="stable")].reshape(-1, share)
        keys = hashes(self.seed, f"steps:{epoch}:{block}", np.arange(len(steps)))
        return np.concatenate([steps[np.argsort(keys, kind="stable")].reshape(-1), rest])
