"""Results on stdout, progress on stderr: drawn on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task
from rich.text import Text

from compiler.units.progress import Done, Watcher

T = TypeVar("T")
Figures = Callable[[float], list[str]]
"""From the seconds that some work has taken to the figures to show, the most important first."""

EVERY = 10.0
"""Seconds between two lines of progress."""
_RECENT = 60.0
"""The time left is estimated from the last seconds: units from the cache are faster than the others."""
_BAR = 12


class _Progress:
    """One kind of work: the share that is done, its figures, and the time left."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.share: float | None = None
        self._figures: Figures = lambda _: []
        self._began = time.monotonic()
        self._seen = deque([(self._began, 0.0)])

    def at(self, share: float | None, figures: Figures) -> None:
        """Note the share that is done and its figures."""
        now = time.monotonic()
        self.share, self._figures = share, figures
        self._seen.append((now, share or 0.0))
        while len(self._seen) > 2 and self._seen[1][0] < now - _RECENT:
            self._seen.popleft()

    def figures(self) -> list[str]:
        """The figures to show, the most important first."""
        return self._figures(max(time.monotonic() - self._began, 1e-3))

    def left(self) -> str:
        """The time left, such as "1:05 left", or "" while it is unknown."""
        then, before = self._seen[0]
        if self.share is None or self.share <= before:
            return ""
        return f"{clock((time.monotonic() - then) * (1 - self.share) / (self.share - before))} left"

    def line(self) -> str:
        """Everything in one line."""
        percent = [] if self.share is None else [f"{self.share:.0%}"]
        said = [*percent, *self.figures(), *filter(None, [self.left()])]
        return f"{self.name}: " + ", ".join(said or [f"{clock(time.monotonic() - self._began)} so far"])


def clock(seconds: float) -> str:
    """A time as "1:05" or "2:01:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class _Display(Watcher):
    """Hears how far a run is, for a console that shows it."""

    def __init__(self, name: str, console: Console) -> None:
        self.work, self._console = _Progress(name), console

    def _at(self, name: str, share: float | None, figures: Figures) -> None:
        if name != self.work.name:
            self.work = _Progress(name)
        self.work.at(share, figures)

    def units(self, done: Done) -> None:
        self._at("compiling", done.share, lambda seconds: figures_of(done, seconds))

    def linked(self, split: str, done: int, total: int) -> None:
        def figures(seconds: float) -> list[str]:
            return [f"{done:,} of {total:,} examples", f"{done / seconds:,.0f}/s"]

        self._at(f"writing {split}", done / max(total, 1), figures)

    def put(self, done: int, total: int) -> None:
        def figures(seconds: float) -> list[str]:
            return [f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB", f"{done / 1e6 / seconds:,.1f} MB/s"]

        self._at("storing", done / max(total, 1), figures)

    def counted(self, done: int, total: int, what: str) -> None:
        """Say how many of the files, or of whatever they are, are done."""

        def figures(seconds: float) -> list[str]:
            return [f"{done:,} of {total:,} {what}", f"{done / seconds:,.1f} {what}/s"]

        self._at(self.work.name, done / max(total, 1), figures)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def figures_of(done: Done, seconds: float) -> list[str]:
    """The figures of a compile after some seconds, the most important first."""
    figures = [f"{done.dataset}: {done.rows:,} rows", f"{done.rows / seconds:,.0f} rows/s"]
    figures += [f"{done.rejected:,} rejected"] if done.rejected else []
    figures += [f"{done.bytes / 1e6 / seconds:,.1f} MB/s", f"{done.compiled:,} units compiled"]
    return [*figures, f"{done.cached:,} cached"]


class _Figures(ProgressColumn):
    """The figures of the work, as many as fit beside the other columns."""

    def __init__(self, watcher: _Display, room: int) -> None:
        super().__init__()
        self._watcher, self._room = watcher, room

    def render(self, task: Task) -> Text:  # noqa: ARG002  # there is one task, the watcher's
        """Draw the figures."""
        figures = self._watcher.work.figures() or [self._watcher.work.name]
        while len(figures) > 1 and len(", ".join(figures)) > self._room:
            figures.pop()
        return Text(", ".join(figures), no_wrap=True, overflow="ellipsis")


class _Left(ProgressColumn):
    """The share that is done and the time left."""

    def __init__(self, watcher: _Display) -> None:
        super().__init__()
        self._watcher = watcher

    def render(self, task: Task) -> Text:  # noqa: ARG002
        """Draw both."""
        work = self._watcher.work
        return Text("" if work.share is None else f"{work.share:4.0%} {work.left()}", no_wrap=True)


class _Bar(BarColumn):
    """A bar of the share that is done; it pulses while the share is unknown."""

    def __init__(self, watcher: _Display) -> None:
        super().__init__(_BAR)
        self._watcher = watcher

    def render(self, task: Task):  # type: ignore[no-untyped-def]  # rich's own type is private
        """Draw the bar."""
        share = self._watcher.work.share
        task.total, task.completed = (None, 0) if share is None else (1.0, share)
        return super().render(task)


@contextmanager
def watch(name: str = "compiling") -> Iterator[_Display]:
    """Give a watcher that shows progress on stderr; the first work has this name."""
    console = Console(file=sys.stderr)
    watcher = _Display(name, console)
    if not console.is_terminal or console.is_dumb_terminal:
        with _lines(watcher):
            yield watcher
        return
    room = console.width - len(f"  {'':{_BAR}}  100% 10:00:00 left") - 2
    columns = (SpinnerColumn(), _Figures(watcher, room), _Bar(watcher), _Left(watcher))
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(name, total=None)
        yield watcher


@contextmanager
def _lines(watcher: _Display) -> Iterator[None]:
    """Print progress every few seconds, from a thread, because a unit or a shard in a store can take minutes."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(EVERY):
            watcher.say(watcher.work.line())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def track(items: Sequence[T], name: str = "checking", what: str = "files") -> Iterator[T]:
    """Yield the items, such as files to check, and show how many are done."""
    with watch(name) as watcher:
        for number, item in enumerate(items):
            watcher.counted(number, len(items), what)
            yield item


def print_out(renderable: RenderableType) -> None:
    """Print to stdout, as wide as the terminal; elsewhere as wide as needed."""
    console = Console(file=sys.stdout)
    if console.is_terminal:
        console.print(renderable, markup=False, highlight=False)
        return
    console = Console(file=StringIO(), width=160)
    with console.capture() as capture:
        console.print(renderable, markup=False, highlight=False)
    for line in capture.get().rstrip("\n").split("\n"):
        print(line.rstrip())  # rich fills the cells of a table with spaces
