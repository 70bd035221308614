"""Some units of a plan compiled into its cache on this machine; `cli compile` finds them there afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compiler.cache import objects
from compiler.cache.prune import in_use
from compiler.proof.encoders import IDS_DIFFER, agree, is_refused, refuse, usable
from compiler.read import Unit, cut, open_source
from compiler.read.model import changed
from compiler.tokenizer.encoders import REFERENCE, version_of
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units import local
from compiler.units.plan_file import UnitPlan
from compiler.units.progress import Done, Watcher
from compiler.units.task import Outcome, Task


@dataclass
class Slice:
    """Units of a plan, and what came of them."""

    plan: UnitPlan
    ids: list[range]
    watcher: Watcher
    done: Done = field(default_factory=Done)
    left: list[dict[str, Any]] = field(default_factory=list)
    """Units that the compile must do in another way: dataset, file, key of the object, why."""

    def run(self, workers: int) -> None:
        """Compile the units that the cache lacks. A Problem leaves what was compiled there."""
        with in_use(self.plan.cache, self.watcher.say):
            self._run(workers)

    def _run(self, workers: int) -> None:
        self.tokenizer = Tokenizer.load(Path(self.plan.head["setup"]["tokenizer"]))
        workers = max(1, min(workers, sum(map(len, self.ids))))
        encoder = self.plan.head["encoder"]
        if encoder != REFERENCE and is_refused(
            self.plan.cache, self.tokenizer.digest, f"{encoder} {version_of(encoder)}"
        ):
            encoder = REFERENCE
        if local.run(self._tasks(encoder), workers, self._done):
            self.watcher.say(f"{IDS_DIFFER}; what it encoded is encoded again with {REFERENCE}")
            refuse(self.plan.cache, self.tokenizer)
            self.done = Done()
            self.left.clear()
            local.run(self._tasks(REFERENCE), workers, self._done)

    def _tasks(self, encoder: str) -> Iterator[Task]:
        cutting: tuple[str, str, Iterator[Unit]] = "", "", iter(())
        for task, recut in self.plan.tasks(self.ids):
            kept = objects.load(self.plan.cache, task.key)
            if kept is not None and usable(kept, self.plan.cache, self.tokenizer):
                self.done.count_cached(task.dataset, kept.info)
                self._show()
                continue
            unit = task.unit
            if recut:
                if cutting[:2] != (task.dataset, unit.path):
                    cutting = task.dataset, unit.path, cut(open_source(unit.path))
                found = next((one for one in cutting[2] if one.offset == unit.offset), None)
                if found is None or found.digest != unit.digest:
                    raise changed(unit.path)
                unit = found
            yield replace(task, unit=unit, encoder=encoder)

    def _done(self, task: Task, outcome: Outcome) -> str:
        if outcome.trouble:
            self.left.append({"dataset": task.dataset, "file": task.unit.path, "key": task.key, "why": outcome.trouble})
            return ""
        if not agree(self.tokenizer, outcome.samples):
            return IDS_DIFFER
        self.done.count_compiled(task, outcome)
        self._show()
        return ""

    def _show(self) -> None:
        done = self.done.cached + self.done.compiled + len(self.left)
        self.done.share = done / max(1, sum(map(len, self.ids)))
        self.watcher.units(self.done)
