"""Progress on stderr, results on stdout; plain text where nobody is watching."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from compiler.collect import Watcher

T = TypeVar("T")


class _RichWatcher(Watcher):
    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        self._task = progress.add_task("compiling", total=None)

    def units(self, dataset: str, cached: int, compiled: int) -> None:
        done = f"{compiled} units compiled, {cached} cached ({dataset})"
        self._progress.update(self._task, description=done)

    def put(self, done: int, total: int) -> None:
        self._progress.update(self._task, description=f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB in the store")

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def watch() -> Iterator[Watcher]:
    """Give a watcher that draws progress on stderr; without a terminal it only says what must be said."""
    console = Console(file=sys.stderr)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _RichWatcher(progress, console)


def track(items: Sequence[T]) -> Iterable[T]:
    """Yield the items, drawing on stderr how many are done; without a terminal nothing is drawn."""
    console = Console(file=sys.stderr)
    return rich.progress.track(items, "checking", console=console, transient=True, disable=not console.is_terminal)


def print_out(renderable: RenderableType) -> None:
    """Print to stdout; as wide as needed where stdout is not a terminal."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=160)
    console.print(renderable, markup=False, highlight=False)
