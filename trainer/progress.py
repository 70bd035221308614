"""What a command is doing, on stderr, when it has printed nothing for a while: pipes and logs show no progress bar."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

EVERY = 8.0
"""Seconds of silence before a line; with a busy machine's delays, a line at least every ten."""


class Heartbeat:
    """Prints these lines, from a thread of its own, while its block runs."""

    def __init__(self, doing: str, *, silent: bool = False) -> None:
        self.silent = silent
        """Print nothing, because another process does."""
        self.write: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True)
        self._ended = threading.Event()
        self.doing(doing)
        self.spoke()

    def doing(self, what: str, total: int | None = None, *, done: int = 0, unit: str = "") -> None:
        """Begin something; where known, with how many units there are and how many are done already."""
        self.what, self._total, self._unit = what, total, unit
        self._start = self._done = done
        self._began = time.monotonic()

    def reached(self, done: int, total: int | None = None) -> None:
        """So many units are done; `total`: of so many, if that was not known before."""
        self._done, self._total = done, total or self._total

    def spoke(self) -> None:
        """Something was printed."""
        self._spoke = time.monotonic()

    def left(self) -> str:
        """The time left at the rate so far, `1:02:03`; "" if unknown."""
        done = self._done - self._start
        if not self._total or not done:
            return ""
        return clock((time.monotonic() - self._began) / done * (self._total - self._done))

    def line(self) -> str:
        """What is being done for how long; where known, how far it is, its rate and the time left."""
        seconds = time.monotonic() - self._began
        if not self._total:
            return f"{self.what}: {clock(seconds)}"
        text = f"{self.what}: {self._done:,} of {self._total:,} {self._unit}"
        if left := self.left():
            return f"{text}, {(self._done - self._start) / seconds:,.2f} {self._unit}/s, {left} left"
        return f"{text}, {clock(seconds)}"

    def __enter__(self) -> Heartbeat:
        if not self.silent:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(max(0.01, self._spoke + EVERY - time.monotonic())):
            if not self.silent and time.monotonic() - self._spoke >= EVERY:
                self.write(self.line())
                self.spoke()


def clock(seconds: float) -> str:
    """A duration as `0:42` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
