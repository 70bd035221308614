"""Places in source files: how messages print them, and how `cli inspect --row` takes them.

    chats.jsonl:4#/messages/1   a file of lines: the line on which the row begins, counted from 1 as in editors, and a
                                JSON pointer into the row
    data.json#/3/messages/1     an array or a table: a JSON pointer, whose first number counts the rows from 0

A session file is one row of many lines. Its places are the lines of its items, with a pointer into that line.

`lines.jsonl` of a set says on which lines the rows of its sources begin, so a place needs no source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import orjson

from schemas.order import Ints

LINES = "lines.jsonl"
"""The file of a set. A set of an earlier version has none."""
_ENDS_OF_FILE = re.compile(r":(?P<line>[0-9]+)(?=#|$)|#(?=/|$)")
_ITEM = re.compile(r"/lines/([0-9]+)")


class Place(NamedTuple):
    """A place that was read: with a line, the pointer leads into the row; without, its first number is the row."""

    file: str
    line: int | None
    pointer: str


def spell(file: str, row: int, line: int | None, pointer: str = "") -> str:
    """The place of a row, or of what a JSON pointer into the row leads to; `line` is None in arrays and tables."""
    if line is None:
        return f"{file}#/{row}{pointer}"
    return f"{file}:{line}#{pointer}" if pointer else f"{file}:{line}"


def parse(text: str) -> list[Place]:
    """The places that the text can mean, the longest name of a file first: names may hold `:4` and `#/3` too."""
    found = []
    for end in _ENDS_OF_FILE.finditer(text):
        line = None if end["line"] is None else int(end["line"])
        pointer = text[end.end() :] if line is None else text[end.end() + 1 :]
        found.append(Place(text[: end.start()], line, pointer))
    return found[::-1]


@dataclass(frozen=True)
class FileLines:
    """The lines on which the rows of one file begin, as runs: `numbers[i]` begins on `lines[i]`.

    The rows after it begin one line further on each, up to the next run. In a session they are its items instead.
    """

    numbers: Ints
    lines: Ints
    count: int
    """The number of rows, or of items."""
    session: bool = False

    def line_of(self, number: int) -> int:
        """The line on which a row begins."""
        run = int(np.searchsorted(self.numbers, number, side="right")) - 1
        return int(self.lines[run] + number - self.numbers[run])

    def on(self, line: int) -> list[int]:
        """The rows that begin on a line: one in most files, or none; objects over several lines may share one."""
        runs = (self.lines <= line) & (line <= self._last)
        return [int(number) for number in self.numbers[runs] + line - self.lines[runs]]

    def around(self, line: int) -> list[int]:
        """The lines nearest to a line on which no row begins, before and after it."""
        before, after = self._last[self._last < line], self.lines[self.lines > line]
        return [int(found) for found in (*before[-1:], *after[:1])]

    @property
    def _last(self) -> Ints:
        """The line on which the last row of each run begins."""
        return self.lines + np.diff(self.numbers, append=self.count) - 1


class Places:
    """The places of the rows of a set."""

    def __init__(self, files: Mapping[tuple[str, str], FileLines], *, known: bool = True) -> None:
        """Begin with the files of lines by (dataset, file). `known`: whether the set says on which lines rows begin."""
        self._files, self.known = files, known

    @classmethod
    def load(cls, data: bytes) -> Places:
        """Parse `lines.jsonl`."""
        files = {}
        for entry in map(orjson.loads, data.splitlines()):
            runs = np.array(entry["lines"], np.int64)
            lines = FileLines(runs[:, 0], runs[:, 1], entry["count"], entry.get("session", False))
            files[entry["dataset"], entry["file"]] = lines
        return cls(files)

    def dump(self) -> Iterable[bytes]:
        """The lines of `lines.jsonl`: each file of lines with its runs, as pairs of the first row and its line."""
        for (dataset, file), found in self._files.items():
            runs = np.stack([found.numbers, found.lines], axis=1)
            entry = {"dataset": dataset, "file": file, "count": found.count, "lines": runs}
            entry |= {"session": True} if found.session else {}
            yield orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"

    def lines(self, dataset: str, file: str) -> FileLines | None:
        """The lines of a file; None for an array or a table, and where the set does not say."""
        return self._files.get((dataset, file))

    def line(self, dataset: str, file: str, row: int, pointer: str = "") -> int | None:
        """The line on which a row begins, or in a session the item that the pointer leads into."""
        found = self.lines(dataset, file)
        if found is None:
            return None
        item = _ITEM.match(pointer)
        return found.line_of(row if not found.session else int(item[1]) if item else 0)

    def place(self, dataset: str, file: str, row: int, pointer: str = "") -> str:
        """The place of a row, or of what a JSON pointer into the row leads to."""
        found = self.lines(dataset, file)
        if found is not None and found.session:
            item = _ITEM.match(pointer)
            return spell(file, row, self.line(dataset, file, row, pointer), pointer[item.end() :] if item else "")
        return spell(file, row, self.line(dataset, file, row), pointer)
