"""Seeded orders, made by hashing: the same on every machine, with every numpy, for any number of workers."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def salt(seed: int, what: str) -> np.uint64:
    """A number that depends on a seed and a purpose."""
    return np.uint64(int.from_bytes(hashlib.sha256(f"{seed}:{what}".encode()).digest()[:8], "little"))


def hashes(seed: int, what: str, *columns: Ints) -> npt.NDArray[np.uint64]:
    """A uint64 for each row of the columns, int64[N], that looks random and depends on these arguments alone."""
    keys = np.full(len(columns[0]), salt(seed, what), dtype=np.uint64)
    for column in columns:
        keys = mix64(keys ^ column.astype(np.uint64))
    return keys


def mix64(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014), which mixes all bits of each key."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
