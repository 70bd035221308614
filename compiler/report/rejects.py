"""Rejected rows by reason: how many there are, and the first of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from compiler.inspect.marks import visible
from compiler.inspect.page import cut
from compiler.inspect.rows import raw_of, rejects
from schemas.reader import CompiledSet

EACH = 5
"""The most examples of one reason."""
ALL = 200
_RAW = 1200


@dataclass
class RejectedFor:
    """One reason: how often it is given for which dataset, and the first rows."""

    name: str
    datasets: Counter[str] = field(default_factory=Counter)
    first: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many rows were rejected for it."""
        return self.datasets.total()


def reasons_of(opened: CompiledSet) -> list[RejectedFor]:
    """The reasons, the most frequent first."""
    found: dict[str, RejectedFor] = {}
    if "rejects.jsonl" not in opened.manifest["files"]:
        return []
    shown = 0
    for entry in rejects(opened):
        reason = found.setdefault(entry["reason"], RejectedFor(entry["reason"]))
        reason.datasets[entry["dataset"]] += 1
        if len(reason.first) < EACH and shown < ALL:
            shown += 1
            reason.first.append(
                {
                    "place": visible(entry["place"]),
                    "dataset": entry["dataset"],
                    "message": visible(cut(entry["message"], _RAW)),
                    "raw": visible(cut(raw_of(entry), _RAW)),
                }
            )
    return sorted(found.values(), key=lambda reason: -reason.rows)
