"""The rows of a step, shared among processes, and the row after each one. Which rows a step has: schemas/steps.py."""

from __future__ import annotations

import numpy as np

from schemas.order import Ints


def following(rows: Ints, total: int) -> Ints:
    """The row after each row of a step: the first after the last; of `total` rows the next, after the only one."""
    return np.roll(rows, -1) if len(rows) > 1 else (rows + 1) % total


def micro_batches(
    rows: Ints, rank: int, world: int, micro: int, accumulation: int, *, lanes: bool = False
) -> list[Ints]:
    """The rows of each forward pass of one process in a step: `accumulation` arrays of at most `micro` rows.

    Neighbors in the step go to different processes at the same time, so that all have about the same work. With lanes
    (schemas/windows.py) they go to one process, whose rows are of the same few lanes in every step. Arrays may be empty
    in the last step of an epoch: all processes make the same number of passes, since they meet in each.
    """
    firsts = [(rank * accumulation + i if lanes else i * world + rank) * micro for i in range(accumulation)]
    return [rows[first : first + micro] for first in firsts]


def places_of(rank: int, world: int, step_rows: int, *, pairs: bool) -> Ints:
    """The places in a step of the rows of one process with lanes; with pairs also of the row after its last."""
    share = step_rows // world
    return np.arange(rank * share, (rank + 1) * share + pairs) % step_rows
