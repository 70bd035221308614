"""The memory of this process: when Python looks for garbage, and what is given back to the system."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def without_collections() -> Iterator[None]:
    """Look for no cyclic garbage meanwhile: where many objects are made and little of it, looking takes a fifth."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def trim_memory() -> None:
    """Return freed memory to the system: what a tokenizer is built from, say, takes as much as the tokenizer."""
    with suppress(OSError, AttributeError):  # of glibc alone
        ctypes.CDLL("libc.so.6").malloc_trim(0)
