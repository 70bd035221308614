"""Files: waiting until one is on disk, and one digest of several."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk; OSError if they cannot be."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(files: Iterable[tuple[str, bytes]]) -> str:
    """The sha256 over the names and bytes of files."""
    total = hashlib.sha256()
    for name, data in files:
        total.update(f"{name}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()
