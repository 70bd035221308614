"""What workers do in `benchmarks.coordinator` and `benchmarks.bars`: they sleep as long as work takes, or note it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from compiler.cache import objects
from compiler.sets.link import BATCH_ROWS, ShardJob
from compiler.units.asked import load_fast
from compiler.units.settle import look_up, settle
from compiler.units.task import Outcome, Setup, Task
from schemas.manifest import BatchEntry, ShardEntry

A_ROW, A_TOKEN = 65e-6, 12e-9
"""Seconds that a worker takes to compile a row, and to write a token into a shard."""
_KEPT: dict[str, objects.Object] = {}


def noted_unit(task: Task) -> Outcome:
    """Note in the file $FIRST_UNIT when the first unit is under way; settle it."""
    with suppress(FileExistsError), Path(os.environ["FIRST_UNIT"]).open("x", encoding="utf-8") as file:
        file.write(str(time.time()))
    return settle(task)


def load_kept(setup: Setup) -> str:
    """Load the objects of the cache $KEPT into the process that workers are copied from: they would each take time of
    the two processors that the coordinator has."""
    for path in sorted(Path(os.environ["KEPT"]).glob("objects/*/*.arrow")):
        found = look_up(Path(os.environ["KEPT"]), path.stem, setup.tokenizer_digest)
        if found is not None:
            _KEPT[path.stem] = found
    return load_fast(setup)


def sleeping_unit(task: Task) -> Outcome:
    """Sleep as long as the unit takes; return an object of as many rows as units have."""
    if not _KEPT:  # on Ray
        os.environ["KEPT"] = task.cache
        load_kept(task.setup)
    key = sorted(_KEPT)[task.number % len(_KEPT)]
    time.sleep(A_ROW * _KEPT[key].num_rows)
    return Outcome(object=_KEPT[key], digest=f"{task.number:064x}", key=key)


def sleeping_shard(job: ShardJob) -> ShardEntry:
    """Sleep as long as the shard takes; return an entry like its own."""
    tokens, rows = int(job.lengths.sum()), len(job.repeats)
    time.sleep(A_TOKEN * tokens)
    batches: list[BatchEntry] = [
        {"offset": n, "length": 1, "rows": min(BATCH_ROWS, rows - n), "xxh3": f"{n:032x}"}
        for n in range(0, rows, BATCH_ROWS)
    ]
    job.file.touch()
    name = f"{job.split}/{job.file.name}"
    return {
        "file": name, "rows": rows, "tokens": tokens, "trained_tokens": tokens, "bytes": 8 * tokens,
        "sha256": f"{tokens:064x}", "batches": batches,
    }  # fmt: skip
