"""Units on this machine: in this process, or in a pool of fresh processes that pull from one queue."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker

from compiler.proof.encoders import Trial
from compiler.units.task import OnOutcome, Outcome, Setup, Task, Trouble
from compiler.units.unit import run_unit, trial, warm_up
from schemas.errors import InputError


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
    """Units in processes of their own."""

    pool: ProcessPoolExecutor
    setup: Setup
    count: int

    def trial(self) -> Trial | None:
        """Try the fast encoder of a worker on awkward texts."""
        return self.pool.submit(trial, self.setup).result()

    def run(self, tasks: Iterable[Task], on_outcome: OnOutcome) -> Trouble | None:
        """Run the tasks, at most two for each worker at once, so that a long list of units is never in memory."""
        flying: dict[Future[Outcome], Task] = {}
        for task in tasks:
            with _interrupts_held():
                flying[self.pool.submit(run_unit, task)] = task
            if len(flying) >= 2 * self.count and (trouble := _collect(flying, on_outcome)):
                return trouble
        while flying:
            if trouble := _collect(flying, on_outcome):
                return trouble
        return None


@contextmanager
def workers(count: int, setup: Setup) -> Iterator[Workers]:
    """Start `count` workers, which load the tokenizer and the template of the setup at once.

    They are spawned, not forked: nothing that was initialised in this process is half-inherited.
    """
    # One encoder thread per process where workers are the parallelism. (The fast encoder sees to that itself.)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_end_with_parent)
    try:
        with _interrupts_held():
            for _ in range(count):
                pool.submit(warm_up, setup)
        yield Workers(pool, setup, count)
    except BrokenProcessPool as error:
        raise InputError(
            "workers", "a worker process was killed, most often for memory",
            "Run again with fewer --workers; what was compiled so far is kept.",
        ) from error  # fmt: skip
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
    """Block Ctrl-C while a worker may be started. The worker stays blocked, and this process stops it."""
    resource_tracker.ensure_running()  # when it starts it lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _collect(flying: dict[Future[Outcome], Task], on_outcome: OnOutcome) -> Trouble | None:
    ready, _ = wait(flying, return_when=FIRST_COMPLETED)
    for future in ready:
        task = flying.pop(future)
        if trouble := on_outcome(task, future.result()):
            return trouble
    return None
