"""Word lists (tokens, labels, weights, spans) of any rows, copied from the files that hold them.

    lists["input_ids"]      (offsets int64[N + 1], words int32[T]): row i has words[offsets[i] : offsets[i + 1]]

Nearly all bytes of a set are such words. They are copied once, straight from objects into the buffers that are written
as a shard: one read for each row and column, in the order of the files. Reading beats mapping, which costs as many page
faults, and more where rows are shuffled over many objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from operator import add
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

_SPARSE = 4
"""A stretch of a file is read row by row if its rows are less than one part of so many."""

Extents = dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]
"""By column: the word of its file at which each row begins, and how many words it has; int32[N] or int64[N]."""


class WordFiles(Protocol):
    """One or more files that hold words. Picklable."""

    @property
    def path(self) -> Path:
        """The file or folder, for messages."""

    def open(self, names: Sequence[str]) -> AbstractContextManager[dict[str, int]]:
        """Open the files of these columns; a descriptor for each column."""


def copy_lists(
    extents: Extents, file_of: npt.NDArray[np.int32], files: Sequence[WordFiles], names: Sequence[str]
) -> WordLists:
    """Copy the word lists of rows in their order; IntegrityError if a file is gone or too short.

    `file_of` int32[N] is the place in `files` of each row's file. Every file that has one of the rows is opened once.
    """
    order = np.argsort(file_of, kind="stable")
    used, counts = np.unique(file_of, return_counts=True)
    found, ranges = {}, {}
    for name in names:
        begin, length = extents[name]
        offsets = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])
        found[name] = (offsets, np.empty(int(offsets[-1]), np.int32))
        in_order = (begin[order], length[order], offsets[:-1][order])
        ranges[name] = [(4 * column.astype(np.int64)).tolist() for column in in_order]
    low = 0
    for number, count in zip(used.tolist(), counts.tolist(), strict=True):
        high = low + count
        with files[number].open(names) as descriptors:
            for name, columns in ranges.items():
                begins, sizes, places = (column[low:high] for column in columns)
                if not _copy(descriptors[name], begins, sizes, places, found[name][1].view(np.uint8).data):
                    raise _gone(files[number].path)
        low = high
    return found


def _copy(descriptor: int, begin: list[int], length: list[int], at: list[int], into: memoryview) -> bool:
    """Read bytes (begin, length) to their place in `into`; False if the file is too short.

    Where they are a good part of a stretch of the file, it is read at once: a system call takes longer than to copy a
    row.
    """
    first = min(begin)
    size = max(map(add, begin, length)) - first
    if sum(length) * _SPARSE < size:
        return all(
            not count or os.preadv(descriptor, [into[to : to + count]], start) == count
            for start, count, to in zip(begin, length, at, strict=True)
        )
    stretch = memoryview(bytearray(size))
    if size and os.preadv(descriptor, [stretch], first) != size:
        return False
    for start, count, to in zip(begin, length, at, strict=True):
        into[to : to + count] = stretch[start - first : start - first + count]
    return True


def _gone(path: Path) -> IntegrityError:
    what = "this object of the cache was removed or damaged during the run"
    return IntegrityError(str(path), what, "Run again; then check the disk.")


@dataclass
class ObjectFile:
    """The file of an object, which holds all its columns."""

    path: Path
    stamp: tuple[int, ...]
    digest: str

    @contextmanager
    def open(self, names: Sequence[str]) -> Iterator[dict[str, int]]:
        """Open the file; one descriptor serves all columns."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise _gone(self.path) from error
        try:
            self._check(descriptor)
            yield dict.fromkeys(names, descriptor)
        finally:
            os.close(descriptor)

    def _check(self, descriptor: int) -> None:
        """IntegrityError unless the file has the bytes that were loaded: another run may have written it again."""
        stamp = stamp_of(descriptor)
        if stamp != self.stamp:
            if xxhash.xxh3_128_hexdigest(os.pread(descriptor, stamp[0], 0)) != self.digest:
                raise _gone(self.path)
            self.stamp = stamp


class SpilledRows:
    """The words of some rows in temporary files, one for each column, in the order of the rows' numbers."""

    def __init__(self, folder: Path, names: Sequence[str], rows: Ints) -> None:
        """Make the files. `rows` are the numbers of the rows that will be added: in order, each once."""
        folder.mkdir(parents=True)
        self.files = SpilledFiles(folder)
        self._rows, self._lengths = rows, {name: list[Ints]() for name in names}
        self._edges: dict[str, Ints] = {}

    def add(self, lists: WordLists) -> None:
        """Write the next rows."""
        for name, (offsets, words) in lists.items():
            self._lengths[name].append(np.diff(offsets))
            with self.files.of(name).open("ab") as file:
                file.write(words.data)

    def close(self) -> None:
        """Work out where each row is, once all are there."""
        self._edges = {name: np.cumsum(np.concatenate([[0], *some])) for name, some in self._lengths.items()}

    def extents(self, rows: Ints, names: Sequence[str]) -> Extents:
        """Where the words of rows are, by their numbers, in any order."""
        mine = np.searchsorted(self._rows, rows)
        edges = {name: self._edges[name] for name in names}
        return {name: (some[mine], some[mine + 1] - some[mine]) for name, some in edges.items()}


@dataclass(frozen=True)
class SpilledFiles:
    """The files of spilled rows, by column."""

    path: Path

    def of(self, name: str) -> Path:
        """The file of a column."""
        return self.path / name

    @contextmanager
    def open(self, names: Sequence[str]) -> Iterator[dict[str, int]]:
        """Open the file of each column."""
        with ExitStack() as files:
            yield {name: files.enter_context(self.of(name).open("rb")).fileno() for name in names}
