"""Work on this machine: in this process, or in worker processes, which one thread asks and listens to.

A worker is given two units at once, so that it never waits for this process. Beside the workers there are
checkers, processes that do what is asked `aside`: they prove the template and compare texts with the reference encoder,
which they alone load.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from selectors import EVENT_READ, DefaultSelector
from typing import Any, TypeVar

from compiler.proof.encoders import Trial
from compiler.read import Ask
from compiler.units import processes
from compiler.units.asked import let_go, load_fast, load_tools, trial
from compiler.units.processes import ENDING, STOPPING, Original, Worker
from compiler.units.task import AHEAD, Awaited, Setup

T = TypeVar("T")
R = TypeVar("R")

WORKERS_OF_A_CHECKER = 16
"""It takes about two milliseconds to compare the texts of a unit."""


class InProcess:
    """Work in this process, one after the other."""

    def run(self, function: Callable[[T], R], items: Iterable[T], _ahead: int = AHEAD) -> Iterator[tuple[T, R]]:
        """Call the function on each item."""
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        for item in items:
            yield item, function(item)

    ask: Ask | None = None
    """There is only this process."""

    def aside(self, function: Callable[..., R], *args: Any) -> Awaited[R]:
        """Call the function at once."""
        return Awaited.known(function(*args))

    def end_asides(self) -> None:
        """Nothing was started."""

    def trial(self) -> Awaited[Trial] | None:
        """None: no other process has loaded the fast encoder."""
        return None

    def close(self) -> None:
        """Nothing was started."""


class Pool:
    """Processes with what each of them has to answer."""

    def __init__(self) -> None:
        self._asked: dict[Worker, deque[Any]] = {}
        self._selector = DefaultSelector()

    def add(self, worker: Worker) -> Worker:
        """Add a process."""
        self._asked[worker] = deque([None] * worker.owed)
        self._selector.register(worker, EVENT_READ)
        return worker

    def least_busy(self, some: Sequence[Worker]) -> Worker:
        """The one of some processes that owes the fewest answers."""
        return min(some, key=attrgetter("owed"))

    def most(self, some: Sequence[Worker]) -> int:
        """How many answers the busiest of some processes owes."""
        return max(worker.owed for worker in some)

    def send(self, some: Sequence[Worker], about: Any, function: Callable[..., object], *args: Any) -> None:
        """Ask the least busy of some processes. `about` is an item, or who waits for the answer."""
        worker = self.least_busy(some)
        self._asked[worker].append(about)
        worker.send(function, *args)

    def listen(self, seconds: float | None = None) -> Iterator[tuple[Any, Any]]:
        """Take what comes within so many seconds, None = as long as it takes; yield items and what came of them.

        What an `Awaited` waits for goes there. InputError if a process is gone, whether it had something to do or not.
        """
        for key, _ in self._selector.select(seconds):
            worker: Any = key.fileobj
            about = self._asked[worker].popleft() if self._asked[worker] else None
            error, result = worker.answer()
            if isinstance(about, Awaited):
                about.put(result, error)
            elif error is not None:
                raise error
            elif about is not None:
                yield about, result

    def end(self, worker: Worker, seconds: float) -> None:
        """End a process, which has so many seconds for that."""
        del self._asked[worker]
        self._selector.unregister(worker)
        worker.no_more()
        worker.stop(seconds)
        worker.close()

    def close(self) -> None:
        """Listen to none of the processes any more; all were ended."""
        self._selector.close()


class Workers:
    """Work in processes of their own: `count` workers and their checkers."""

    def __init__(self, count: int, setup: Setup, *, encodes: bool = True) -> None:
        """Nothing is started yet. `encodes`: workers load the fast encoder too."""
        self._count, self._setup = count, setup
        self._load: Callable[[Setup], str | None] = load_fast if encodes else load_tools
        self._pool = Pool()
        self._workers: list[Worker] = []
        self._checkers: list[Worker] = []
        self._found: deque[tuple[Any, Any]] = deque()
        self._original: Original | None = None
        self._loaded: Awaited[str | None]
        """What the original, or the first worker, was asked last to load: it says why there is no fast encoder."""

    def start(self) -> None:
        """Start the processes, which load what the setup needs while this one goes on."""
        if processes.CAN_FORK:
            self._original = Original.fresh()
            self._pool.add(self._original)
            self._loaded = self._asked(self._original, load_tools)
        else:
            self._add_workers(Worker.fresh)
            self._loaded, *_ = [self._asked(worker, self._load) for worker in self._workers]

    def _add_workers(self, start: Callable[[], Worker]) -> None:
        for _ in range(self._count):
            self._workers.append(self._pool.add(start()))

    def _asked(self, worker: Worker, function: Callable[[Setup], R]) -> Awaited[R]:
        answer = Awaited[R](self._listen)
        self._pool.send([worker], answer, function, self._setup)
        return answer

    def _loaded_by(self, original: Original) -> Original:
        """The original when it has done all that it was asked, so that it can be copied."""
        self._loaded.result()
        while original.owed:
            self._listen()
        return original

    def _checking(self) -> list[Worker]:
        """The checkers. The original makes them before it loads what only workers need."""
        if not self._checkers:
            start: Callable[[], Worker] = Worker.fresh
            if self._original is not None:
                start = self._loaded_by(self._original).copy
            for _ in range(-(-self._count // WORKERS_OF_A_CHECKER)):
                self._checkers.append(self._pool.add(start()))
            if self._original is not None:
                self._loaded = self._asked(self._original, self._load)
        return self._checkers

    def _working(self) -> list[Worker]:
        """The workers. The original makes them once it has loaded everything."""
        if self._original is not None and not self._workers:
            self._checking()
            self._add_workers(self._loaded_by(self._original).copy)
        return self._workers

    def run(self, function: Callable[[T], R], items: Iterable[T], ahead: int = AHEAD) -> Iterator[tuple[T, R]]:
        """Call the function on each item; yield the items with what came of them, as it comes.

        A worker has so many items at most, so that a long list of them is never in memory. What is left of an earlier
        call is finished first, and forgotten.
        """
        workers = self._working()
        self._finish()
        for item in items:  # it is made while all workers have something to do
            while (worker := self._pool.least_busy(workers)).owed >= ahead:
                self._listen()
            self._pool.send([worker], item, function, item)
            self._listen(0)
            while self._found:
                yield self._found.popleft()
        while self._pool.most(workers):
            self._listen()
            while self._found:
                yield self._found.popleft()

    def _finish(self) -> None:
        while self._pool.most(self._workers):
            self._listen()
        self._found.clear()

    def _listen(self, seconds: float | None = None) -> None:
        self._found.extend(self._pool.listen(seconds))

    @property
    def ask(self) -> Ask | None:
        """What calls a function in a worker, after what that has to do already."""
        return self._ask

    def _ask(self, function: Callable[..., R], *args: Any) -> Awaited[R]:
        answer = Awaited[R](self._listen)
        self._pool.send(self._working(), answer, function, *args)
        return answer

    def aside(self, function: Callable[..., R], *args: Any) -> Awaited[R]:
        """Call the function in a checker."""
        answer = Awaited[R](self._listen)
        self._pool.send(self._checking(), answer, function, *args)
        return answer

    def end_asides(self) -> None:
        """End the checkers, whose encoders take much memory. They are started again where something is asked.

        Workers, which have encoded what there was, let go of what they do not use any more.
        """
        self._end_checkers()
        for worker in self._workers:
            self._pool.send([worker], Awaited[None](self._listen), let_go)

    def _end_checkers(self) -> None:
        while self._checkers:
            self._pool.end(self._checkers.pop(), 0.0)

    def trial(self) -> Awaited[Trial] | None:
        """Try the fast encoder on awkward texts where it is loaded, while workers begin."""
        workers = self._working()
        if why_not := self._loaded.result():
            return Awaited.known(Trial(why_not=why_not))
        return self._asked(self._original or workers[0], trial)

    def close(self) -> None:
        """End the processes. Workers may finish what they are at; the checkers have nothing to lose."""
        for worker in self._workers:
            worker.no_more()
        end = time.monotonic() + STOPPING
        for worker in self._workers:
            self._pool.end(worker, max(0.0, end - time.monotonic()))
        self._end_checkers()
        if self._original is not None:  # it waits for the end of its copies
            self._pool.end(self._original, ENDING)
        self._pool.close()
