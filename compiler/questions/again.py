"""What became of the rows that a set does not hold, by its plan made again from its sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.inspect.find import Source
from compiler.questions.why import Fate
from compiler.sets.again import PlanAgain, made_again
from compiler.units.progress import Watcher
from schemas.arrow import SPLITS
from schemas.order import Ints
from schemas.reader import CompiledSet


@dataclass
class _Numbered:
    """The examples of a dataset by position."""

    name: str
    files: list[str]
    file: Ints
    row: Ints
    part: Ints
    drawn: np.ndarray[Any, np.dtype[np.bool_]]
    start: int
    """The number of its first example, counted over all datasets."""


@dataclass
class _Repeats:
    """What examples repeat. They are counted over all datasets."""

    first: Ints
    """For each example the one that is in its place; itself where it repeats none."""
    similarity: np.ndarray[Any, np.dtype[np.float32]]
    """1 for those that repeat it exactly."""


class Again:
    """The plan of a set, made again."""

    def __init__(self, datasets: list[_Numbered], repeats: _Repeats, *, dedup: bool) -> None:
        self._datasets, self._repeats, self._dedup = {one.name: one for one in datasets}, repeats, dedup

    def fates(self, source: Source) -> list[Fate]:
        """What became of each example of a source row that could be compiled; none for other rows."""
        name, file, row = source
        one = self._datasets[name]
        if file not in one.files:
            return []
        found = np.flatnonzero((one.row == row) & (one.file == one.files.index(file)))
        return [self._fate(one, position) for position in found.tolist()]

    def _fate(self, one: _Numbered, position: int) -> Fate:
        first = int(self._repeats.first[one.start + position])
        same, similarity = None, 1.0
        if first != one.start + position:
            peer = next(peer for peer in reversed(self._datasets.values()) if peer.start <= first and len(peer.row))
            at = first - peer.start
            same = (peer.name, peer.files[peer.file[at]], int(peer.row[at])), int(peer.part[at])
            similarity = float(self._repeats.similarity[one.start + position])
        dropped = self._dedup and same is not None
        return Fate(int(one.part[position]), bool(one.drawn[position]), dropped, same, similarity)


def plan_again(opened: CompiledSet, cache: Path, workers: int, watcher: Watcher) -> Again:
    """Make the plan of the set again; Unknown if its sources or its making are not as they were."""
    with made_again(opened, cache, workers, watcher) as plan:
        return _fates(plan)


def _fates(plan: PlanAgain) -> Again:
    made: list[_Numbered] = []
    start = 0
    for one, draw in zip(plan.compiled, plan.mix.draws, strict=True):
        files = list(dict.fromkeys(record.file for record in one.records))
        sizes = [unit.num_rows for unit in one.loaded]
        indexes = [
            unit.small.column("index").to_numpy() + first
            for unit, first in zip(one.loaded, one.first_rows(), strict=True)
        ]
        drawn = np.zeros(sum(sizes), bool)
        drawn[draw.position] = True
        made.append(
            _Numbered(
                one.dataset.name,
                files,
                np.repeat([files.index(record.file) for record in one.records], sizes),
                np.concatenate(indexes),
                np.concatenate([unit.small.column("part").to_numpy() for unit in one.loaded]),
                drawn,
                start,
            )
        )
        start += len(drawn)
    return Again(made, _repeats(plan), dedup=plan.dedup)


def _repeats(plan: PlanAgain) -> _Repeats:
    """Which example is in the place of each: the first of its split that says the same, or one that is like it."""
    sizes = [len(one.fingerprints) for one in plan.examples]
    prints, first = np.concatenate([one.fingerprints for one in plan.examples]), np.arange(sum(sizes))
    split = np.repeat([SPLITS.index(one.request.split) for one in plan.compiled], sizes)
    for number in range(len(SPLITS)):
        mine = np.flatnonzero(split == number)
        _, earliest, same = np.unique(prints[mine], return_index=True, return_inverse=True)
        first[mine] = mine[earliest[same]]
    similarity, near = np.ones(len(first), np.float32), plan.near
    if near is not None:
        similarity = np.where(near.of[first] < 0, similarity, near.similarity[first])
        first = np.where(near.of[first] < 0, first, near.of[first])
    return _Repeats(first, similarity)
