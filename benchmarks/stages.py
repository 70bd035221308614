"""`python -m benchmarks.stages TOKENIZER FILE...`: the time of a row by stage, with everything loaded."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from compiler.cache import objects
from compiler.conversation import Conversation
from compiler.encode.columns import Example, columns_of
from compiler.encode.tokens import encode
from compiler.options import CompileOptions
from compiler.pipeline import begin
from compiler.read import read
from compiler.tokenizer.encoders import FAST
from compiler.units.progress import Watcher
from compiler.units.task import Task
from compiler.units.unit import _UnitCompiler
from schemas.memory import without_collections

T = TypeVar("T")


def tasks_of(tokenizer: Path, files: list[str], folder: Path) -> list[Task]:
    """The units of the files, as a run would compile them."""
    options = CompileOptions(folder / "out", folder / "cache", tuple(files), tokenizer=tokenizer)
    run, _, _ = begin(options, Watcher())
    return [replace(task, encoder=FAST) for task in run.plan().units()]


def measure(tasks: list[Task]) -> tuple[Counter[str], int]:
    """CPU seconds by stage, and the number of rows."""
    spent: Counter[str] = Counter()
    with without_collections():
        return spent, sum(_stages(task, spent) for task in tasks)


def _stages(task: Task, spent: Counter[str]) -> int:
    """Compile a unit stage by stage; return the number of its rows."""

    def timed(stage: str, work: Callable[[], T]) -> T:
        start = time.process_time()
        found = work()
        spent[stage] += time.process_time() - start
        return found

    one = _UnitCompiler(task)
    rows = timed("read, parse", lambda: list(read(one.task.unit)))
    made = timed("check, lift", lambda: [one._conversations(row) for row in rows])
    said = [(row, c) for row, some in zip(rows, made, strict=True) for c in some if isinstance(c, Conversation)]
    found = timed("render", lambda: one.maker.make([c for _, c in said], Counter()))
    sequences = [first for examples in found if isinstance(examples, list) for _, (first, *_) in examples]
    encoded = timed("fill, encode", lambda: encode(sequences, one.tokenizer, task.encoder))
    kept = [Example(row, 0, c, e) for (row, c), e in zip(said, encoded, strict=True)]
    one.batches.append(timed("columns", lambda: columns_of(kept, one.task.unit, one.owners)))
    cache = Path(task.cache) / "stages"
    timed("write the object", lambda: objects.store(cache, task.key, one.table(), one.info(0)))
    return len(rows)


def main() -> None:
    """Print the table."""
    tokenizer, *files = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        tasks = tasks_of(Path(tokenizer), files, Path(name))
        measure(tasks)  # every shape has its skeleton then
        spent, rows = measure(tasks)
    for stage, seconds in spent.items():
        print(f"{stage:28} {seconds / rows * 1e6:7.1f} us")
    print(f"{'sum':28} {sum(spent.values()) / rows * 1e6:7.1f} us a row ({rows:,} rows)")


if __name__ == "__main__":
    main()
