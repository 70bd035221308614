"""The rows of a step, shared among processes, and the row after each one. Which rows a step has: schemas/steps.py."""

from __future__ import annotations

import numpy as np

from schemas.order import Ints


def following(rows: Ints, total: int) -> Ints:
    """The row after each row of a step: the first after the last; of `total` rows the next, after the only one."""
    return np.roll(rows, -1) if len(rows) > 1 else (rows + 1) % total


def micro_batches(rows: Ints, rank: int, world: int, micro: int, accumulation: int) -> list[Ints]:
    """The rows of each forward pass of one process in a step: `accumulation` arrays of at most `micro` rows.

    Neighbors in the step go to different processes at the same time, so that all have about the same work. Arrays may
    be empty in the last step of an epoch: all processes make the same number of passes, since they meet in each.
    """
    return [rows[(i * world + rank) * micro : (i * world + rank + 1) * micro] for i in range(accumulation)]
