"""How far a run is, and the watcher that hears of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass
class Done:
    """How far a run is: units and rows, taken from the cache or compiled."""

    dataset: str = ""
    """The dataset of the last unit."""
    cached: int = 0
    compiled: int = 0
    rows: int = 0
    rejected: int = 0
    bytes: int = 0
    """Bytes of the sources that were read."""
    share: float | None = None
    """Their share of all bytes, 0 to 1; None = not known."""

    def count(self, dataset: str, info: dict[str, Any], *, is_cached: bool) -> None:
        """Count a unit, by what its object's record says."""
        self.dataset = dataset
        self.cached += is_cached
        self.compiled += not is_cached
        self.rows += info["counts"].get("read", 0)
        self.rejected += len(info["rejects"])


class Watcher:
    """Hears how far a run is; the command line draws it, a library caller may ignore it."""

    def units(self, done: Done) -> None:
        """Say how far the units are."""

    def linked(self, split: str, done: int, total: int) -> None:
        """Say how many examples of a split are written into shards."""

    def put(self, done: int, total: int) -> None:
        """Say how many of a set's bytes are in the object store."""

    def say(self, text: str) -> None:
        """Say one sentence that the user should see."""


class Pace(Watcher):
    """Passes on what it hears, and notes when each unit was compiled."""

    def __init__(self, watcher: Watcher) -> None:
        self.began, self.compiled = time.monotonic(), list[float]()
        self._watcher = watcher

    def units(self, done: Done) -> None:
        """Note the time of a unit that was compiled."""
        if done.compiled < len(self.compiled):  # all units are compiled again
            self.compiled.clear()
        if done.compiled > len(self.compiled):
            self.compiled.append(time.monotonic())
        self._watcher.units(done)

    def say(self, text: str) -> None:
        """Pass on a sentence."""
        self._watcher.say(text)

    def seconds(self, units: int, times: float, cutting: float) -> float | None:
        """How long so many units would take at this pace, `times` as many at once; None = no pace was seen."""
        if not units:
            return cutting
        if not self.compiled:
            return None
        first, last, seen = self.compiled[0], self.compiled[-1], len(self.compiled)
        each = (last - first) / (seen - 1) if seen > 1 else first - self.began - cutting
        start = max(0.0, first - self.began - cutting - each)
        return start + max(cutting, each * units / times)
