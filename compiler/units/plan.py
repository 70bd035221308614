"""The plan of a compile: every unit of the datasets, and what came of it.

While only few units are known, this process looks them up in the cache, to find out whether there is anything to do.
Then it only cuts, and the rest is up to those who compile: they read a unit, name it by the digest of its bytes, and
look it up (settle.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from compiler import formats
from compiler.datasets.dataset import Dataset
from compiler.datasets.files import File
from compiler.options import Request
from compiler.read import COLUMNAR, Ask, Unit, as_session, cut, first_rows, open_source, size_of
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units.compiled import CompiledDataset, UnitRecord
from compiler.units.progress import Done, Watcher
from compiler.units.sample import UnitSample
from compiler.units.settle import look_up, media_as_they_were
from compiler.units.task import Outcome, Setup, Task, object_key, recipe_of
from schemas.errors import IntegrityError

USUAL = 3 << 18
"""Bytes of a usual unit of text."""
LOOKED_UP = 64
"""Units that this process looks up itself, where it has found little to compile by then."""


@dataclass
class UnitPlan:
    """The units of a compile. `to_settle` cuts the files; when what it yields is done, `load` has every object."""

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
    ask: Ask | None = None
    """Calls a function in another process, where there is one by now."""

    def __post_init__(self) -> None:
        """Begin with no unit."""
        self.compiled = [CompiledDataset(dataset, request) for dataset, request in self.datasets]
        self._records: dict[int, UnitRecord] = {}
        """By the number of the task."""
        self._seen: dict[tuple[object, ...], int] = {}
        """The number of the first unit with these bytes."""
        self._twins: list[tuple[Task, int]] = []
        """Units with the bytes of an earlier one, and that one's number."""
        self.missing = 0.0
        """How many usual units were looked up here and not found."""
        self._looks_up = True
        self._said: set[str] = set()

    def to_settle(self, few: int) -> Iterator[Task]:
        """Cut the files; yield a task for each unit to settle, of equal ones only for the first.

        The first ones are looked up here, until more than `few` usual ones are missing.
        """
        for task in self.units():
            if self._has_twin(task):
                continue
            if self._looks_up:
                kept = look_up(self.cache, task.key, self.setup.tokenizer_digest)
                if kept is not None:
                    self.came_of(task, Outcome(object=kept, is_cached=True, digest=task.unit.digest, key=task.key))
                else:
                    self.missing += self.work_of(task)
                    yield task
                self._looks_up = self.sample is not None or (self.missing <= few and task.number + 1 < LOOKED_UP)
                continue
            yield task

    def work_of(self, task: Task) -> float:
        """As how many usual units it counts. Of images and tables the bytes say little."""
        unit = task.unit
        return 1.0 if self.setup.vision or unit.kind in COLUMNAR else unit.length / USUAL

    def _has_twin(self, task: Task) -> bool:
        unit = task.unit
        bytes_ = (unit.digest,) if not unit.checksum else (unit.checksum, unit.length, unit.header)
        first = self._seen.setdefault((task.recipe, unit.kind, unit.rows, *bytes_), task.number)
        if first != task.number:
            self._twins.append((task, first))
        return first != task.number

    def came_of(self, task: Task, outcome: Outcome) -> None:
        """Take what came of a unit."""
        record = self._records[task.number]
        assert outcome.object is not None
        record.key, record.digest, record.object = outcome.key, outcome.digest, outcome.object
        self.done.count(task.dataset, outcome.object.info, is_cached=outcome.is_cached)
        self.watcher.units(self.done)

    def load(self) -> list[CompiledDataset]:
        """The datasets with the objects of all units."""
        for task, first in self._twins:
            mine, its = self._records[task.number], self._records[first]
            mine.key, mine.digest, mine.object = its.key, its.digest, its.object
        self._twins.clear()
        for record in self._records.values():
            if record.object is not None and not media_as_they_were(record.object):
                raise IntegrityError(
                    record.file,
                    "an image or video of it changed meanwhile, or is another one on a machine that looked at it",
                    "Run again; on a cluster every machine must see them at the same paths.",
                )
        return self.compiled

    def units(self) -> Iterator[Task]:
        """Yield the units as tasks, and record them."""
        for number, record, task in self._cut() if self.sample is None else self.sample.choose(self._cut, self.work_of):
            self.compiled[number].records.append(record)
            self._records[task.number] = record
            yield task

    def _cut(self) -> Iterator[tuple[int, UnitRecord, Task]]:
        """Cut all files: yield every unit, with the number of its dataset and its record."""
        sizes = [[size_of(file.path) for file in dataset.files] for dataset, _ in self.datasets]
        total, before, numbers = sum(map(sum, sizes)), 0, count()
        for number, (one, sizes_of_files) in enumerate(zip(self.compiled, sizes, strict=True)):
            dataset, recipe = one.dataset, recipe_of(one.dataset.options, self.setup)
            left = None if one.request.repeats else self.limit
            for file, size in zip(dataset.files, sizes_of_files, strict=True):
                if left == 0:
                    break
                for unit, remaining in self._units_of(file, dataset, left):
                    left = remaining
                    self.done.bytes = before + min(unit.offset + unit.length, size)
                    self.done.share = self.done.bytes / total if total else None
                    task_number = next(numbers)
                    if self.only is not None and task_number % self.only[1] != self.only[0]:
                        continue
                    key = object_key(unit, recipe)
                    record = UnitRecord(file.label, key, unit.digest, unit.offset, unit.line)
                    task = Task(
                        task_number, unit, dataset.options, self.setup, recipe, str(self.cache), dataset.name, key
                    )
                    yield number, record, task
                before += size

    def _units_of(self, file: File, dataset: Dataset, left: int | None) -> Iterator[tuple[Unit, int | None]]:
        """Yield the units of a file, each with the number of rows that are left after it, None = no limit."""
        source = open_source(file.path)
        if formats.get(dataset.options.format, file.label).session:
            source = as_session(source)
        for note in (f"{file.label}: {note}" for note in source.notes):
            if note not in self._said:  # a sample may cut twice
                self.watcher.say(note)
            self._said.add(note)
        if left is None:
            yield from ((unit, None) for unit in cut(source, digests=lambda: self._looks_up, ask=lambda: self.ask))
        else:
            yield from first_rows(cut(source), left)
