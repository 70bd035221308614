"""Progress on stderr, results on stdout; plain text where nobody is watching."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TypeVar

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from compiler.units.progress import Done, Watcher

T = TypeVar("T")


class _RichWatcher(Watcher):
    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        self._task = progress.add_task("compiling", total=None)
        self._began = time.monotonic()

    def units(self, done: Done) -> None:
        said = line(done, time.monotonic() - self._began)
        self._progress.update(self._task, description=said, completed=done.share, total=done.share and 1.0)

    def put(self, done: int, total: int) -> None:
        self._progress.update(self._task, description=f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB in the store")

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def line(done: Done, seconds: float) -> str:
    """Return how far a run is after some seconds, in one line."""
    rates = f"{done.rows / seconds:,.0f} rows/s, {done.bytes / 1e6 / seconds:,.1f} MB/s"
    units = f"{done.compiled:,} units compiled, {done.cached:,} cached"
    rejected = f", {done.rejected:,} rejected" if done.rejected else ""
    return f"{done.dataset}: {done.rows:,} rows ({rates}), {units}{rejected}"


@contextmanager
def watch() -> Iterator[Watcher]:
    """Give a watcher that draws progress on stderr; without a terminal it only says what must be said."""
    console = Console(file=sys.stderr)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _RichWatcher(progress, console)


def track(items: Sequence[T]) -> Iterable[T]:
    """Yield the items, drawing on stderr how many are done; without a terminal nothing is drawn."""
    console = Console(file=sys.stderr)
    return rich.progress.track(items, "checking", console=console, transient=True, disable=not console.is_terminal)


def print_out(renderable: RenderableType) -> None:
    """Print to stdout, as wide as the terminal is; elsewhere as wide as needed, or as COLUMNS says."""
    console = Console(file=sys.stdout)
    if console.is_terminal:
        console.print(renderable, markup=False, highlight=False)
        return
    console = Console(file=StringIO(), width=None if "COLUMNS" in os.environ else 160)
    with console.capture() as capture:
        console.print(renderable, markup=False, highlight=False)
    for line in capture.get().splitlines():
        print(line.rstrip())  # rich fills the cells of a table with spaces
