"""`python -m benchmarks.coordinator ROWS WORKERS [--ray CPUS]`: how well the coordinator feeds many workers.

Workers that sleep as long as a unit, or a shard, takes cost no time of a processor, so that a machine of two cores can
have 64 of them. All else is real: files are cut, tasks and outcomes go through sockets (or Ray), rows are mixed, shards
are planned, the manifest is written. Objects are one of the cache, again and again.

Prints the efficiency, which is the time that so many workers would need at least over the time that was taken, the same
until the last unit was there, and what a row takes of the coordinator's processor. A shard is written by one worker, so
a set of few shards keeps most of 64 workers waiting in the end, whatever the coordinator does.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from benchmarks import corpus
from benchmarks.run import tokenizer_folder
from benchmarks.sleepers import A_ROW, A_TOKEN, load_kept, sleeping_shard, sleeping_unit
from compiler.options import CompileOptions
from compiler.pipeline import compile_set
from compiler.units.progress import Watcher


class Clock(Watcher):
    """Notes when units came back, and shards."""

    def __init__(self) -> None:
        self.of_units: list[float] = []
        self.of_shards: list[float] = []

    def units(self, _: object) -> None:
        """Note the time."""
        self.of_units.append(time.perf_counter())

    def linked(self, *_: object) -> None:
        """Note the time."""
        self.of_shards.append(time.perf_counter())


def main() -> None:
    """Compile a little for real, then all with sleeping workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("workers", type=int)
    parser.add_argument("--ray", type=int, metavar="CPUS", help="tasks of Ray's own cluster of so many CPUs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "cache"
        few = tuple(str(path) for path in corpus.write(folder / "few", 6000))
        options = CompileOptions(folder / "out", cache, few, tokenizer=tokenizer_folder(), workers=2)
        compile_set(options, Watcher())
        many = tuple(str(path) for path in corpus.write(folder / "many", given.rows))
        workers = given.workers if given.ray is None else given.ray
        engine = "local" if given.ray is None else "ray"
        options = replace(options, files=many, workers=workers, engine=engine)
        clock, before = Clock(), resource.getrusage(resource.RUSAGE_SELF)
        with (
            patch.dict(os.environ, {"KEPT": str(cache)}),
            patch("compiler.units.local.load_fast", load_kept),
            patch("compiler.units.plan.look_up", lambda *_: None),
            patch("compiler.units.run.settle", sleeping_unit),
            patch("compiler.sets.link.write_shard", sleeping_shard),
        ):
            manifest = compile_set(options, clock).manifest
        after = resource.getrusage(resource.RUSAGE_SELF)
    rows, tokens = manifest["splits"]["train"]["rows"], manifest["splits"]["train"]["tokens"]
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    first, last = clock.of_units[0], clock.of_units[-1]
    wall = clock.of_shards[-1] - first
    alone = A_ROW * rows / workers
    least = alone + A_TOKEN * tokens / workers
    print(f"{rows:,} rows, {workers} sleeping workers ({engine}): {wall:.2f} s, at least {least:.2f} s")
    print(f"efficiency {least / wall:.2f}, of units alone {alone / (last - first):.2f}")
    print(f"the coordinator took {spent / rows * 1e6:.1f} us a row")


if __name__ == "__main__":
    main()
