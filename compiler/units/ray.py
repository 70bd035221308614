"""Units on a Ray cluster: the same `run_unit` as core tasks, one CPU each.

A task carries where its unit is (and the bytes of a unit that cannot be read by range, which go through Ray's object
store); the object goes straight into the cache, which every node sees, and only what came of it comes back.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from compiler.proof.encoders import Trial
from compiler.units.machines import Terms, check, check_name, marked, portable, terms_of
from compiler.units.processes import lost
from compiler.units.task import OnOutcome, Outcome, Task, Trouble
from compiler.units.unit import run_unit
from schemas import install
from schemas.errors import InputError, Problem, Terminated, UsageError

TRIES = 4
"""How often a unit is started, if workers or nodes are lost while they compile it, before the run ends."""
STARTING = 60.0
"""Seconds that a node has to start its first worker."""
LOOKING = 2.0
"""Seconds between two looks at which nodes there are: one that joins and is lost in between is not missed."""
PATIENCE = 10.0
"""Seconds without a result after which lost nodes are looked for."""
CONNECTING = 10.0
"""Seconds that the cluster's address has to answer."""
STOPPING = 10.0
"""Seconds that units which are being compiled have to stop."""


@dataclass(frozen=True)
class Cluster:
    """Units on a Ray cluster. The address "" means $RAY_ADDRESS, or else a cluster on this machine for this run."""

    address: str
    workers: int
    """Tasks in flight at most; 0 = twice the CPUs of the cluster, so that none of them waits for this process."""
    say: Callable[[str], None]

    def trial(self) -> Trial | None:
        """None: no worker runs before there are tasks."""
        return None

    def run(self, tasks: Iterable[Task], on_outcome: OnOutcome) -> Trouble | None:
        """Run the tasks. The unit of a lost worker or node is compiled again."""
        iterator = map(portable, tasks)
        first = next(iterator, None)
        if first is None:
            return None
        with marked(Path(first.cache)) as mark, _connected(self.address, self.workers) as ray:
            terms = terms_of(first.cache, mark, first.encoder, (first.setup.tokenizer, first.unit.path))
            _check_nodes(ray, terms)
            flight = _Flight(ray, terms, on_outcome, self.say)
            try:
                return flight.run(chain([first], iterator), self.workers or 2 * int(ray.cluster_resources()["CPU"]))
            finally:
                flight.stop()


@contextmanager
def _connected(address: str, workers: int) -> Iterator[Any]:
    """Connect to Ray. What it would print is in its logs; our stdout is for results."""
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray", "Ray is not installed", install.extra("ray")) from None
    address = address or os.environ.get("RAY_ADDRESS", "")
    where = f"--ray-address {address}" if address else "--engine ray"
    _check_address(where, address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {"address": "local", "num_cpus": workers or None, "include_dashboard": False}
    with redirect_stdout(io.StringIO()):
        try:
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **({"address": address} if address else own))
        except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
            raise _unreachable(where, str(error).splitlines()[0]) from error
        before = signal.signal(signal.SIGTERM, _terminated)  # Ray's own handler prints a C++ stack and exits with 15
        try:
            yield ray
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)


def _terminated(*_: object) -> None:
    hint = "What was compiled is in the cache: run the same command again."
    raise Terminated("--engine ray", "SIGTERM ended the run", hint)


def _check_address(where: str, address: str) -> None:
    """Raise for an address at which nobody listens. Ray itself would wait a quarter of an hour."""
    if "://" in address:
        what = "expected HOST:PORT or auto; Ray's client protocol is for machines outside of the cluster"
        raise UsageError(where, what, "Run this on a machine of the cluster.")
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECTING).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(where, str(error)) from error


def _unreachable(where: str, why: str) -> InputError:
    how = "Start it with `ray start --head`, which says its HOST:PORT; Python and Ray must be the same everywhere."
    return InputError(where, f"no Ray cluster could be reached: {why}", how)


def _nodes(ray: Any) -> dict[str, str]:
    """The names of the nodes that can run tasks, by their ids."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return {node["NodeID"]: node["NodeName"] for node in alive}


def _check_nodes(ray: Any, terms: Terms) -> None:
    """Raise unless every node that can run tasks is as the run needs it. A node that joins later checks itself."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    names = _nodes(ray)
    if not names:
        raise InputError("--engine ray", "no node of the cluster has a CPU for tasks", "Add a node: ray start.")
    probe = ray.remote(_look)
    asked = {
        probe.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(terms): name
        for node, name in names.items()
    }
    for ref, name in asked.items():
        try:
            _get(ray, ref, timeout=STARTING)
        except _lost(ray):
            continue  # a node that is gone compiles nothing
        except ray.exceptions.GetTimeoutError:
            raise InputError(
                f"node {name}", f"started no worker in {STARTING:.0f} seconds", "See its Ray logs."
            ) from None
        except ray.exceptions.RayTaskError as error:
            what = f"the compiler does not run there: {error.cause!r}"
            how = "Install the same version of everything on every machine."
            raise InputError(f"node {name}", what, how) from error


