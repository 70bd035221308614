"""Small files of object stores, kept in memory while a run lasts: each is fetched once, with two requests.

Many small files would otherwise cost a dozen requests each, one after the other: to list, recognise, cut and read them.
What is kept is one version of a file: its bytes are those of its ETag, where that is their MD5, or the ETag is the same
before and after they were fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any

from schemas.errors import InputError

LARGEST = 4 << 20
"""Bytes of the largest file that is kept."""
MOST = 256 << 20
"""Bytes that are kept at most; what is beyond is fetched whenever it is read."""
_AT_ONCE = 16
_TRIES = 3
_MD5 = re.compile('"?([0-9a-f]{32})"?')

Stamp = tuple[int, str]


@dataclass
class _Kept:
    """What is known of files while a run lasts."""

    files: dict[Any, tuple[bytes, Stamp]] = field(default_factory=dict)
    sizes: dict[Any, int] = field(default_factory=dict)
    """Of files that were listed or opened. Both are by StorePath: two stores can have one bucket and key."""
    total: int = 0


_now: list[_Kept] = []
"""What is kept now; empty between runs."""


@contextmanager
def keeping() -> Iterator[None]:
    """Keep small files until the end of the context; a run inside another one shares what is kept."""
    if _now:
        yield
        return
    _now.append(_Kept())
    try:
        yield
    finally:
        _now.clear()


def listed(path: Any, size: int) -> None:
    """Remember that a file was listed with its size."""
    if _now:
        _now[0].sizes[path] = size


def size(path: Any) -> int | None:
    """The size of a file that was listed or opened in this run."""
    return _now[0].sizes.get(path) if _now else None


def fetch(path: Any) -> tuple[bytes, Stamp] | None:
    """(the bytes of a small file, its size and ETag); None if nothing is kept now, or the file is too large."""
    if not _now:
        return None
    now = _now[0]
    if (found := now.files.get(path)) is not None:
        return found
    if now.sizes.get(path, 0) > LARGEST:
        return None
    for _ in range(_TRIES):
        data, stamp = path.whole(LARGEST)
        now.sizes[path] = stamp[0]
        if data is None:
            return None
        if _is_one_version(path, data, stamp):
            if now.total + len(data) <= MOST:
                now.total += len(data)
                now.files[path] = data, stamp
            return data, stamp
    raise InputError(str(path), "the store's answers differ: the file is being written, or its bytes arrive damaged")


def _is_one_version(path: Any, data: bytes, stamp: Stamp) -> bool:
    known = _MD5.fullmatch(stamp[1])
    if known is not None and md5(data, usedforsecurity=False).hexdigest() == known[1]:
        return True
    again, later = path.whole(LARGEST)  # an ETag that is no MD5: of parts, or of an encrypted file
    return bool(later == stamp and again == data)


def prefetch(paths: Iterable[Any]) -> None:
    """Fetch small files, several at once, as far as they can be kept."""
    if not _now:
        return
    wanted, total = [], _now[0].total
    for path in paths:
        total += size(path) or 0
        if path not in _now[0].files and (size(path) or 0) <= LARGEST and total <= MOST:
            wanted.append(path)
    if len(wanted) > 1:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(fetch, wanted))
