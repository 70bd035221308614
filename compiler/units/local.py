"""Units on this machine: in this process, or in a pool of fresh processes that pull from one queue."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker

from compiler.proof.encoders import Trial
from compiler.units.task import Outcome, Setup, Task
from compiler.units.unit import run_unit, trial, warm_up
from schemas.errors import InputError

Done = Callable[[Task, Outcome], str]
"""Takes what came of a task; returns "", or why the run must be done in another way."""


@dataclass
class Warm:
    """What workers load before there is a task for them."""

    setup: Setup
    pool: ProcessPoolExecutor | None = None

    def up(self, pool: ProcessPoolExecutor, workers: int) -> None:
        """Let the workers load it."""
        self.pool = pool
        for _ in range(workers):
            pool.submit(warm_up, self.setup)

    def trial(self) -> Trial | None:
        """Try the fast encoder of a worker on awkward texts; None while there are no workers."""
        return None if self.pool is None else self.pool.submit(trial, self.setup).result()


def run(tasks: Iterable[Task], workers: int, done: Done, *, warm: Warm | None = None) -> str:
    """Run the tasks, calling `done` for each as it ends. Return "", or what `done` said, which ends the run.

    At most two tasks per worker are in flight, so a long list of units (and the bytes that some carry) is never held
    at once. Workers are spawned, not forked: nothing that was initialised in this process is half-inherited. They load
    what `warm` names while the first task is still being made ready.
    """
    # One encoder thread per process where workers are the parallelism. (The fast encoder sees to that itself.)
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if workers > 1 else "true"
    iterator = iter(tasks)
    if workers == 1:
        return _run_here(iterator, done)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent)
    flying: dict[Future[Outcome], Task] = {}
    try:
        if warm is not None:
            with _interrupts_held():
                warm.up(pool, workers)
        for task in iterator:
            with _interrupts_held():
                flying[pool.submit(run_unit, task)] = task
            if len(flying) >= 2 * workers and (trouble := _collect(flying, done)):
                return trouble
        while flying:
            if trouble := _collect(flying, done):
                return trouble
    except BrokenProcessPool as error:
        raise InputError(
            "workers", "a worker process was killed, most often for memory",
            "Run again with fewer --workers; what was compiled so far is kept.",
        ) from error  # fmt: skip
    finally:
        if warm is not None:
            warm.pool = None
        pool.shutdown(wait=True, cancel_futures=True)
    return ""


def _end_with_parent() -> None:
    """End this worker when its parent is gone: a parent that was killed cannot tell it to."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_it, daemon=True).start()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while a worker may be started: it inherits that for good, and leaves the stopping to us."""
    resource_tracker.ensure_running()  # when it starts it lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_here(tasks: Iterable[Task], done: Done) -> str:
    for task in tasks:
        if trouble := done(task, run_unit(task)):
            return trouble
    return ""


def _collect(flying: dict[Future[Outcome], Task], done: Done) -> str:
    ready, _ = wait(flying, return_when=FIRST_COMPLETED)
    for future in ready:
        task = flying.pop(future)
        if trouble := done(task, future.result()):
            return trouble
    return ""
