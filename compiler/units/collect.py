"""Datasets -> units -> objects: cut the files, compile what the cache does not have, load all of it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compiler.cache import objects
from compiler.datasets.catalogue import Dataset
from compiler.options import Request
from compiler.proof.encoders import IDS_DIFFER, Trial, agree, choose, media_as_they_were, refuse, usable
from compiler.read import cut, open_source, size_of
from compiler.sets.mix import Examples
from compiler.tokenizer.encoders import FAST, REFERENCE
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units import local
from compiler.units.progress import Done, Watcher
from compiler.units.task import Outcome, Setup, Task, object_key
from schemas.errors import IntegrityError, Reason

FEW_UNITS = 4
"""With this many units or fewer to compile, a fast encoder takes longer to load than it gains."""
UNITS_AHEAD = 4
"""That many units are looked up in the cache while others are cut."""
IN_PROCESS_UNITS, LARGE_VOCABULARY = 16, 50_000
"""With this many units or fewer to compile, workers that load a large vocabulary take longer to start than they gain:
about two seconds, when a unit of text takes a fifth of one. Units with images take longer."""

RunTasks = Callable[[Iterable[Task], int, local.Done], str]
"""Where units run: takes tasks, a number of workers (0 = as many as there are) and what to do with each outcome."""


@dataclass(frozen=True)
class Record:
    """One unit of a dataset: which file it is from, what its object is called, the digest of its input."""

    file: str
    key: str
    digest: str
    offset: int
    """Where the unit begins in its (decompressed) file, in bytes."""


@dataclass
class Compiled:
    """A dataset with its objects."""

    dataset: Dataset
    request: Request
    records: list[Record] = field(default_factory=list)
    loaded: list[objects.Object] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        """Return how many rows were read, and rejected by reason ("rejected:REASON")."""
        return self._total("counts")

    def notes(self) -> Counter[str]:
        """Return how many rows were repaired, shortened or spell a control token."""
        return self._total("notes")

    def _total(self, what: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for one in self.loaded:
            total.update(one.info[what])
        return total

    def rejected(self) -> dict[str, int]:
        """Return the number of rejects by reason, in alphabetical order."""
        mark, counts = "rejected:", self.counts()
        del counts[f"{mark}{Reason.CLEANED}"]
        return {key.removeprefix(mark): n for key, n in sorted(counts.items()) if key.startswith(mark)}

    def cleaned(self) -> int:
        """Return how many rows the card's clean-up rules dropped; they are in rejects.jsonl, and no mistake."""
        return self.counts()[f"rejected:{Reason.CLEANED}"]

    def num_examples(self) -> int:
        """Return how many examples the rows make, rejected ones included."""
        counts = self.counts()
        return counts["read"] + counts["expanded"]

    def first_rows(self) -> list[int]:
        """Return, per unit, the number of rows of its file before it."""
        seen: Counter[str] = Counter()
        first = []
        for record, one in zip(self.records, self.loaded, strict=True):
            first.append(seen[record.file])
            seen[record.file] += one.info["counts"].get("read", 0)
        return first

    def rejects(self) -> Iterator[dict[str, Any]]:
        """Yield the rejects with their dataset, file and row."""
        for record, one, first in zip(self.records, self.loaded, self.first_rows(), strict=True):
            for reject in one.info["rejects"]:
                offset = None if reject["offset"] is None else record.offset + reject["offset"]
                where = {"dataset": self.dataset.name, "file": record.file, "row": first + reject["index"]}
                yield where | {key: value for key, value in reject.items() if key != "index"} | {"offset": offset}

    def examples(self) -> Examples:
        """Return what the plan needs to know of the rows."""
        tables = [one.light for one in self.loaded]
        empty, none = [np.empty(0, np.int64)], [np.empty(0, "S16")]
        return Examples(
            tokens=np.concatenate([t.column("length").to_numpy() for t in tables] or empty).astype(np.int64),
            trained=np.concatenate([t.column("num_trained").to_numpy() for t in tables] or empty).astype(np.int64),
            fingerprints=np.concatenate([_prints(t, "fingerprint") for t in tables] or none),
            groups=np.concatenate([_prints(t, "group") for t in tables] or none),
            cap=self.dataset.num_samples,
        )


def _prints(table: pa.Table, name: str) -> npt.NDArray[np.bytes_]:
    """Return a column of 16 bytes as S16[N]."""
    column = table.column(name).combine_chunks()
    buffer = column.buffers()[1] if len(column) else None
    if buffer is None:
        return np.empty(0, dtype="S16")
    return np.frombuffer(buffer, dtype="S16", count=len(column), offset=column.offset * 16)


