"""Units on this machine: in this process, or in fresh processes, each asked by a thread that waits for its answer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from compiler.proof.encoders import Trial
from compiler.units.processes import STOPPING, Worker, interrupts_held
from compiler.units.task import OnOutcome, Outcome, Setup, Task, Trouble
from compiler.units.unit import run_unit
from compiler.units.warm import trial, warm_up

R = TypeVar("R")


class InProcess:
    """Units in this process, one after the other."""

    def trial(self) -> Trial | None:
        """None: no other process has loaded the fast encoder."""
        return None

    def run(self, tasks: Iterable[Task], on_outcome: OnOutcome) -> Trouble | None:
        """Run the tasks."""
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        for task in tasks:
            if trouble := on_outcome(task, run_unit(task)):
                return trouble
        return None


@dataclass(frozen=True)
class Workers:
    """Units in processes of their own. There is a thread for each, which takes the worker that is idle longest."""

    threads: ThreadPoolExecutor
    idle: SimpleQueue[Worker]
    setup: Setup
    count: int

    def trial(self) -> Trial | None:
        """Try the fast encoder of a worker on awkward texts."""
        return self.ask(trial, self.setup).result()

    def run(self, tasks: Iterable[Task], on_outcome: OnOutcome) -> Trouble | None:
        """Run the tasks, at most two for each worker at once, so that a long list of units is never in memory."""
        flying: dict[Future[Outcome], Task] = {}
        for task in tasks:
            flying[self.ask(run_unit, task)] = task
            if len(flying) >= 2 * self.count and (trouble := _collect(flying, on_outcome)):
                return trouble
        while flying:
            if trouble := _collect(flying, on_outcome):
                return trouble
        return None

    def ask(self, function: Callable[..., R], *args: Any) -> Future[R]:
        """Call a function in a worker. One that died stays among the others: whoever asks it is told."""

        def ask() -> R:
            worker = self.idle.get()
            try:
                return worker.ask(function, *args)
            finally:
                self.idle.put(worker)

        return self.threads.submit(ask)


@contextmanager
def workers(count: int, setup: Setup) -> Iterator[Workers]:
    """Start `count` workers, which load the tokenizer and the template of the setup at once."""
    # One encoder thread per process where workers are the parallelism. (The fast encoder sees to that itself.)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    started: list[Worker] = []
    threads, idle = ThreadPoolExecutor(count), SimpleQueue[Worker]()
    try:
        with _told_of_deaths(started):
            for _ in range(count):
                with interrupts_held():
                    started.append(Worker())
                idle.put(started[-1])
            engine = Workers(threads, idle, setup, count)
            for _ in range(count):
                engine.ask(warm_up, setup)
            yield engine
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in started:
            worker.no_more()
        end = time.monotonic() + STOPPING
        for worker in started:
            worker.stop(max(0.0, end - time.monotonic()))
        threads.shutdown()  # their workers are gone, so none of them waits
        for worker in started:
            worker.close()


@contextmanager
def _told_of_deaths(started: list[Worker]) -> Iterator[None]:
    """Raise in the main thread as soon as a worker dies: it may be busy for long before it asks that worker."""

    def on_death(*_: object) -> None:
        for worker in started:
            worker.check()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, on_death)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _collect(flying: dict[Future[Outcome], Task], on_outcome: OnOutcome) -> Trouble | None:
    ready, _ = wait(flying, return_when=FIRST_COMPLETED)
    for future in ready:
        task = flying.pop(future)
        if trouble := on_outcome(task, future.result()):
            return trouble
    return None
