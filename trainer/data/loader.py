"""Batches of the next steps, made by threads while the device works; results do not depend on how many threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from schemas.order import Ints
from schemas.steps import Order
from trainer.data.collate import Batch, Collator
from trainer.data.order import following, micro_batches, places_of
from trainer.data.stream import Row, SplitRows

AHEAD = 2
"""Steps that each thread prepares in advance."""


@dataclass(frozen=True)
class StepBatches:
    """The batches of one process in one step."""

    number: int
    rows: Ints
    """The rows of the whole step, over all processes; with windows NOBODYS where others have them."""
    mine: list[Ints]
    """The rows of each forward pass of this process."""
    batches: list[Batch]


@dataclass(frozen=True)
class Loader:
    """The steps of one process."""

    split: SplitRows
    order: Order
    collate: Collator
    rank: int
    world: int
    micro: int
    accumulation: int
    threads: int
    pair: Callable[[Row, Row], Row] | None = None
    """Adds to a row what it needs of the row after it in the step."""

    def steps(self, start: int, stop: int) -> Iterator[StepBatches]:
        """Yield steps `start` to `stop`; an error in a step is raised when its turn comes."""
        if not self.threads:
            for number in range(start, stop):
                yield self._make(number, self._rows(number))
            return
        waiting: deque[Future[StepBatches]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="batches")
        try:
            for number in range(start, stop):
                while len(waiting) < self.threads * AHEAD and number + len(waiting) < stop:
                    ahead = number + len(waiting)
                    waiting.append(pool.submit(self._make, ahead, self._rows(ahead)))
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _rows(self, number: int) -> Ints:
        """The rows of a step as far as this process must know them."""
        step_rows = self.order.step_rows
        return self.order.step(number, places_of(self.rank, self.world, step_rows, pairs=self.pair is not None))

    def _make(self, number: int, rows: Ints) -> StepBatches:
        lanes = self.order.windows is not None
        mine = micro_batches(rows, self.rank, self.world, self.micro, self.accumulation, lanes=lanes)
        batches = []
        for part in mine:
            read = [self._row(rows, int(row)) for row in part]
            batches.append(self.collate(read) if read else self.collate.nothing(self._row(rows, int(rows[0]))))
        return StepBatches(number, rows, mine, batches)

    def _row(self, rows: Ints, number: int) -> Row:
        row = self.split.row(number)
        if self.pair is None:
            return row
        after = following(rows, len(self.split))[int((rows == number).argmax())]
        return self.pair(row, self.split.row(int(after)))
