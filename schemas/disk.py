"""Files: waiting until one is on disk, locks, names that files give, and one digest of several."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What Lustre without `flock`, and NFS without a lock service, answer."""


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk; OSError if they cannot be."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file: int, where: Path, say: Callable[[str], object], *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file until it is closed; BlockingIOError where another process holds it, unless `wait`.

    Where the file system has no locks, a note says so and the work goes on.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        say(f"{where}: its file system has no locks ({error.strerror}); see to it that no other command writes there")


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
