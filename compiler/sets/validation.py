"""The validation split: whole conversations (or trajectories) in a seeded order, never cut between the two sides."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schemas.errors import UsageError
from schemas.order import mix64, salt


def keep_together(prints: npt.NDArray[np.bytes_], groups: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bytes_]:
    """Labels S16[M] that are equal for rows that share a conversation or a group, directly or through other rows.

    These are the connected components of rows. Every row takes the smallest label among the rows it shares a print or
    a group with, until nothing changes: a few passes, of time n each.
    """
    if np.array_equal(prints, groups):
        return prints
    keys = [np.unique(column, return_inverse=True)[1] for column in (prints, groups)]
    _, label = np.unique(prints, return_inverse=True)
    while True:
        before = label
        for key in keys:
            smallest = np.full(int(key.max()) + 1, len(label))
            np.minimum.at(smallest, key, label)
            label = smallest[key]
        if np.array_equal(before, label):
            return np.unique(prints)[label]


def choose_validation(labels: npt.NDArray[np.bytes_], size: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which rows are for validation, bool[M]: all with the same label, in seeded order, up to --val-size rows."""
    if not 0 <= size < float("inf") or (size > 1 and size != int(size)):
        raise UsageError(
            f"--val-size {size:g}", "expected a fraction below 1, or a whole number of rows", "--val-size 0.05"
        )
    wanted = round(size * len(labels)) if size < 1 else int(size)
    if not 0 < wanted < len(labels):
        raise UsageError(
            f"--val-size {size:g}",
            f"it asks for {wanted:,} of {len(labels):,} rows, expected at least 1 and not all",
            "Give a number of rows, or compile more rows.",
        )
    groups, member, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    keys = np.frombuffer(groups.astype("S16").tobytes(), dtype="<u8").reshape(-1, 2)[:, 0]
    order = np.argsort(mix64(keys ^ salt(seed, "val")), kind="stable")
    chosen = np.zeros(len(groups), dtype=bool)
    left = wanted
    for group in order.tolist():
        if sizes[group] <= left:
            chosen[group], left = True, left - sizes[group]
            if not left:
                break
    val = chosen[member]
    if not val.any() or val.all():
        raise UsageError(
            f"--val-size {size:g}", "no whole conversations (or trajectories) add up to that",
            "Each has too many rows or repeats; ask for more rows.",
        )  # fmt: skip
    return val
