"""SIGTERM, which Slurm and Kubernetes send 30 to 90 seconds before they kill: the run saves and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        """Remember the signal; a second one ends the process at once."""
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def on_sigterm() -> Iterator[Stop]:
    """Catch SIGTERM while the block runs."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop.ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
