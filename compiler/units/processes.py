"""Worker processes that are asked over a socket each, so that the death of one is an end of file and never a wait.

They share nothing: no queue, no lock, no helper process. A `multiprocessing` pool waits for ever where a worker dies at
the wrong moment, such as with the queue's lock in its hands or before the next worker is there.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

from schemas.errors import InputError

A = ParamSpec("A")
R = TypeVar("R")

STOPPING = 3.0
"""Seconds that a worker has to finish its unit when the run ends early."""
_KILLED = "a worker process was killed, most often for memory"
_START = "import sys; sys.path[:] = {path!r}; from compiler.units.processes import serve; serve({descriptor})"


class Worker:
    """A fresh process that calls functions. Nothing that was initialised in this process is half-inherited."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            start = _START.format(path=sys.path, descriptor=theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", start], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        self._socket, self._connection = ours, Connection(os.dup(ours.fileno()))

    def ask(self, function: Callable[A, R], *args: A.args, **kwargs: A.kwargs) -> R:
        """Call a function there; raise what it raised, or InputError if the worker is gone."""
        try:
            self._connection.send((function, args, kwargs))
            error, result = self._connection.recv()
        except (EOFError, OSError) as gone:
            raise lost(_KILLED) from gone
        if error is not None:
            raise error
        answer: R = result
        return answer

    def check(self) -> None:
        """InputError if the worker is gone."""
        if self._process.poll() is not None:
            raise lost(_KILLED)

    def no_more(self) -> None:
        """Let the worker end after what it is doing."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def stop(self, seconds: float) -> None:
        """Wait so long for the end of the worker, then kill it."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Close our ends of the socket."""
        self._connection.close()
        self._socket.close()


def lost(what: str) -> InputError:
    """The error for a worker that is gone, or has no memory."""
    return InputError("workers", what, "Run again with fewer --workers; what was compiled so far is kept.")


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Block Ctrl-C and news of dead workers while one is started. It stays blocked, and this process stops it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGCHLD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(descriptor: int) -> None:
    """Do what the other end of a socket asks, until it asks no more. The main function of a worker."""
    threading.Thread(target=_end_with_parent, args=[descriptor], daemon=True).start()
    with Connection(descriptor) as connection:
        while True:
            try:
                function, args, kwargs = connection.recv()
            except (EOFError, OSError):
                return
            error: Exception | None = None
            result: object = None
            try:
                result = function(*args, **kwargs)
            except MemoryError:
                error = lost("a worker process has no memory left")
            except Exception as raised:  # noqa: BLE001  # it is raised again where it was asked for
                error = _portable(raised)
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send((error, result))


def _end_with_parent(descriptor: int) -> None:
    """End this worker when its parent is gone: a parent that was killed cannot tell it to."""
    poll = select.poll()
    poll.register(descriptor, 0)  # only the end of both directions is told
    poll.poll()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error, with where it was raised; its text alone if it cannot be sent."""
    where = "".join(traceback.format_exception(error))
    error.add_note(f"In a worker process:\n{where}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  # an exception may hold anything
        return RuntimeError(where)
    return error
