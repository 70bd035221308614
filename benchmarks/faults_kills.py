"""Directed kills: a worker of `cli compile` is killed at a moment of its life; the run must end, with its locks freed.

A trial starts a compile with an empty cache and 2 or 3 workers, waits until the n-th worker is there, waits a drawn
time, and sends SIGKILL. It fails if the run is there 10 seconds later ("slow", or "hang" after a minute), or ends with
another code than 5 in one message (or 0, where the worker had nothing left to do), or leaves a lock or a worker behind.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import corpus, meter

GOOD = frozenset({"exit 5", "exit 0"})
"""What a run may come to."""
LIMIT, HANG = 10.0, 60.0
"""Seconds from the death of a worker to the end of the run, and after which it counts as hanging."""


@dataclass(frozen=True)
class Kill:
    """A moment: `worker` counts from 0, `after` is seconds after that worker is there."""

    workers: int
    worker: int
    after: float


def moments(trials: int, seed: int, undisturbed: float) -> Iterator[Kill]:
    """Draw moments: a third at once, a third while workers load, a third at any time of an undisturbed run."""
    draw = random.Random(seed)
    for number in range(trials):
        workers = draw.choice((2, 3))
        after = (0.0, draw.uniform(0, 0.5), draw.uniform(0, undisturbed))[number % 3]
        yield Kill(workers, draw.randrange(workers), after)


def run(trials: int = 200, seed: int = 0) -> Counter[str]:
    """Kill; count what came of it. Every key but "exit 5" and "exit 0" is a failure."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        files = [str(path) for path in corpus.write(folder / "corpus", 3000)]
        start = time.monotonic()
        kill(folder, files, Kill(2, 9, 0))
        undisturbed = time.monotonic() - start
        for one in moments(trials, seed, undisturbed):
            outcome = kill(folder, files, one)
            found[outcome] += 1
            if outcome not in GOOD:
                print(f"kills: {one}: {outcome}", file=sys.stderr)
    return found


def kill(folder: Path, files: list[str], moment: Kill) -> str:
    """Run one trial; return what came of it."""
    cache, out = folder / "cache", folder / "out"
    for made in (cache, out):
        shutil.rmtree(made, ignore_errors=True)
    command = [sys.executable, "-m", "cli", "compile", *files, "--cache", str(cache), "-o", str(out)]
    with (folder / "stderr").open("w+") as stderr:
        process = subprocess.Popen(
            [*command, "--workers", str(moment.workers)], cwd=meter.ROOT, stdout=subprocess.DEVNULL, stderr=stderr
        )
        workers: list[int] = []
        while process.poll() is None and len(workers := workers_of(process.pid)) <= moment.worker:
            time.sleep(0.0005)
        if process.poll() is None:
            time.sleep(moment.after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(workers[moment.worker], signal.SIGKILL)
        killed = time.monotonic()
        try:
            code = process.wait(HANG if moment.worker < moment.workers else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return "hang"
        stderr.seek(0)
        text = stderr.read()
    if any(Path(f"/proc/{worker}").exists() for worker in workers):
        return "a worker is left"
    if (out / ".lock").exists():
        return "a lock is left"
    if code == 5 and (text.count("error:") != 1 or "Traceback" in text):
        return "exit 5 with another message"
    return f"exit {code}" if code == 0 or time.monotonic() - killed < LIMIT else "slow"


def workers_of(process: int) -> list[int]:
    """The processes that a process has started, and those that these have, in order."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it ended
        for path in Path(f"/proc/{process}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return sorted({*found, *(other for child in found for other in workers_of(child))})
