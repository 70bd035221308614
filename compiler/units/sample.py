"""A sample of the units of a compile, for a dry run, and the weights with which it stands for all units.

Units of one dataset and one kind of file are a stratum. It is divided into runs of consecutive units, as many as are
wanted, and one unit of each run is drawn by the seed: what changes along a file is in the sample.

The weight of a unit says how many units it stands for. Weights are calibrated (Deville and Särndal, 1992): with them
the sample has exactly the bytes and the lines, or rows of a table, of all units. Both are known from cutting. Where
every unit of a stratum is in the sample, all weights are 1, and nothing is estimated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compiler.read import FileKind
from compiler.read.model import COLUMNAR
from compiler.units.compiled import UnitRecord
from compiler.units.task import Task
from schemas.order import hashes

UNITS, BYTES, ROWS = 8, 4 << 20, 2048
"""The least that is sampled of a stratum: units, bytes of text, rows of a table."""
GROUPS = 8
"""Parts of the sample, each of which is left out once to see how far estimates vary."""
_FEW, _STEPS = 3, 50

Floats = npt.NDArray[np.float64]
Cut = Callable[[], Iterator[tuple[int, UnitRecord, Task]]]
"""Cuts all files: the number of a dataset, a unit as a record and as a task."""


class Size(NamedTuple):
    """What is known of a unit before it is compiled."""

    bytes: int
    rows: int
    """Rows of an array or a table, else lines; a session is one row."""
    before: int | None
    """The rows of its file before it; None where only lines are counted."""
    certain: bool
    """Whether it is in every sample and stands for itself: --limit cuts it, so that its size is not known."""


@dataclass
class Stratum:
    """Units of one dataset and kind, by their places among all units of the plan."""

    dataset: int
    places: list[int]
    chosen: list[int] = field(default_factory=list)


@dataclass
class UnitSample:
    """The units of a plan that are compiled. `units` of each stratum; None = as many as `UNITS`, `BYTES` and `ROWS`."""

    seed: int
    units: int | None = None
    sizes: list[Size] = field(default_factory=list)
    works: dict[str, float] = field(default_factory=dict)
    """Of the object of each unit, by its name, as how many usual units it counts."""
    seconds: float = 0.0
    """How long cutting all files took."""
    strata: list[Stratum] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)
    """By dataset, the places of its chosen units in their order."""

    def choose(self, cut: Cut, work_of: Callable[[Task], float]) -> Iterator[tuple[int, UnitRecord, Task]]:
        """Yield the chosen units. A unit that holds its bytes is not kept: its file is cut again."""
        began, self.sizes, self.works, held = time.monotonic(), [], {}, False
        found: list[tuple[int, UnitRecord, Task]] = []
        strata: dict[tuple[int, FileKind], Stratum] = {}
        before: dict[tuple[int, str], int] = {}
        for number, record, task in cut():
            unit = task.unit
            held |= unit.data is not None
            rows = before.get((number, record.file), 0)
            before[number, record.file] = rows + unit.count
            counted = unit.line is None and unit.count > 0
            size = unit.count if unit.kind in COLUMNAR else unit.length
            count = 1 if unit.kind is FileKind.SESSION else unit.count
            self.sizes.append(Size(size, count, rows if counted else None, unit.rows is not None))
            self.works[task.key] = work_of(task)
            strata.setdefault((number, unit.kind), Stratum(number, [])).places.append(len(found))
            found.append((number, record, replace(task, unit=replace(unit, data=None))))
        self.strata, self.seconds = list(strata.values()), time.monotonic() - began
        for stratum in self.strata:
            stratum.chosen = self._chosen(stratum, tables=self._is_table(found[stratum.places[0]][2]))
        chosen = sorted(place for stratum in self.strata for place in stratum.chosen)
        self.places = [
            sorted(place for stratum in self.strata if stratum.dataset == number for place in stratum.chosen)
            for number in range(1 + max((stratum.dataset for stratum in self.strata), default=-1))
        ]
        if not held:
            yield from (found[place] for place in chosen)
            return
        wanted = set(chosen)
        yield from (one for place, one in enumerate(cut()) if place in wanted)

    @staticmethod
    def _is_table(task: Task) -> bool:
        return task.unit.kind in COLUMNAR

    def _chosen(self, stratum: Stratum, *, tables: bool) -> list[int]:
        """The places to compile: those that are certain, and one of each run of the others."""
        free = [place for place in stratum.places if not self.sizes[place].certain]
        mean = sum(self.sizes[place].bytes for place in free) / max(1, len(free))
        least = (ROWS if tables else BYTES) / max(1.0, mean)
        wanted = max(UNITS, int(np.ceil(least))) if self.units is None else self.units
        if wanted >= len(free):
            return stratum.places
        edges = [n * len(free) // wanted for n in range(wanted + 1)]
        drawn = hashes(self.seed, f"sample:{stratum.dataset}", np.arange(wanted)).tolist()
        chosen = [free[low + key % (high - low)] for low, high, key in zip(edges, edges[1:], drawn, strict=False)]
        return sorted({*stratum.places} - {*free} | {*chosen})

    @property
    def is_all(self) -> bool:
        """Whether every unit is in it."""
        return all(len(stratum.chosen) == len(stratum.places) for stratum in self.strata)

    @property
    def missing_share(self) -> float:
        """The largest share of a stratum's units that is not in the sample."""
        return max((1 - len(one.chosen) / len(one.places) for one in self.strata), default=0.0)

    def weights(self, without: int | None = None) -> list[Floats]:
        """By dataset, the weight of each of its chosen units; 0 for those of the group that is left out."""
        weight = dict.fromkeys(range(len(self.sizes)), 0.0)
        for stratum in self.strata:
            free = [place for place in stratum.chosen if not self.sizes[place].certain]
            everything = len(stratum.chosen) == len(stratum.places)
            for place in stratum.chosen:
                weight[place] = 1.0
            if everything or not free:
                continue
            kept = [place for n, place in enumerate(free) if without is None or n % GROUPS != without]
            total = self._of(place for place in stratum.places if not self.sizes[place].certain)
            weight.update(dict.fromkeys(free, 0.0))
            weight.update(zip(kept, _calibrated(self._of(kept), total).tolist(), strict=True))
        return [np.array([weight[place] for place in places]) for places in self.places]

    def _of(self, places: Iterable[int]) -> Floats:
        """Number, bytes and rows of units, float64[N, 3]."""
        return np.array([(1, self.sizes[place].bytes, self.sizes[place].rows) for place in places], np.float64)


def _calibrated(kept: Floats, everything: Floats) -> Floats:
    """Weights, near N / n each, with which the kept units have the bytes and the rows of all units.

    They are the ones nearest to equal weights that are positive (raking, by Newton's method). Where there are none, the
    bytes alone are met.
    """
    total = everything.sum(axis=0)[1:]
    even = np.full(len(kept), total[0] / kept[:, 1].sum())
    scale = np.maximum(kept[:, 1:].mean(axis=0), 1.0)
    sizes, wanted = kept[:, 1:] / scale, total / scale
    found, factors = even, np.zeros(2)
    for _ in range(_STEPS if len(kept) > _FEW else 0):
        step, *_ = np.linalg.lstsq(sizes.T @ (sizes * found[:, None]), wanted - found @ sizes, rcond=1e-12)
        factors += np.clip(step, -1, 1)
        found = even * np.exp(np.clip(sizes @ factors, -5, 5))
        if np.allclose(found @ sizes, wanted, rtol=1e-9):
            return found
    return even
