"""Files of a cache that are written as a whole or not at all: beside their places first, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from schemas.errors import InputError

HALVES = "tmp"
"""The folder beside the files of a kind where they are while they are written."""


def begin_half(cache_dir: Path, name: str) -> Path:
    """Make an empty file among the half-written ones, which the next run removes where this one is killed."""
    halves = cache_dir / "objects" / HALVES
    try:
        halves.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(dir=halves, prefix=f"{machine()}-{name}-")
    except OSError as error:
        raise _not_written(cache_dir, error) from error
    os.fchmod(descriptor, 0o644)
    os.close(descriptor)
    return Path(path)


def write(cache_dir: Path, path: Path, data: Any, mode: int = 0o644) -> tuple[int, ...]:
    """Write a file as a whole or not at all. It is not flushed to disk: damage is detected when it is loaded.

    Returns its stamp.
    """
    try:
        try:
            return _write_atomically(path, data, mode)
        except FileNotFoundError:  # of the folders, which nearly always are there
            path.parent.mkdir(parents=True, exist_ok=True)
            _halves_of(path).mkdir(exist_ok=True)
            return _write_atomically(path, data, mode)
    except OSError as error:
        raise _not_written(cache_dir, error) from error


def _not_written(cache_dir: Path, error: OSError) -> InputError:
    what = f"the cache cannot be written: {error.strerror}"
    return InputError(str(cache_dir), what, "Choose another folder with --cache.")


def _halves_of(path: Path) -> Path:
    return path.parent.parent / HALVES


def _write_atomically(path: Path, data: Any, mode: int) -> tuple[int, ...]:
    descriptor, temporary = tempfile.mkstemp(dir=_halves_of(path), prefix=f"{machine()}-{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # a cache may be shared; mkstemp makes files for one user
            file.write(data)
            file.flush()
            stamp = stamp_of(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    return stamp


@cache
def machine() -> str:
    """What tells this machine from others in the names of half-written files."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def stamp_of(descriptor: int) -> tuple[int, ...]:
    """What identifies an open file of an object on every machine: its size, inode and time of change."""
    found = os.fstat(descriptor)
    return found.st_size, found.st_ino, found.st_mtime_ns
