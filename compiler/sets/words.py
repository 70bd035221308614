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
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from compiler.cache.objects import Object, stamp_of
from schemas.errors import IntegrityError
from schemas.order import Ints

WordLists = dict[str, tuple[Ints, npt.NDArray[np.int32]]]
"""By column: where each row begins, int64[N + 1], and the words of all rows, int32[T]."""

Extents = dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]
"""By column: the word of its file at which each row begins, and the one at which it ends; int32[N] or int64[N]."""


class WordFiles(Protocol):
    """One or more files that hold words."""

    @property
    def path(self) -> Path:
        """The file or folder, for messages."""

    def open(self, names: Sequence[str]) -> AbstractContextManager[dict[str, int]]:
        """Open the files of these columns; a descriptor for each column."""


def copy_lists(
    extents: Extents, rows: Ints, order: Ints, files: Sequence[tuple[WordFiles, int]], names: Sequence[str]
) -> WordLists:
    """Copy the word lists of `rows`, which index `extents`; IntegrityError if a file is gone or too short.

    `order` int64[N] sorts the rows by the files that hold them: the first of `files` holds so many of them, then the
    next one.
    """
    found, ranges = {}, {}
    for name in names:
        begin, end = (column[rows] for column in extents[name])
        offsets = np.concatenate([[0], np.cumsum(end - begin, dtype=np.int64)])
        found[name] = (offsets, np.empty(int(offsets[-1]), np.int32))
        ranges[name] = tuple((4 * column[order].astype(np.int64)).tolist() for column in (begin, end, offsets[:-1]))
    low = 0
    for file, count in files:
        high = low + count
        with file.open(names) as descriptors:
            for name, columns in ranges.items():
                some = zip(*(column[low:high] for column in columns), strict=True)
                if not _copy(descriptors[name], some, found[name][1].view(np.uint8).data):
                    raise _gone(file.path)
        low = high
    return found


def _copy(descriptor: int, ranges: Iterator[tuple[int, int, int]], into: memoryview) -> bool:
    """Read the bytes of each (begin, end) to its place in `into`; False if the file is too short."""
    for begin, end, at in ranges:
        if begin != end and os.preadv(descriptor, [into[at : at + end - begin]], begin) != end - begin:
            return False
    return True


def _gone(path: Path) -> IntegrityError:
    what = "this object of the cache was removed or damaged during the run"
    return IntegrityError(str(path), what, "Run again; then check the disk.")


class ObjectFile:
    """The file of an object, which holds all its columns."""

    def __init__(self, object_: Object) -> None:
        self.object = object_
        self._stamp = object_.stamp

    @property
    def path(self) -> Path:
        """The object's file."""
        return self.object.path

    def extents(self, name: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Where the words of each row begin and end, int32[N] each."""
        first, edges = self.object.lists[name]
        edges = edges + np.int32(first)
        return edges[:-1], edges[1:]

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
        if stamp != self._stamp:
            if xxhash.xxh3_128_hexdigest(os.pread(descriptor, stamp[0], 0)) != self.object.digest:
                raise _gone(self.path)
            self._stamp = stamp


class SpilledRows:
    """The words of some rows in temporary files, one for each column, in the order of the rows' numbers."""

    def __init__(self, folder: Path, names: Sequence[str], rows: Ints) -> None:
        """Make the files. `rows` are the numbers of the rows that will be added: in order, each once."""
        folder.mkdir(parents=True)
        self.path, self._rows = folder, rows
        self._paths = {name: folder / name for name in names}
        self._lengths: dict[str, list[Ints]] = {name: [] for name in names}
        self._extents: Extents = {}

    def add(self, lists: WordLists) -> None:
        """Write the next rows."""
        for name, (offsets, words) in lists.items():
            self._lengths[name].append(np.diff(offsets))
            with self._paths[name].open("ab") as file:
                file.write(words.data)

    def close(self) -> None:
        """Work out where each row is, once all are there."""
        for name, lengths in self._lengths.items():
            edges = np.cumsum(np.concatenate([[0], *lengths]))
            self._extents[name] = edges[:-1], edges[1:]

    @contextmanager
    def open(self, names: Sequence[str]) -> Iterator[dict[str, int]]:
        """Open the file of each column."""
        with ExitStack() as files:
            yield {name: files.enter_context(self._paths[name].open("rb")).fileno() for name in names}

    def lists(self, rows: Ints, names: Sequence[str]) -> WordLists:
        """Copy the word lists of rows by their numbers, in any order."""
        mine = np.searchsorted(self._rows, rows)
        return copy_lists(self._extents, mine, np.arange(len(rows)), [(self, len(rows))], names)
