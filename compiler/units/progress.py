"""How far a run is, and who is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compiler.units.task import Outcome, Task


@dataclass
class Done:
    """How far a run is: units and rows, taken from the cache or compiled."""

    dataset: str = ""
    """That of the last unit."""
    cached: int = 0
    compiled: int = 0
    rows: int = 0
    rejected: int = 0
    bytes: int = 0
    """What was read of the sources."""
    share: float | None = None
    """How much of the whole that is, 0 to 1; None = not known."""

    def cache_had(self, dataset: str, info: dict[str, Any]) -> None:
        """Count a unit that the cache had."""
        self.dataset = dataset
        self.cached += 1
        self.rows += info["counts"].get("read", 0)
        self.rejected += len(info["rejects"])

    def came_of(self, task: Task, outcome: Outcome) -> None:
        """Count a unit that was compiled."""
        self.dataset = task.dataset
        self.compiled += 1
        self.rows += outcome.rows
        self.rejected += outcome.rejected


class Watcher:
    """What a run tells while it works; the command line draws it, a library caller may ignore it."""

    def units(self, done: Done) -> None:
        """Say how far the units are."""

    def put(self, done: int, total: int) -> None:
        """Say that so many of a set's bytes are in the object store."""

    def say(self, text: str) -> None:
        """Say one sentence that the user should see."""
