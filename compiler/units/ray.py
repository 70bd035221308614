"""Work on a Ray cluster: the same functions as core tasks, one CPU each.

A task carries where its unit is (and the bytes of a unit that cannot be read by range, which go through Ray's object
store); the object goes straight into the cache, which every node sees, and what was counted and where the words are
comes back. Shards are written by the nodes too, where they see the folder of the set.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from compiler.proof.encoders import Trial
from compiler.read import Ask
from compiler.units.connect import connected
from compiler.units.local import Pool
from compiler.units.machines import Terms, check, check_recipe, marked, portable, terms_of
from compiler.units.processes import Worker, lost
from compiler.units.task import AHEAD, Awaited, Setup, Task
from schemas.errors import InputError, Problem

T = TypeVar("T")
R = TypeVar("R")

TRIES = 4
"""How often a unit is started, if workers or nodes are lost while they compile it, before the run ends."""
STARTING = 60.0
"""Seconds that a node has to start its first worker."""
LOOKING = 2.0
"""Seconds between two looks at which nodes there are: one that joins and is lost in between is not missed."""
PATIENCE = 10.0
"""Seconds without a result after which lost nodes are looked for."""
STOPPING = 10.0
"""Seconds that units which are being compiled have to stop."""


class Cluster:
    """A Ray cluster. The address "" means $RAY_ADDRESS, or else a cluster on this machine for this run."""

    ask: Ask | None = None
    """What is short takes longer to send to another machine."""

    def __init__(self, address: str, workers: int, setup: Setup, cache: Path, say: Callable[[str], None]) -> None:
        """`workers` are tasks in flight at most; 0 = twice the CPUs of the cluster, so that none waits for us."""
        self._address, self._workers, self._setup, self._cache, self._say = address, workers, setup, cache, say
        self._stack = ExitStack()
        self._checkers, self._pool = list[Worker](), Pool()
        self._ray: Any = None
        self._terms: Terms | None = None

    def run(self, function: Callable[[T], R], items: Iterable[T], ahead: int = AHEAD) -> Iterator[tuple[T, R]]:
        """Call the function on each item, which is a unit or a shard. What a lost worker or node had is done again."""
        iterator = iter(items)
        first = next(iterator, None)
        if first is None:
            return
        terms = self._begun(first)
        flight = _Flight(self._ray, terms, function, self._say)
        limit = self._workers or ahead * int(self._ray.cluster_resources()["CPU"])
        try:
            for found in flight.run(chain([first], iterator), limit):
                self._listen(0)
                yield found
        finally:
            flight.stop()

    def _begun(self, first: object) -> Terms:
        """Connect, and check all nodes, unless that was done."""
        if self._terms is None:
            assert isinstance(first, Task)
            mark = self._stack.enter_context(marked(self._cache))
            self._ray = self._stack.enter_context(connected(self._address, self._workers))
            paths = (self._setup.tokenizer, portable(first).unit.path)
            self._terms = terms_of(str(self._cache), mark, first.encoder, paths)
            _check_nodes(self._ray, self._terms)
        return self._terms

    def sees(self, folder: Path) -> bool:
        """Whether all nodes see this machine's folder, so that they can write into it; a note says if one does not."""
        if self._ray is None:
            return False
        mark = folder.absolute() / f".{uuid.uuid4().hex}"
        mark.touch()
        try:
            blind = [name for name, found in _asked(self._ray, _is_there, str(mark)) if not found]
        finally:
            mark.unlink()
        if blind:
            self._say(f"{folder.parent}: node {blind[0]} does not see it; this machine alone writes the shards")
        return not blind

    def aside(self, function: Callable[..., R], *args: Any) -> Awaited[R]:
        """Call the function in a process of this machine."""
        if not self._checkers:
            self._checkers.append(self._pool.add(Worker.fresh()))
        answer = Awaited[R](self._listen)
        self._pool.send(self._checkers, answer, function, *args)
        return answer

    def end_asides(self) -> None:
        """End the process of this machine that was asked."""
        while self._checkers:
            self._pool.end(self._checkers.pop(), 0.0)

    def _listen(self, seconds: float | None = None) -> None:
        for _ in self._pool.listen(seconds):
            pass

    def trial(self) -> Awaited[Trial] | None:
        """None: no worker runs before there are tasks."""
        return None

    def close(self) -> None:
        """Leave the cluster; end what runs on this machine."""
        self.end_asides()
        self._pool.close()
        self._stack.close()


def _nodes(ray: Any) -> dict[str, str]:
    """The names of the nodes that can run tasks, by their ids."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return {node["NodeID"]: node["NodeName"] for node in alive}


def _check_nodes(ray: Any, terms: Terms) -> None:
    """Raise unless every node that can run tasks is as the run needs it. A node that joins later checks itself."""
    for _ in _asked(ray, check, terms):
        pass


def _asked(ray: Any, function: Callable[..., object], *args: object) -> Iterator[tuple[str, object]]:
    """Call a function in a worker of every node; yield the names of the nodes, and what it returned."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    names = _nodes(ray)
    if not names:
        raise InputError("--engine ray", "no node of the cluster has a CPU for tasks", "Add a node: ray start.")
    probe = ray.remote(_call)
    asked = {
        probe.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(function, args): name
        for node, name in names.items()
    }
    for ref, name in asked.items():
        try:
            yield name, _get(ray, ref, timeout=STARTING)
        except _lost(ray):
            continue  # a node that is gone does nothing
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


