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
from schemas.arrow import TEST, TRAIN, VAL
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
    first: Ints
    """For each example, the first one of its split that says the same, counted over all datasets of the split."""
    start: int
    """The number of its first example, counted so."""
    peers: list[_Numbered]
    """The datasets of its split, in order."""


class Again:
    """The plan of a set, made again."""

    def __init__(self, datasets: list[_Numbered], *, dedup: bool) -> None:
        self._datasets, self._dedup = {one.name: one for one in datasets}, dedup

    def fates(self, source: Source) -> list[Fate]:
        """What became of each example of a source row that could be compiled; none for other rows."""
        name, file, row = source
        one = self._datasets[name]
        if file not in one.files:
            return []
        found = np.flatnonzero((one.row == row) & (one.file == one.files.index(file)))
        return [self._fate(one, position) for position in found.tolist()]

    def _fate(self, one: _Numbered, position: int) -> Fate:
        first = int(one.first[position])
        same = None
        if first != one.start + position:
            peer = next(peer for peer in reversed(one.peers) if peer.start <= first)
            at = first - peer.start
            same = (peer.name, peer.files[peer.file[at]], int(peer.row[at])), int(peer.part[at])
        dropped = self._dedup and same is not None
        return Fate(int(one.part[position]), bool(one.drawn[position]), dropped, same)


def plan_again(opened: CompiledSet, cache: Path, workers: int, watcher: Watcher) -> Again:
    """Make the plan of the set again; Unknown if its sources or its making are not as they were."""
    with made_again(opened, cache, workers, watcher) as plan:
        return _fates(plan)


def _fates(plan: PlanAgain) -> Again:
    made: list[_Numbered] = []
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
                np.zeros(0, np.int64),
                0,
                [],
            )
        )
    for split in (TRAIN, VAL, TEST):
        mine = [i for i, one in enumerate(plan.compiled) if one.request.split == split]
        if not mine:
            continue
        prints = np.concatenate([plan.examples[i].fingerprints for i in mine])
        _, first, inverse = np.unique(prints, return_index=True, return_inverse=True)
        ends = np.cumsum([len(plan.examples[i].fingerprints) for i in mine])
        for i, end, firsts in zip(mine, ends.tolist(), np.split(first[inverse], ends[:-1]), strict=True):
            made[i].first, made[i].start = firsts, end - len(firsts)
            made[i].peers = [made[j] for j in mine]
    return Again(made, dedup=plan.dedup)