@dataclass
class Collector:
    """One pass over the datasets: what is found in the cache, what is compiled."""

    datasets: list[tuple[Dataset, Request]]
    setup: Setup
    cache: Path
    watcher: Watcher
    tokenizer: Tokenizer
    run_tasks: RunTasks = local.run
    certify: Callable[[], object] = str
    """Called before the first unit is compiled: what it raises ends the run."""
    trial: Callable[[], Trial | None] = lambda: None
    """Tries the fast encoder in a process that has loaded it (`choose`)."""
    encoder: str = ""
    """What encodes; "" = not chosen yet, since nothing was to be encoded."""
    done: Done = field(default_factory=Done)

    def run(self, workers: int) -> list[Compiled]:
        """Return the datasets with their objects, every one of them loaded and checked."""
        collected = [Compiled(dataset, request) for dataset, request in self.datasets]
        found: dict[str, objects.Object] = {}
        quick = self.setup.vision or len(self.tokenizer.is_control) < LARGE_VOCABULARY
        few = FEW_UNITS if quick else IN_PROCESS_UNITS
        tasks, used = self._with_encoder(self._missing(collected, found), few, workers)
        trouble = self.run_tasks(tasks, used, self._done)
        if trouble:
            if trouble == IDS_DIFFER:
                self.watcher.say(f"{trouble}; what it encoded is encoded again with {REFERENCE}")
                self.encoder = REFERENCE
                refuse(self.cache, self.tokenizer)
            else:
                self.watcher.say(f"{trouble}; every row is rendered instead, which is slower")
                self.setup = replace(self.setup, skeletons=False)
            self.done = Done()
            return self.run(workers)
        for one in collected:
            one.loaded = [found[record.key] if record.key in found else self._load(record) for record in one.records]
        return collected

    def missing(self) -> Iterator[Task]:
        """Yield what `run` would compile, which is then for others to do."""
        return self._with_encoder(self._missing([Compiled(*one) for one in self.datasets], {}), FEW_UNITS, 0)[0]

    def _with_encoder(self, tasks: Iterator[Task], few: int, workers: int) -> tuple[Iterator[Task], int]:
        """Return the tasks with what will encode them, and how many workers they are for: 1 for `few` or fewer."""
        first = list(islice(tasks, few + 1))
        workers = workers if len(first) > few else 1
        return self._ready(first, tasks, others_encode=workers != 1), workers

    def _ready(self, first: list[Task], rest: Iterator[Task], *, others_encode: bool) -> Iterator[Task]:
        """Yield the tasks when what they need is known: workers that load meanwhile make that no longer."""
        if not first:
            return
        self.certify()
        if not self.encoder:
            self._choose_encoder(len(first) > FEW_UNITS)
        if others_encode:
            self.tokenizer.drop_fast()
        for task in chain(first, rest):
            yield replace(task, encoder=self.encoder)

    def _missing(self, collected: list[Compiled], found: dict[str, objects.Object]) -> Iterator[Task]:
        """Yield a task for each unit that the cache does not have, and record every unit."""
        looked_up: set[str] = set()
        waiting: deque[tuple[Task, Future[objects.Object | None]]] = deque()
        with ThreadPoolExecutor(1) as loader:  # objects are read and checked while the next units are cut
            for task in self._units(collected):
                if task.key not in looked_up:
                    looked_up.add(task.key)
                    waiting.append((task, loader.submit(self._kept, task.key)))
                if len(waiting) > UNITS_AHEAD:
                    yield from self._found_or_missing(*waiting.popleft(), found)
            while waiting:
                yield from self._found_or_missing(*waiting.popleft(), found)

    def _units(self, collected: list[Compiled]) -> Iterator[Task]:
        """Yield every unit as the task that compiles it, and record it."""
        sizes = [[size_of(file.path) for file in dataset.files] for dataset, _ in self.datasets]
        total, before = sum(map(sum, sizes)), 0
        for one, (dataset, _), mine in zip(collected, self.datasets, sizes, strict=True):
            for file, size in zip(dataset.files, mine, strict=True):
                source = open_source(file.path)
                for note in source.notes:
                    self.watcher.say(f"{file.label}: {note}")
                for unit in cut(source):
                    self.done.bytes = before + min(unit.offset + unit.length, size)
                    self.done.share = self.done.bytes / total if total else None
                    key = object_key(unit, dataset.options, self.setup)
                    one.records.append(Record(file.label, key, unit.digest, unit.offset))
                    yield Task(unit, dataset.options, self.setup, str(self.cache), dataset.name, key)
                before += size

    def _kept(self, key: str) -> objects.Object | None:
        """Return an object of the cache, None where there is none that may be used."""
        kept = objects.load(self.cache, key)
        return kept if kept is not None and usable(kept, self.cache, self.tokenizer) else None

    def _found_or_missing(
        self, task: Task, loading: Future[objects.Object | None], found: dict[str, objects.Object]
    ) -> Iterator[Task]:
        kept = loading.result()
        if kept is None:
            yield task
            return
        found[task.key] = kept
        self.done.count_cached(task.dataset, kept.info)
        self.watcher.units(self.done)

    def _choose_encoder(self, many: bool) -> None:
        choice = choose(self.cache, self.tokenizer, many=many, trial=self.trial)
        if choice.why_not_fast:
            self.watcher.say(f"{FAST} is not used: {choice.why_not_fast}")
        self.encoder = choice.encoder

    def _done(self, task: Task, outcome: Outcome) -> str:
        """Count a task and compare the texts it hands over; return why the run must be done in another way, or ""."""
        if outcome.trouble:
            return outcome.trouble
        if not agree(self.tokenizer, outcome.samples):
            return IDS_DIFFER
        self.done.count_compiled(task, outcome)
        self.watcher.units(self.done)
        return ""

    def _load(self, record: Record) -> objects.Object:
        kept = objects.load(self.cache, record.key)
        if kept is None:
            raise IntegrityError(
                str(self.cache),
                "an object that was just compiled is gone or damaged",
                "Run again; then check the disk.",
            )
        if not media_as_they_were(kept):
            raise IntegrityError(
                record.file,
                "an image or video of it changed meanwhile, or is another one on a machine that looked at it",
                "Run again; on a cluster every machine must see them at the same paths.",
            )
        return kept
