"""Word lists (tokens, labels, weights, spans) of any rows, copied from the files that hold them.

    lists["input_ids"]      (offsets int64[N + 1], words int32[T]): row i has words[offsets[i] : offsets[i + 1]]

Nearly all bytes of a set are such words. They are copied once, straight from objects into the buffers that are written
as a shard. The words of a row stand side by side in its file, so that one read takes them all, each list to its own
buffer; rows that follow each other in a file are read at once. Reading beats mapping, which costs as many page faults,
and more where rows are shuffled over many objects.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from compiler.cache.halves import stamp_of
from schemas.errors import IntegrityError
from schemas.order import Ints

WordLists = dict[str, tuple[Ints, npt.NDArray[np.int32]]]
"""By column: where each row begins, int64[N + 1], and the words of all rows, int32[T]."""

_GAP = 4096
"""Bytes between two rows of a file that are rather read than skipped: a system call takes as long."""
_LARGE = 1 << 16
"""Bytes of a row that is read alone."""
_BUFFERS = 1024
"""Buffers that one system call fills at most (IOV_MAX)."""
_ROWS = 1 << 15
"""Rows whose buffers are listed at once."""


class WordFile(Protocol):
    """A file that holds words. Picklable."""

    @property
    def path(self) -> Path:
        """Where it is, for messages."""

    def open(self) -> AbstractContextManager[int]:
        """Open the file; its descriptor."""


@dataclass(frozen=True)
class Extents:
    """Where the words of N rows are. Picklable."""

    file_of: npt.NDArray[Any]
    """The place of each row's file among some files."""
    begin: npt.NDArray[Any]
    """The word of its file at which each row begins."""
    counts: Mapping[str, npt.NDArray[Any]]
    """How many words each row has of each list, in the order in which it has them."""

    def __getitem__(self, rows: slice) -> Extents:
        """Some of the rows."""
        counts = {name: some[rows] for name, some in self.counts.items()}
        return Extents(self.file_of[rows], self.begin[rows], counts)


def copy_lists(extents: Extents, files: Sequence[WordFile]) -> WordLists:
    """Copy the word lists of rows in their order; IntegrityError if a file is gone or too short.

    Every file that has one of the rows is opened once, or a few times where there are many rows.
    """
    found: WordLists = {}
    for name, count in extents.counts.items():
        offsets = np.concatenate([[0], np.cumsum(count, dtype=np.int64)])
        found[name] = (offsets, np.empty(int(offsets[-1]), np.int32))
    order = np.lexsort((extents.begin, extents.file_of))
    for low in range(0, len(order), _ROWS):
        rows = order[low : low + _ROWS]
        begin = 4 * extents.begin[rows].astype(np.int64)
        places = [(4 * offsets[rows], 4 * offsets[rows + 1], words) for offsets, words in found.values()]
        size = sum((last - first for first, last, _ in places), np.zeros(len(rows), np.int64))
        _copy(files, extents.file_of[rows], begin, begin + size, places)
    return found


