"""Files: waiting until one is on disk, locks, names that files give, two exchanged, and one digest of several."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import platform
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from schemas import lease
from schemas.errors import InputError
from schemas.lease import LEASE
from schemas.stores import AnyPath

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What Lustre without `flock`, and NFS without a lock service, answer."""


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk; OSError if they cannot be."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: AnyPath) -> bytes:
    """The bytes of a file; OSError for a pipe or a device, which could be endless or wait for ever."""
    if isinstance(path, Path):
        check_regular(path)
    return path.read_bytes()


def check_regular(path: Path) -> None:
    """OSError unless the path leads to a regular file."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


def lock(file: int, where: Path, say: Callable[[str], object], *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file until it is closed; BlockingIOError where another process holds it, unless `wait`.

    Where the file system has no locks, a note says so, and a lease in the folder takes their place (LockedError).
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        say(f"{where}: its file system has no locks ({error.strerror}); a lease, {LEASE}, takes their place")
        lease.take(where, say, shared=shared)


def open_lock(path: Path, *, write: bool = True) -> int:
    """Open a lock file, which must be a regular file: no link is followed, no pipe waited for, and nothing emptied."""
    return _open_regular(path, os.O_RDWR if write else os.O_RDONLY, "a lock file")


def write(path: Path, data: bytes) -> None:
    """Write a file whose name others know too: no link is followed, and no special file opened."""
    with open_to_write(path) as file:
        file.truncate(0)
        file.write(data)


def open_to_write(path: Path, *, append: bool = False) -> BinaryIO:
    """Open such a file, at its beginning or to add to it; what is in it stays."""
    descriptor = _open_regular(path, os.O_WRONLY | (os.O_APPEND if append else 0), "a file")
    return os.fdopen(descriptor, "ab" if append else "wb")


def _open_regular(path: Path, flags: int, expected: str) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise _not_regular(path, expected) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path, expected)
    return descriptor


def _not_regular(path: Path, expected: str) -> InputError:
    what = f"expected {expected}, found a link, a folder or a special file"
    return InputError(str(path), what, "Remove it if nobody needs it, or choose another folder.")


_EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2)."""
_NUMBERS = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "ppc64le": 357, "s390x": 347}
"""The number of the call where the C library has no function for it."""


def exchange(one: Path, other: Path) -> None:
    """Exchange two names in one step; OSError where the system or the file system cannot do that."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = ctypes.c_int(-100)  # AT_FDCWD
    names = (here, ctypes.c_char_p(os.fsencode(one)), here, ctypes.c_char_p(os.fsencode(other)))
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(*names, ctypes.c_uint(_EXCHANGE))
    elif sys.platform == "linux" and (number := _NUMBERS.get(platform.machine())):
        failed = libc.syscall(ctypes.c_long(number), *names, ctypes.c_uint(_EXCHANGE))
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one), None, str(other))


def digest_of(files: Iterable[tuple[str, bytes]]) -> str:
    """The sha256 over the names and bytes of files."""
    total = hashlib.sha256()
    for name, data in files:
        total.update(f"{name}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()


def is_inside(name: str) -> bool:
    """Whether a name that a file gives is one of something below a folder: no way up, no root, no hidden character."""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))
