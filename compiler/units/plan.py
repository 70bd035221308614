"""The plan of a compile: every unit of the datasets, and which of them the cache lacks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from compiler import formats
from compiler.cache import objects
from compiler.datasets.dataset import Dataset
from compiler.media.paths import state_of
from compiler.options import Request
from compiler.proof.encoders import is_refused
from compiler.read import as_session, cut, first_rows, open_source, size_of
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units.compiled import CompiledDataset, UnitRecord
from compiler.units.progress import Done, Watcher
from compiler.units.sample import UnitSample
from compiler.units.task import Outcome, Setup, Task, object_key
from schemas.errors import IntegrityError

UNITS_AHEAD = 4
"""Units that are looked up in the cache while the next ones are cut."""


@dataclass
class UnitPlan:
    """The units of a compile. `missing` cuts the files; when what it yields is compiled, `load` has every object."""

    datasets: list[tuple[Dataset, Request]]
    setup: Setup
    cache: Path
    tokenizer: Tokenizer
    watcher: Watcher
    only: tuple[int, int] | None = None
    """(K, N): only every N-th unit, beginning with the K-th; None = all units."""
    limit: int | None = None
    """Rows of each dataset that are read; None = all. Not of self-cognition, which asks for a number of rows."""
    sample: UnitSample | None = None
    """Chooses the units of a dry run; None = all."""
    done: Done = field(default_factory=Done)

    def __post_init__(self) -> None:
        """Begin with no unit."""
        self.compiled = [CompiledDataset(dataset, request) for dataset, request in self.datasets]
        self.found: dict[str, objects.Object] = {}
        self._said: set[str] = set()

    def missing(self) -> Iterator[Task]:
        """Cut the files; yield a task for each unit that the cache lacks. Another thread loads what it has."""
        seen: set[str] = set()
        waiting: deque[tuple[Task, Future[objects.Object | None]]] = deque()
        with ThreadPoolExecutor(1) as loader:
            for task in self.units():
                if task.key not in seen:
                    seen.add(task.key)
                    waiting.append((task, loader.submit(self._usable, task.key)))
                if len(waiting) > UNITS_AHEAD:
                    yield from self._found_or_missing(*waiting.popleft())
            while waiting:
                yield from self._found_or_missing(*waiting.popleft())

    def came_of(self, task: Task, outcome: Outcome) -> None:
        """Count a unit that was compiled."""
        self.done.count_compiled(task, outcome)
        self.watcher.units(self.done)

    def load(self) -> list[CompiledDataset]:
        """Load the objects of all units, each of them checked."""
        for one in self.compiled:
            one.loaded = [self.found[r.key] if r.key in self.found else self._load(r) for r in one.records]
        return self.compiled

    def units(self) -> Iterator[Task]:
        """Yield the units as the tasks that compile them, and record them."""
        for number, record, task in self._cut() if self.sample is None else self.sample.choose(self._cut):
            self.compiled[number].records.append(record)
            yield task

    def _cut(self) -> Iterator[tuple[int, UnitRecord, Task]]:
        """Cut all files: yield every unit, with the number of its dataset and its record."""
        sizes = [[size_of(file.path) for file in dataset.files] for dataset, _ in self.datasets]
        total, before, units_before = sum(map(sum, sizes)), 0, count()
        for number, (one, sizes_of_files) in enumerate(zip(self.compiled, sizes, strict=True)):
            dataset = one.dataset
            left = None if one.request.repeats else self.limit
            for file, size in zip(dataset.files, sizes_of_files, strict=True):
                if left == 0:
                    break
                source = open_source(file.path)
                if formats.get(dataset.options.format, file.label).session:
                    source = as_session(source)
                for note in (f"{file.label}: {note}" for note in source.notes):
                    if note not in self._said:  # a sample may cut twice
                        self.watcher.say(note)
                    self._said.add(note)
                units = ((unit, left) for unit in cut(source)) if left is None else first_rows(cut(source), left)
                for unit, remaining in units:
                    left = remaining
                    self.done.bytes = before + min(unit.offset + unit.length, size)
                    self.done.share = self.done.bytes / total if total else None
                    if self.only is not None and next(units_before) % self.only[1] != self.only[0]:
                        continue
                    key = object_key(unit, dataset.options, self.setup)
                    record = UnitRecord(file.label, key, unit.digest, unit.offset, unit.line)
                    yield number, record, Task(unit, dataset.options, self.setup, str(self.cache), dataset.name, key)
                before += size

    def _usable(self, key: str) -> objects.Object | None:
        """The object of the cache; None if there is none, or none that may be used."""
        kept = objects.load(self.cache, key)
        if kept is None or is_refused(self.cache, self.tokenizer.digest, kept.info["encoder"]):
            return None
        return kept if _media_as_they_were(kept) else None

    def _found_or_missing(self, task: Task, loading: Future[objects.Object | None]) -> Iterator[Task]:
        kept = loading.result()
        if kept is None:
            yield task
            return
        self.found[task.key] = kept
        self.done.count_cached(task.dataset, kept.info)
        self.watcher.units(self.done)

    def _load(self, record: UnitRecord) -> objects.Object:
        kept = objects.load(self.cache, record.key)
        if kept is None:
            raise IntegrityError(
                str(self.cache),
                "an object that was just compiled is gone or damaged",
                "Run again; then check the disk.",
            )
        if not _media_as_they_were(kept):
            raise IntegrityError(
                record.file,
                "an image or video of it changed meanwhile, or is another one on a machine that looked at it",
                "Run again; on a cluster every machine must see them at the same paths.",
            )
        return kept


def _media_as_they_were(kept: objects.Object) -> bool:
    """Whether every image and video that an object was made from is as it was then, or is still not there."""
    return all(state_of(Path(path)) == was for path, was in kept.info["files"].items())
