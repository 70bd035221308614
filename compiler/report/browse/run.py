"""A run of `cli train`: what its log says of each step, and which rows of the set a step had.

The rows are not in the log. They follow from what `run.json` of a checkpoint says (schemas/steps.py), so a run has none
before its first checkpoint. The log has one loss a step, and none of a row.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from schemas.checkpoint import COMPLETE, RUN, read_run
from schemas.digests import content_digest
from schemas.disk import check_regular
from schemas.errors import InputError, Problem, UsageError
from schemas.order import Ints
from schemas.reader import CompiledSet
from schemas.steps import ALL, Order

LOG = "log.jsonl"
_MOST_STEPS = 10**15
"""As many as run.json may say."""
Record = dict[str, Any]


@dataclass
class RunLog:
    """A log, read as far as it was written: it grows while the run lasts. Only places of its lines are kept."""

    path: Path
    _read: int = 0
    _file: int = 0
    _places: dict[int, int] = field(default_factory=dict)
    _loss: dict[int, float] = field(default_factory=dict)

    def refresh(self) -> None:
        """Read what was added since the last time; a log that a resume has cut is another file, and read again."""
        try:
            check_regular(self.path)
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_size < self._read or found.st_ino != self._file:
                    self._read, self._file, self._places, self._loss = 0, found.st_ino, {}, {}
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):  # it is being written
                        break
                    self._add(line)
                    self._read += len(line)
        except OSError as error:
            raise InputError(str(self.path), f"cannot be read: {error.strerror}") from error

    def _add(self, line: bytes) -> None:
        """Take the step and the loss of a line. Evaluations have none, and what is no record is passed over."""
        with contextlib.suppress(ValueError, LookupError, TypeError, OverflowError, RecursionError):
            record = json.loads(line)
            step, loss = record["step"], record["loss"]
            if isinstance(step, int) and 0 < step < _MOST_STEPS:
                self._loss[step] = math.nan if loss is None else float(loss)
                self._places[step] = self._read

    def losses(self) -> tuple[Ints, np.ndarray[Any, np.dtype[np.float64]]]:
        """The steps that were logged, and their losses."""
        steps = np.fromiter(self._loss, np.int64, len(self._loss))
        return steps, np.fromiter(self._loss.values(), np.float64, len(self._loss))

    def record(self, step: int) -> Record | None:
        """What was logged of a step."""
        if step not in self._places:
            return None
        with self.path.open("rb") as file:
            file.seek(self._places[step])
            try:
                found = json.loads(file.readline())
            except (ValueError, RecursionError):
                found = None
        return found if isinstance(found, dict) and found.get("step") == step else None


@dataclass
class TrainedRun:
    """A run on a set. Steps are counted from 1, as the log counts them."""

    log: RunLog
    about: dict[str, Any]
    """What run.json says."""
    shards: list[int]
    """The rows of each shard of the training split."""

    @classmethod
    def open(cls, given: Path, opened: CompiledSet) -> TrainedRun:
        """The run whose log, or whose folder, is given; a Problem unless it trained on this set."""
        folder = given if given.is_dir() else given.parent
        path = folder / LOG if given.is_dir() else given
        if path.name != LOG or not path.is_file():
            what = f"expected {LOG} of a run of cli train, or the run's folder"
            raise InputError(f"--log {given}", what, "It lies in output_dir, beside the checkpoints.")
        about = _newest(folder, given)
        if about["set"] != content_digest(opened.manifest):
            what = f"the run was trained on another set ({about['provenance']['out']}), or on this one before a change"
            raise UsageError(f"--log {given}", what, "Name the set that it was trained on.")
        run = cls(RunLog(path), about, [shard["rows"] for shard in opened.shards("train")])
        run.log.refresh()
        return run

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every row was trained once."""
        return -(-sum(self.shards) // int(self.about["step_rows"]))

    @property
    def last(self) -> int:
        """The last step that the run has, or has logged."""
        logged = self.log.losses()[0]
        return max(int(self.about["steps"]), int(logged.max()) if len(logged) else 0)

    def rows_of(self, step: int, lengths: Ints | None) -> Ints:
        """The rows of a step in the order of training. `lengths` of all rows are needed if `grouped`."""
        by_length = (lambda rows: lengths[rows]) if self.grouped and lengths is not None else None
        together = self.about.get("shuffle_shards", ALL)  # earlier versions had no windows
        return Order.of(self.shards, self.about["step_rows"], self.about["seed"], by_length, together).step(step - 1)

    @property
    def grouped(self) -> bool:
        """Whether rows of similar length share a step."""
        return bool(self.about["grouped"])


def _newest(folder: Path, given: Path) -> dict[str, Any]:
    """The run.json of the last checkpoint that is complete."""
    found, problem = [], None
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            try:
                found.append(read_run(path))
            except Problem as error:
                problem = error
    if found:
        return max(found, key=lambda run: (run["resumes"], run["step"]))
    if problem is not None:
        raise problem
    what = f"no complete checkpoint lies beside it: {RUN} of one says which rows a step had"
    raise InputError(f"--log {given}", what, "Wait for the first checkpoint, or name the run's own folder.")
