"""Datasets -> units -> objects: cut the files, compile what the cache does not have, load all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import registry
from compiler import objects
from compiler.bpe import FAST, REFERENCE, version_of
from compiler.engines import local
from compiler.mix import Examples
from compiler.prepare import Layout, state_of
from compiler.read import cut, open_source, size_of
from compiler.request import Request
from compiler.sources import Dataset
from compiler.task import Outcome, Settings, Task, object_key
from compiler.tokenizer import Sample, Tokenizer
from schemas.errors import IntegrityError, Reason

ENGINES_DIFFER = f"{FAST} and {REFERENCE} gave different ids for a text of the data"
FEW_UNITS = 4
"""With this many units or fewer to compile, a fast engine takes longer to load than it gains."""
IN_PROCESS_UNITS, LARGE_VOCABULARY = 16, 50_000
"""With this many units or fewer to compile, workers that load a large vocabulary take longer to start than they gain:
about two seconds, when a unit of text takes a fifth of one. Units with images take longer."""

RunTasks = Callable[[Iterable[Task], int, local.Done], str]
"""Where units run: takes tasks, a number of workers (0 = as many as there are) and what to do with each outcome."""


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

    datasets: list[tuple[Dataset, Request, Layout]]
    settings: Settings
    cache: Path
    watcher: Watcher
    tokenizer: Tokenizer
    run_tasks: RunTasks = local.run
    certify: Callable[[], object] = str
    """Called before the first unit is compiled: what it raises ends the run."""
    engine: str = ""
    """What encodes; "" = not chosen yet, since nothing was to be encoded."""
    done: Done = field(default_factory=Done)

    def run(self, workers: int) -> list[Compiled]:
        """Return the datasets with their objects, every one of them loaded and checked."""
        collected = [Compiled(dataset, request) for dataset, request, _ in self.datasets]
        found: dict[str, objects.Object] = {}
        quick = self.settings.vision or len(self.tokenizer.is_control) < LARGE_VOCABULARY
        few = FEW_UNITS if quick else IN_PROCESS_UNITS
        tasks, many = self._with_engine(self._missing(collected, found), few)
        trouble = self.run_tasks(tasks, workers if many else 1, self._done)
        if trouble:
            if trouble == ENGINES_DIFFER:
                self.watcher.say(f"{trouble}; what it encoded is encoded again with {REFERENCE}")
                self.engine = REFERENCE
                refuse_fast(self.cache, self.tokenizer)
            else:
                self.watcher.say(f"{trouble}; every row is rendered instead, which is slower")
                self.settings = replace(self.settings, skeletons=False)
            self.done = Done()
            return self.run(workers)
        for one in collected:
            one.loaded = [found[record.key] if record.key in found else self._load(record) for record in one.records]
        return collected

    def missing(self) -> Iterator[Task]:
        """Yield what `run` would compile, which is then for others to do."""
        return self._with_engine(self._missing([Compiled(*one[:2]) for one in self.datasets], {}), FEW_UNITS)[0]

    def _with_engine(self, tasks: Iterator[Task], few: int) -> tuple[Iterator[Task], bool]:
        """Return the tasks with what will encode them, and whether they are more than `few`."""
        first = list(islice(tasks, few + 1))
        return self._ready(first, tasks), len(first) > few

    def _ready(self, first: list[Task], others: Iterator[Task]) -> Iterator[Task]:
        """Yield the tasks when what they need is known: workers that load meanwhile make that no longer."""
        if not first:
            return
        self.certify()
        if not self.engine:
            self._choose_engine(len(first) > FEW_UNITS)
        if len(first) > IN_PROCESS_UNITS:  # others encode
            self.tokenizer.drop_fast()
        for task in chain(first, others):
            yield replace(task, engine=self.engine)

    def _missing(self, collected: list[Compiled], found: dict[str, objects.Object]) -> Iterator[Task]:
        """Yield a task for each unit that the cache does not have, and record every unit."""
        queued: set[str] = set()
        sizes = [[size_of(file.path) for file in dataset.files] for dataset, _, _ in self.datasets]
        total, before = sum(map(sum, sizes)), 0
        for one, (dataset, _, layout), mine in zip(collected, self.datasets, sizes, strict=True):
            for file, size in zip(dataset.files, mine, strict=True):
                source = open_source(file.path)
                for note in source.notes:
                    self.watcher.say(f"{file.label}: {note}")
                for unit in cut(source):
                    self.done.bytes = before + min(unit.offset + unit.length, size)
                    self.done.share = self.done.bytes / total if total else None
                    key = object_key(unit, layout, self.settings)
                    one.records.append(Record(file.label, key, unit.digest, unit.offset))
                    if key in found or key in queued:
                        continue
                    kept = objects.load(self.cache, key)
                    if kept is None or not usable(kept, self.cache, self.tokenizer):
                        queued.add(key)
                        yield Task(unit, layout, self.settings, str(self.cache), dataset.name, key)
                        continue
                    found[key] = kept
                    self.done.cache_had(dataset.name, kept.info)
                    self.watcher.units(self.done)
                before += size

    def _choose_engine(self, many: bool) -> None:
        """Choose what encodes: a fast engine where there is enough to do that loading and checking it pays."""
        self.engine = REFERENCE
        if not many:
            return
        why = self._why_not_fast()
        if why:
            self.watcher.say(f"{FAST} is not used: {why}")
        else:
            self.engine = FAST

    def _why_not_fast(self) -> str:
        """Return why the fast engine is not to be used, "" if it is; found out once for a tokenizer and versions."""
        try:
            key = _engine_key(self.tokenizer.digest, version_of(FAST))
        except PackageNotFoundError:
            return "it is not installed"
        kept = objects.load_record(self.cache, key)
        if kept is None:
            kept = {"why": self.tokenizer.why_not_fast}
            objects.store_record(self.cache, key, kept)
        return str(kept["why"])

    def _done(self, task: Task, outcome: Outcome) -> str:
        """Count a task and compare the texts it hands over; return why the run must be done in another way, or ""."""
        if outcome.trouble:
            return outcome.trouble
        if not agree(self.tokenizer, outcome.samples):
            return ENGINES_DIFFER
        self.done.came_of(task, outcome)
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
        if not _media_as_they_were(kept):
            raise IntegrityError(
                record.file,
                "an image or video of it changed meanwhile, or is another one on a machine that looked at it",
                "Run again; on a cluster every machine must see them at the same paths.",
            )
        return kept


def agree(tokenizer: Tokenizer, samples: list[Sample]) -> bool:
    """Return whether the reference gives the ids that a fast engine gave."""
    for fresh in (True, False):
        some = [(text, ids) for is_fresh, text, ids in samples if is_fresh is fresh]
        ids, lengths = tokenizer.reference[0 if fresh else 1].encode([text for text, _ in some])
        expected = np.split(ids, np.cumsum(lengths))  # with what follows the last text, which is nothing
        if any(a.tolist() != b for a, (_, b) in zip(expected, some, strict=False)):
            return False
    return True


def refuse_fast(cache: Path, tokenizer: Tokenizer) -> None:
    """Keep in the cache that the fast engine errs: it is not chosen again, and no object that it made is used."""
    objects.store_record(cache, _engine_key(tokenizer.digest, version_of(FAST)), {"why": ENGINES_DIFFER})
    is_refused.cache_clear()


def usable(kept: objects.Object, cache: Path, tokenizer: Tokenizer) -> bool:
    """Return whether an object is still good: no doubt of what encoded it, every image and video as it was."""
    return not is_refused(cache, tokenizer.digest, kept.info["engine"]) and _media_as_they_were(kept)


@lru_cache(maxsize=16)
def is_refused(cache: Path, tokenizer_digest: str, encoder: str) -> bool:
    """Return whether what made an object was found to err: by an earlier run, or by another machine of this one."""
    name, version = encoder.split()
    kept = objects.load_record(cache, _engine_key(tokenizer_digest, version)) if name == FAST else None
    return kept is not None and kept["why"] != ""


def _engine_key(tokenizer_digest: str, version: str) -> str:
    return objects.key_of("engine", tokenizer_digest, version, registry.awkward_texts())


def _media_as_they_were(kept: objects.Object) -> bool:
    """Return whether every image and video an object was made from is as it was then, or still not there."""
    return all(state_of(Path(path)) == was for path, was in kept.info["files"].items())