def _copy(
    files: Sequence[WordFile],
    file_of: npt.NDArray[Any],
    begin: Ints,
    end: Ints,
    places: list[tuple[Ints, Ints, npt.NDArray[np.int32]]],
) -> None:
    """Read rows, bytes [begin, end) of their files and in this order, to their places.

    For each list, which follow each other in a row, `places` are the first byte, the one after the last, and of what.
    Rows that are close to each other are read at once, with what is between them, which goes nowhere.
    """
    gaps = np.append(begin[1:] - end[:-1], -1)
    gaps[(gaps > _GAP) | (end - begin > _LARGE)] = -1  # < 0: the next row is read by itself
    gaps[:-1][file_of[1:] != file_of[:-1]] = -1
    width = len(places) + 1
    buffers = np.empty((len(begin), width, 2), np.uint64)  # of iovec: address and size
    for number, (first, last, words) in enumerate(places):
        buffers[:, number, 0] = words.ctypes.data + first
        buffers[:, number, 1] = last - first
    buffers[:, -1, 0] = _NOWHERE.ctypes.data
    buffers[:, -1, 1] = np.maximum(gaps, 0)
    stops = _stops(gaps < 0, _BUFFERS // width)
    starts = np.append(0, stops[:-1])
    files_of = file_of[starts]
    into = buffers.ctypes.data + buffers.strides[0] * starts
    columns = (into, width * (stops - starts) - 1, begin[starts], end[stops - 1] - begin[starts])
    reads = [column.tolist() for column in columns]
    edges = np.flatnonzero(files_of[1:] != files_of[:-1]) + 1
    for low, high in pairwise([0, *edges.tolist(), len(starts)]):
        file = files[int(files_of[low])]
        with file.open() as descriptor:
            for address, count, place, size in zip(*(column[low:high] for column in reads), strict=True):
                while (done := _preadv(descriptor, address, count, place)) != size:
                    if done >= 0 or ctypes.get_errno() != errno.EINTR:
                        raise _gone(file.path)


_NOWHERE = np.empty(_GAP, np.uint8)
_preadv = ctypes.CDLL(None, use_errno=True).preadv
"""os.preadv without an object for each buffer, which take longer than the system call."""
_preadv.argtypes, _preadv.restype = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64), ctypes.c_ssize_t


def _stops(is_last: npt.NDArray[np.bool_], most: int) -> Ints:
    """After which rows a read ends: after those that must be the last of one, and after `most` at least."""
    stops = np.flatnonzero(is_last) + 1
    lengths = np.diff(stops, prepend=0)
    if int(lengths.max()) <= most:
        return stops
    within = np.arange(len(is_last)) - np.repeat(stops - lengths, lengths)
    return np.flatnonzero(is_last | (within % most == most - 1)) + 1


def _gone(path: Path) -> IntegrityError:
    what = "this object of the cache was removed or damaged during the run"
    return IntegrityError(str(path), what, "Run again; then check the disk.")


@dataclass
class ObjectFile:
    """The file of an object."""

    path: Path
    stamp: tuple[int, ...]
    digest: str

    @contextmanager
    def open(self) -> Iterator[int]:
        """Open the file, if it has the bytes that were loaded."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise _gone(self.path) from error
        try:
            self._check(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def _check(self, descriptor: int) -> None:
        """IntegrityError unless the file has the bytes that were loaded: another run may have written it again."""
        stamp = stamp_of(descriptor)
        if stamp != self.stamp:
            if xxhash.xxh3_128_hexdigest(os.pread(descriptor, stamp[0], 0)) != self.digest:
                raise _gone(self.path)
            self.stamp = stamp


@dataclass(frozen=True)
class SpilledFile:
    """A temporary file with the words of some rows."""

    path: Path

    @contextmanager
    def open(self) -> Iterator[int]:
        """Open the file."""
        with self.path.open("rb") as file:
            yield file.fileno()


class SpilledRows:
    """The words of some rows in a temporary file, in the order of the rows' numbers, each as its object has it."""

    def __init__(self, path: Path, rows: Ints) -> None:
        """Begin with no words. `rows` are the numbers of the rows that will be added: in order, each once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = SpilledFile(path)
        self._rows, self._lengths = rows, list[Ints]()
        self._edges: Ints = np.zeros(1, np.int64)

    def add(self, lengths: Ints, words: npt.NDArray[np.int32]) -> None:
        """Write the next rows, of so many words each."""
        self._lengths.append(lengths)
        with self.file.path.open("ab") as file:
            file.write(words.data)

    def close(self) -> None:
        """Work out where each row is, once all are there."""
        self._edges = np.cumsum(np.concatenate([[0], *self._lengths]))

    def begin(self, rows: Ints) -> Ints:
        """The word of the file at which each row begins, by their numbers, in any order."""
        return self._edges[np.searchsorted(self._rows, rows)]
