"""The profiler of torch over some steps of a run, in its first process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from trainer import device
from trainer.run.plan import RunPlan

Step = TypeVar("Step")


def profiled(steps: Iterator[Step], count: int, plan: RunPlan, say: Callable[[str], None]) -> Iterator[Step]:
    """Yield the steps, and record `count` of them: from the second on, since the first compiles and allocates.

    The trace is written to output_dir as soon as they are done, or the run ends.
    """
    profiler = device.profiler(plan.device.kind)
    first = min(1, plan.steps - plan.start - 1)
    done = 0
    try:
        for number, one in enumerate(steps):
            if number == first:
                profiler.start()
            yield one
            done += number >= first
            if done == count:
                break
    finally:
        if done:
            profiler.stop()
            path = plan.output / f"trace-{plan.start + first + 1}-{plan.start + first + done}.json.gz"
            profiler.export_chrome_trace(str(path))
            say(f"trace of {done} steps: {path} (open it at ui.perfetto.dev or chrome://tracing)")
    yield from steps