def _get(ray: Any, ref: Any, timeout: float | None = None) -> Any:
    """Get the result of a task. An error for the user is raised as the task raised it."""
    try:
        return ray.get(ref, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Problem | OSError):
            raise error.cause from None
        if isinstance(error.cause, MemoryError):
            raise lost("a worker process has no memory left") from None
        raise
    except (*_lost(ray), ray.exceptions.GetTimeoutError):
        raise
    except ray.exceptions.RayError as error:
        what = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise InputError("--engine ray", what, "See Ray's logs; what was compiled is kept.") from error


def _lost(ray: Any) -> tuple[type[Exception], ...]:
    """The errors of a lost worker, node or result, after which a unit is compiled again."""
    of = ray.exceptions
    return (of.WorkerCrashedError, of.NodeDiedError, of.OutOfMemoryError, of.ObjectLostError, of.TaskUnschedulableError)


def _look(terms: Terms) -> None:
    """Check a node, in a worker of it."""
    check(terms)


def _compile(task: Task, terms: Terms) -> Outcome:
    """Compile a unit in a worker of the cluster."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one encoder thread per process: the workers are the parallelism
    check(terms)
    check_name(task)
    try:
        return run_unit(task)
    except Problem as problem:
        where = f"{problem.where} (on {socket.gethostname()})"
        raise type(problem)(where, problem.what, problem.hint) from problem


class _Flight:
    """The tasks that Ray has and that have not come back.

    A task whose worker is lost is given to Ray again by us, not by Ray: it would do so without a word, and without
    end where the memory of a node is not enough.
    """

    def __init__(self, ray: Any, terms: Terms, on_outcome: OnOutcome, say: Callable[[str], None]) -> None:
        self.ray, self.terms, self.on_outcome, self.say = ray, terms, on_outcome, say
        self.compile = ray.remote(_compile).options(num_cpus=1, max_retries=0)
        self.flying: dict[Any, tuple[Task, int]] = {}
        self.nodes = set(_nodes(ray))
        """All nodes that were seen and are not known to be lost."""
        self.looked = time.monotonic()

    def run(self, tasks: Iterable[Task], limit: int) -> Trouble | None:
        for task in tasks:
            self._submit(task, 1)
            while len(self.flying) >= limit:
                if trouble := self._collect():
                    return trouble
        while self.flying:
            if trouble := self._collect():
                return trouble
        return None

    def stop(self) -> None:
        """Cancel what has not come back, and wait until it writes nothing any more."""
        for ref in self.flying:
            self.ray.cancel(ref)
        if self.flying:
            self.ray.wait(list(self.flying), num_returns=len(self.flying), timeout=STOPPING)

    def _submit(self, task: Task, tries: int) -> None:
        self.flying[self.compile.remote(task, self.terms)] = task, tries

    def _collect(self) -> Trouble | None:
        """Wait for a task, and take all that have come back by then."""
        refs = list(self.flying)
        if not self.ray.wait(refs, timeout=PATIENCE)[0]:
            self._look_for_lost_nodes()
            return None
        for ref in self.ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
            task, tries = self.flying.pop(ref)
            try:
                outcome = _get(self.ray, ref)
            except _lost(self.ray) as error:
                self._again(task, tries, type(error).__name__)
                continue
            if trouble := self.on_outcome(task, outcome):
                return trouble
        if time.monotonic() - self.looked > LOOKING:
            self.looked = time.monotonic()
            self.nodes |= set(_nodes(self.ray))  # one that joined during the run may have tasks too
        return None

    def _look_for_lost_nodes(self) -> None:
        """Give Ray again what may have been on a lost node: a node that falls silent answers nothing for minutes.

        A unit that is compiled twice for that is the same object twice.
        """
        before, self.nodes = self.nodes, set(_nodes(self.ray))
        if not self.nodes:
            raise InputError("--engine ray", "no node of the cluster has a CPU any more", "Add nodes, and run again.")
        if before - self.nodes:
            given = list(self.flying.values())
            self.flying.clear()
            for task, tries in given:
                self._again(task, tries, "its node is gone")

    def _again(self, task: Task, tries: int, why: str) -> None:
        where = f"{task.unit.path} at {task.unit.offset}"
        if tries == TRIES:
            raise InputError(
                where, f"every worker that compiled this unit was lost, the last of {TRIES} with {why}",
                "Most often that is memory: fewer --workers, or nodes with more of it. What was compiled is kept.",
            )  # fmt: skip
        self.say(f"{where}: the worker was lost ({why}); the unit is compiled again")
        self._submit(task, tries + 1)