def _ready(ray: Any, refs: list[Any], count: int, seconds: float) -> list[Any]:
    """Wait so long for so many results; those that are there."""
    try:
        ready: list[Any] = ray.wait(refs, num_returns=count, timeout=seconds)[0]
    except SystemError as error:  # a signal's handler raised in Ray's code, which does not expect that
        if isinstance(error.__cause__, Problem):
            raise error.__cause__ from None
        raise
    return ready


def _lost(ray: Any) -> tuple[type[Exception], ...]:
    """The errors of a lost worker, node or result, after which a unit is compiled again."""
    of = ray.exceptions
    return (of.WorkerCrashedError, of.NodeDiedError, of.OutOfMemoryError, of.ObjectLostError, of.TaskUnschedulableError)


def _call(function: Callable[..., object], args: tuple[object, ...]) -> object:
    """Call a function in a worker of the cluster."""
    return function(*args)


def _is_there(path: str) -> bool:
    return Path(path).exists()


def _do(function: Callable[[T], R], item: T, terms: Terms) -> R:
    """Do an item in a worker of the cluster."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one encoder thread per process: the workers are the parallelism
    check(terms)
    if isinstance(item, Task):
        check_recipe(item)
    try:
        return function(item)
    except Problem as problem:
        where = f"{problem.where} (on {socket.gethostname()})"
        raise type(problem)(where, problem.what, problem.hint) from problem


class _Flight:
    """The items that Ray has and that have not come back.

    An item whose worker is lost is given to Ray again by us, not by Ray: it would do so without a word, and without
    end where the memory of a node is not enough.
    """

    def __init__(self, ray: Any, terms: Terms, function: Callable[[T], R], say: Callable[[str], None]) -> None:
        self.ray, self.terms, self.function, self.say = ray, terms, function, say
        self.do = ray.remote(_do).options(num_cpus=1, max_retries=0, name=function.__name__)
        self.flying: dict[Any, tuple[Any, int]] = {}
        self.nodes = set(_nodes(ray))
        """All nodes that were seen and are not known to be lost."""
        self.looked = time.monotonic()

    def run(self, items: Iterable[Any], limit: int) -> Iterator[tuple[Any, Any]]:
        for item in items:
            self._submit(item, 1)
            while len(self.flying) >= limit:
                yield from self._collect()
        while self.flying:
            yield from self._collect()

    def stop(self) -> None:
        """Cancel what has not come back, and wait until it writes nothing any more."""
        for ref in self.flying:
            self.ray.cancel(ref)
        if self.flying:
            self.ray.wait(list(self.flying), num_returns=len(self.flying), timeout=STOPPING)

    def _submit(self, item: Any, tries: int) -> None:
        given = replace(portable(item), is_again=tries > 1) if isinstance(item, Task) else item
        self.flying[self.do.remote(self.function, given, self.terms)] = item, tries

    def _collect(self) -> Iterator[tuple[Any, Any]]:
        """Wait for an item, and yield all that have come back by then."""
        refs = list(self.flying)
        if not _ready(self.ray, refs, 1, PATIENCE):
            self._look_for_lost_nodes()
            return
        for ref in _ready(self.ray, refs, len(refs), 0.0):
            item, tries = self.flying.pop(ref)
            try:
                found = _get(self.ray, ref)
            except _lost(self.ray) as error:
                self._again(item, tries, type(error).__name__)
                continue
            yield item, found
        if time.monotonic() - self.looked > LOOKING:
            self.looked = time.monotonic()
            self.nodes |= set(_nodes(self.ray))  # one that joined during the run may have items too

    def _look_for_lost_nodes(self) -> None:
        """Give Ray again what may have been on a lost node: a node that falls silent answers nothing for minutes.

        What is done twice for that makes the same file twice.
        """
        before, self.nodes = self.nodes, set(_nodes(self.ray))
        if not self.nodes:
            raise InputError("--engine ray", "no node of the cluster has a CPU any more", "Add nodes, and run again.")
        if before - self.nodes:
            given = list(self.flying.values())
            self.flying.clear()
            for item, tries in given:
                self._again(item, tries, "its node is gone")

    def _again(self, item: Any, tries: int, why: str) -> None:
        if isinstance(item, Task):
            where, what, done = f"{item.unit.path} at {item.unit.offset}", "unit", "compiled"
        else:
            where, what, done = f"{item.split}/{item.file.name}", "shard", "written"
        if tries == TRIES:
            raise InputError(
                where, f"every worker by which this {what} was {done} was lost, the last of {TRIES} with {why}",
                "Most often that is memory: fewer --workers, or nodes with more of it. What was compiled is kept.",
            )  # fmt: skip
        self.say(f"{where}: the worker was lost ({why}); the {what} is {done} again")
        self._submit(item, tries + 1)
