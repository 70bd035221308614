"""Batches of the next steps, made by threads while the device works; results do not depend on how many threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from schemas.order import Ints
from schemas.steps import Order
from trainer.data.collate import Batch, Collator, size_of
from trainer.data.order import following, micro_batches, places_of
from trainer.data.stream import Row, SplitRows

AHEAD = 2
"""Steps that each thread prepares in advance, as far as there is space for them."""
SPACE = 2 * 2**30
"""Bytes of the batches that wait in a process: with so many, only the next step is still prepared."""


@dataclass(frozen=True)
class StepBatches:
    """The batches of one process in one step."""

    number: int
    rows: Ints
    """The rows of the whole step, over all processes; with windows NOBODYS where others have them."""
    mine: list[Ints]
    """The rows of each forward pass of this process."""
    batches: list[Batch]


class _Space:
    """The memory of steps that wait. Threads ask for it before each batch, so that each goes beyond by one at most."""

    def __init__(self, first: int) -> None:
        self._next, self._taken, self._closed = first, 0, False
        self._changed = threading.Condition()

    def wait(self, number: int) -> None:
        """Wait until a batch of a step may be made. The next step never waits, as the device would wait for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or number == self._next or self._taken < SPACE)
            if self._closed:
                raise CancelledError

    def take(self, batch: Batch) -> None:
        """Count a batch that was made."""
        with self._changed:
            self._taken += size_of(batch)

    def leave(self, step: StepBatches) -> None:
        """Count the batches of a step no more; the one after it is the next."""
        with self._changed:
            self._taken -= sum(map(size_of, step.batches))
            self._next = step.number + 1
            self._changed.notify_all()

    def close(self) -> None:
        """End all waiting: no step is needed any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


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
    pin: Callable[[Batch], Batch] | None = None
    """Moves a batch to memory from which the device copies it while it works."""

    def steps(self, start: int, stop: int) -> Iterator[StepBatches]:
        """Yield steps `start` to `stop`; an error in a step is raised when its turn comes."""
        space = _Space(start)
        waiting: deque[Future[StepBatches]] = deque()
        pool = ThreadPoolExecutor(self.threads or 1, thread_name_prefix="batches")
        try:
            for number in range(start, stop):
                while len(waiting) < self.threads * AHEAD and number + len(waiting) < stop:
                    ahead = number + len(waiting)
                    waiting.append(pool.submit(self._make, ahead, self._rows(ahead), space))
                step = waiting.popleft().result() if waiting else self._make(number, self._rows(number), space)
                space.leave(step)
                yield step
        finally:
            space.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _rows(self, number: int) -> Ints:
        """The rows of a step as far as this process must know them."""
        step_rows = self.order.step_rows
        return self.order.step(number, places_of(self.rank, self.world, step_rows, pairs=self.pair is not None))

    def _make(self, number: int, rows: Ints, space: _Space) -> StepBatches:
        lanes = self.order.windows is not None
        mine = micro_batches(rows, self.rank, self.world, self.micro, self.accumulation, lanes=lanes)
        batches = []
        for part in mine:
            space.wait(number)
            read = [self._row(rows, int(row)) for row in part]
            batch = self.collate(read) if read else self.collate.nothing(self._row(rows, int(rows[0])))
            batches.append(self.pin(batch) if self.pin else batch)
            space.take(batches[-1])
        return StepBatches(number, rows, mine, batches)

    def _row(self, rows: Ints, number: int) -> Row:
        row = self.split.row(number)
        if self.pair is None:
            return row
        after = following(rows, len(self.split))[int((rows == number).argmax())]
        return self.pair(row, self.split.row(int(after)))
