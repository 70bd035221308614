"""The order of training: a function of (rows, seed, epoch, step), the same on any machine.

The position in a run is one integer, the number of finished steps. A step is `step_rows` rows, whatever the number of
processes. An epoch is every row once; its last step has the rows that are left, however few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from schemas.order import Ints, hashes

BLOCK_STEPS = 64
"""Rows are grouped by length within blocks of this many steps; larger blocks need more lengths at once."""


@dataclass
class Order:
    """The order of a split's rows."""

    rows: int
    step_rows: int
    seed: int
    lengths: Callable[[Ints], Ints] | None = None
    """Rows -> their lengths in tokens; if given, rows of similar length share a step."""
    _epoch: tuple[int, Ints] = field(default=(-1, np.empty(0, np.int64)), repr=False)
    _block: tuple[tuple[int, int], Ints] = field(default=((-1, -1), np.empty(0, np.int64)), repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every row has been trained once."""
        return -(-self.rows // self.step_rows)

    def step(self, number: int) -> Ints:
        """The rows of step `number` (0-based, over all epochs), the longest first where lengths are known."""
        epoch, inside = divmod(number, self.steps_per_epoch)
        block, place = divmod(inside, BLOCK_STEPS)
        if self._block[0] != (epoch, block):
            self._block = ((epoch, block), self._order_block(epoch, block))
        return self._block[1][place * self.step_rows : (place + 1) * self.step_rows]

    def _shuffled(self, epoch: int) -> Ints:
        if self._epoch[0] != epoch:
            keys = hashes(self.seed, f"epoch:{epoch}", np.arange(self.rows))
            self._epoch = (epoch, np.argsort(keys, kind="stable"))
        return self._epoch[1]

    def _order_block(self, epoch: int, block: int) -> Ints:
        size = BLOCK_STEPS * self.step_rows
        rows = self._shuffled(epoch)[block * size : (block + 1) * size]
        if self.lengths is None:
            return rows
        whole = len(rows) // self.step_rows * self.step_rows
        rest, rows = rows[whole:], rows[:whole]  # the rest is the epoch's last step and stays last
        rest = rest[np.argsort(-self.lengths(rest), kind="stable")]
        steps = rows[np.argsort(-self.lengths(rows), kind="stable")].reshape(-1, self.step_rows)
        keys = hashes(self.seed, f"steps:{epoch}:{block}", np.arange(len(steps)))
        return np.concatenate([steps[np.argsort(keys, kind="stable")].reshape(-1), rest])
