"""A limit of time and memory for code that others wrote: chat templates, and patterns of weights policies."""

from __future__ import annotations

import os
import resource
import signal
import threading
from types import FrameType, TracebackType

MEMORY = 1 << 30
"""Bytes that such code may add to what the process has."""


class TimeLimitError(BaseException):
    """The time is over. Not an Exception, so that no handler on the way takes it for another error."""


class _State:
    """What all uses of a process share."""

    __slots__ = ("active", "before", "main", "most", "ready")

    def __init__(self) -> None:
        self.active = self.ready = False
        self.most = self.before = (0, 0)
        self.main = threading.main_thread().ident


_STATE = _State()


class limited:  # noqa: N801  # used as a function; as a generator it would take as long as what it limits
    """Raise TimeLimitError in code that takes more than `seconds` of this process's own time.

    A MemoryError is raised where it asks for much memory. Python looks for the end between two of its own
    instructions, and `re` every few thousand steps of a search. Signals reach the main thread alone; in others nothing
    is limited. The timer is stopped with the block: a signal that came later would end the process, at its exit or in
    the program that took its place.
    """

    __slots__ = ("here", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.here = threading.get_ident() == _STATE.main

    def __enter__(self) -> None:
        if not self.here:
            return
        _look()
        _STATE.active = True
        signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds)
        resource.setrlimit(resource.RLIMIT_DATA, _STATE.most)

    def __exit__(self, _type: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        if self.here:
            _STATE.active = False
            resource.setrlimit(resource.RLIMIT_DATA, _STATE.before)  # first: what follows needs some memory
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _look() -> None:
    """Look how large the process is now (Arrow's allocator takes 1 GiB at once), and be ready for the timer."""
    _STATE.before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed, hard = _STATE.before
    size = _size()
    most = size + MEMORY if size else allowed
    _STATE.most = (most if allowed == resource.RLIM_INFINITY else min(most, allowed), hard)
    if not _STATE.ready:
        signal.signal(signal.SIGVTALRM, _over)
        _STATE.ready = True


def _over(_number: int, frame: FrameType | None) -> None:
    """End the block, unless it has just ended: an error in `__exit__` would leave the limit of memory as it is."""
    if _STATE.active and frame is not None and frame.f_code is not limited.__exit__.__code__:
        raise TimeLimitError


def _size() -> int:
    """The bytes that this process has for its data; 0 where the system does not say. It takes some microseconds."""
    try:
        file = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return 0
    try:
        return int(os.read(file, 256).split()[5]) * resource.getpagesize()
    finally:
        os.close(file)
