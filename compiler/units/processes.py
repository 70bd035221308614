"""Worker processes that are asked over a socket each, so that the death of one is an end of file and never a wait.

They share nothing: no queue, no lock. A `multiprocessing` pool waits for ever where a worker dies at the wrong moment,
such as with the queue's lock in its hands or before the next worker is there.

A worker is a fresh process, or, where the system does that well, a copy (fork) of an `Original`, a fresh process
with a single thread that has loaded what workers need. A copy takes milliseconds, and shares the memory of what was
loaded. (Arrow's allocator has a thread beside ours. It expects to be copied, and starts that thread again.)
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from schemas.errors import InputError

A = ParamSpec("A")
R = TypeVar("R")

CAN_FORK = sys.platform == "linux"
"""Elsewhere system libraries may start threads of their own, which a copy of a process does not have."""
STOPPING = 3.0
"""Seconds that a worker has to finish its unit when the run ends early."""
ENDING = 1.0
"""Seconds that a process has to end which has nothing to finish."""
_KILLED = "a worker process was killed, most often for memory"
_START = "import sys; sys.path[:] = {path!r}; from compiler.units.processes import {main}; {main}({descriptor})"
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""The worker processes are the parallelism. (The fast encoder sees to that itself.)"""


class Worker:
    """The near end of a process that calls functions, one after the other, in the order in which it was asked."""

    def __init__(self, ours: socket.socket, process: int) -> None:
        self._connection, self._process = Connection(ours.detach()), process
        self.owed = 0
        """How many answers it owes."""

    @classmethod
    def fresh(cls) -> Worker:
        """Start a process in which nothing of this one is half-inherited."""
        return cls(*_started("serve"))

    def fileno(self) -> int:
        """What can be waited for: an answer, or the end of the process."""
        return self._connection.fileno()

    def send(self, function: Callable[..., object], *args: Any) -> None:
        """Ask it to call a function; InputError if it is gone. It reads what it is asked while it works."""
        try:
            self._connection.send_bytes(pickle.dumps((function, args), protocol=5))
        except OSError as gone:
            raise lost(_KILLED) from gone
        self.owed += 1

    def answer(self) -> tuple[Exception | None, Any]:
        """Wait for the next answer: what the function raised, and what it returned; InputError if it is gone."""
        try:
            found: tuple[Exception | None, Any] = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as gone:
            raise lost(_KILLED) from gone
        self.owed -= 1
        return found

    def receive(self) -> Any:
        """Wait for the next answer; raise what the function raised, or InputError if the process is gone."""
        error, result = self.answer()
        if error is not None:
            raise error
        return result

    def ask(self, function: Callable[..., R], *args: Any) -> R:
        """Call a function there, and wait for its answer."""
        self.send(function, *args)
        answer: R = self.receive()
        return answer

    def no_more(self) -> None:
        """Let the process end after what it is doing."""
        with suppress(OSError), _socket_of(self._connection) as ours:
            ours.shutdown(socket.SHUT_WR)

    def stop(self, seconds: float) -> None:
        """Wait so long for the end of the process, then kill it."""
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        with suppress(OSError):
            while poll.poll(1000 * max(0.0, end - time.monotonic())):
                if not os.read(self._connection.fileno(), 1 << 16):  # what it still answers is of no use
                    break
            else:
                os.kill(self._process, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        with suppress(ChildProcessError):  # it is an original's
            os.waitpid(self._process, 0)

    def close(self) -> None:
        """Close our end of the socket."""
        self._connection.close()


class Original(Worker):
    """A fresh process that loads what it is told to, and makes workers that are copies of it."""

    @classmethod
    def fresh(cls) -> Original:
        """Start it, or take one that was started early."""
        return _EARLY.pop() if _EARLY else cls(*_started("serve_copies"))

    def copy(self) -> Worker:
        """Make a worker, after all that was asked before is done and its answers were received."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.send(_copy)
            try:
                with _socket_of(self._connection) as mine:
                    socket.send_fds(mine, [b"\0"], [theirs.fileno()])
            except OSError as gone:
                raise lost(_KILLED) from gone
            return Worker(ours, self.receive())


_EARLY: list[Original] = []


@contextmanager
def started_early(functions: Iterable[str], *args: object, then: str) -> Iterator[None]:
    """Start an original before its modules are imported here; it ends with the context if nobody has taken it.

    It calls functions, "MODULE:NAME", one after the other, and then imports a module.
    """
    original = Original.fresh()
    for function in functions:
        original.send(_called, function, args)
    original.send(_imported, then)
    _EARLY.append(original)
    try:
        yield
    finally:
        if original in _EARLY:
            _EARLY.remove(original)
            original.no_more()
            original.stop(0.0)
            original.close()


def _called(function: str, args: tuple[object, ...]) -> None:
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(*args)


def _imported(module: str) -> None:
    importlib.import_module(module)


def _started(main: str) -> tuple[socket.socket, int]:
    """Start a Python that calls a function of this module with its end of a socket; our end, and the process."""
    ours, theirs = socket.socketpair()
    with theirs, interrupts_held():
        start = _START.format(path=sys.path, main=main, descriptor=theirs.fileno())
        process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | _ONE_THREAD,
        )
    process.returncode = 0  # it is waited for here, and not when the object goes
    return ours, process.pid


def _socket_of(connection: Connection) -> socket.socket:
    """The socket under a connection, as another descriptor."""
    return socket.socket(fileno=os.dup(connection.fileno()))


def lost(what: str) -> InputError:
    """The error for a worker that is gone, or has no memory."""
    return InputError("workers", what, "Run again with fewer --workers; what was compiled so far is kept.")


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Block Ctrl-C while a process is started. It stays blocked there, and this process stops it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in the worker --


def serve(descriptor: int) -> None:
    """Do what the other end of a socket asks, until it asks no more. The main function of a worker."""
    asked: SimpleQueue[bytes | None] = SimpleQueue()
    with Connection(descriptor) as connection:
        # It reads while functions run: the other end never waits for us when it asks, nor we for it when we answer.
        threading.Thread(target=_listen, args=[connection, asked], daemon=True).start()
        while (message := asked.get()) is not None:
            _answer(connection, message)


def _listen(connection: Connection, asked: SimpleQueue[bytes | None]) -> None:
    """Pass on what is asked. End this process when the other one is gone: if that was killed, it cannot tell us to."""
    try:
        while True:
            asked.put(connection.recv_bytes())
    except (EOFError, OSError):
        asked.put(None)
    with suppress(OSError):
        poll = select.poll()
        poll.register(connection.fileno(), 0)  # only the end of both directions is told
        poll.poll()
        os._exit(1)


def serve_copies(descriptor: int) -> None:
    """Do the same in a process with a single thread, which can copy itself. The main function of a `Original`."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for copies: their sockets tell of their ends
    with Connection(descriptor) as connection:
        while True:
            try:
                message = connection.recv_bytes()
            except (EOFError, OSError):
                with suppress(ChildProcessError):
                    os.wait()  # for all copies, since none is reported: who starts us can rely on our end
                return
            theirs = _answer(connection, message)
            if theirs is not None:
                break
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    serve(theirs)
    sys.stderr.flush()
    os._exit(0)  # what the original would do at its end is not done by its copies


def _copy() -> None:
    """Stands for what `serve_copies` does itself."""


def _answer(connection: Connection, message: bytes) -> int | None:
    """Call the function that a message asks for, and answer. In a new copy of this process: return its socket."""
    try:
        function, args = pickle.loads(message)
        if function is _copy:
            gc.freeze()  # a collection would write to pages that are shared until then
            with _socket_of(connection) as ours:
                _, [theirs], *_ = socket.recv_fds(ours, 1, 1)
            with warnings.catch_warnings():  # of the thread of Arrow's allocator, from Python 3.12 on
                warnings.simplefilter("ignore", DeprecationWarning)
                result = os.fork()
            if not result:
                return theirs
            os.close(theirs)
        else:
            result = function(*args)
        answer = pickle.dumps((None, result), protocol=5)
    except MemoryError:
        answer = pickle.dumps((lost("a worker process has no memory left"), None))
    except Exception as raised:  # noqa: BLE001  # it is raised again where it was asked for
        answer = pickle.dumps((_portable(raised), None))
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.send_bytes(answer)
    return None


def _portable(error: Exception) -> Exception:
    """The error, with where it was raised; its text alone if it cannot be sent."""
    where = "".join(traceback.format_exception(error))
    error.add_note(f"In a worker process:\n{where}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  # an exception may hold anything
        return RuntimeError(where)
    return error
