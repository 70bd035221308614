"""The positions of the elements of a JSON array, found without parsing them or holding the array in memory.

The scanner looks only at strings and brackets. It does not check that an element is JSON: an element ends where
its brackets balance, and is parsed (and perhaps rejected) later. An error is only what hides the start of the
next row: a missing comma, text after the array, no end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from schemas.errors import InputError


def _all_of(pattern: bytes) -> bytes:
    """As many as there are, never tried again. `(?:...)*+` says the same, and is wrong in Python 3.11.0 to 3.11.4."""
    return rb"(?>(?:" + pattern + rb")*)"


_STRING_BODY = rb'"[^"\\]*+' + _all_of(rb'\\.[^"\\]*+')
_USUAL_STRING = rb'"[^"]*+' + _all_of(rb'(?<=[^\\]\\)"[^"]*+') + rb'(?<!\\)"'

STRING = rb"(?:" + _USUAL_STRING + rb"|" + _STRING_BODY + rb'")'
"""A whole string. Possessive (`*+`) and atomic: what was matched is never tried again, so time stays linear.

The first way is four times as fast, because it loops over "not this one byte", not over a set. It looks at
quotes only: one after a single backslash is escaped, one without a backslash before it is the end; where two
backslashes stand before a quote it gives up, and the second way decides.
"""

OPEN_STRING = _STRING_BODY + rb'(?:"|\\?\Z)'
"""A whole string, or one that goes on to the end of the bytes: never tried again from a quote within it."""

BRACKETS = re.compile(OPEN_STRING + rb"|[\[\]{}]", re.DOTALL)
"""Strings and brackets; a bracket outside of strings is a match of its own."""

_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb'[^ \t\r\n,\[\]{}"]*+')
_NEITHER = rb'[^"\[\]{}]*+'
_INSIDE = _NEITHER + _all_of(STRING + _NEITHER)
_LEAF = rb"[\[{]" + _INSIDE + rb"[\]}]"
_TO_BRACKET = re.compile(_NEITHER + _all_of(rb"(?:" + STRING + rb"|" + _LEAF + rb")" + _NEITHER), re.DOTALL)
"""Everything up to the next bracket, or to the quote of a string that has no end in this block. A pair of
brackets without others inside is passed over too: that leaves fewer brackets to look at one by one."""
_STRING_REST = re.compile(rb'[^"\\]*+' + _all_of(rb'\\.[^"\\]*+'), re.DOTALL)

_QUOTE, _COMMA, _BACKSLASH = b'",\\'
_OPENING, _CLOSING = b"[{", b"]}"


class Elements:
    """A state machine over blocks, which may end anywhere, even inside an escape.

    The state is a method that takes a block and a position and returns the position that it has read up to.
    """

    def __init__(self, path: str | Path, at: int, *, bare: bool = False) -> None:
        """Begin at offset `at`; `bare` values have no brackets around them and no commas between."""
        self._path, self._bare = str(path), bare
        self._base = at  # offset of the current block in the file
        self._line, self._counted = 1, 0  # line number of position `_counted` of the current block
        self._held = b""  # a backslash that ended the last block: it belongs to the byte after it
        self._depth = 0
        self._begun, self._begun_line = at, 1  # the element that is open, or the last one
        self._ended = False
        self._state: Callable[[bytes, int], int] = self._element if bare else self._opening

    def spans(self, blocks: Iterable[bytes]) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) of each element, as offsets in the file; InputError for a broken array."""
        for fresh in blocks:
            block, at = self._held + fresh, 0
            self._held = b""
            while at < len(block):
                at = self._state(block, at)
                if self._ended:
                    self._ended = False
                    yield self._begun, self._base + at
            self._count_lines(block, len(block))
            self._base += len(block) - len(self._held)
            self._counted = 0
        if not self._bare:
            self._check_closed()
        elif self._state not in (self._element, self._separator):  # parsing it says where it is broken
            yield self._begun, self._base + len(self._held)

    def _opening(self, block: bytes, at: int) -> int:
        """Read up to the bracket that opens the array."""
        at = _after_space(block, at)
        if at < len(block):
            if block[at] != _OPENING[0]:
                raise self._wrong(block, at, "an array of rows, '[', was expected")
            self._state = self._first
            at += 1
        return at

    def _first(self, block: bytes, at: int) -> int:
        """Read the start of the first element, or the end of an empty array."""
        at = _after_space(block, at)
        if at < len(block):
            self._state = self._element
            if block[at] == _CLOSING[0]:
                self._state = self._closed
                at += 1
        return at

    def _element(self, block: bytes, at: int) -> int:
        """Read the first byte of an element; it decides how the end is found."""
        at = _after_space(block, at)
        if at == len(block):
            return at
        first = block[at]
        if first == _COMMA or first in _CLOSING:
            raise self._wrong(block, at, "a row was expected")
        self._count_lines(block, at)
        self._begun, self._begun_line = self._base + at, self._line
        if first in _OPENING:
            self._depth, self._state = 1, self._nested
        elif first == _QUOTE:
            self._state = self._string
        else:
            self._state = self._scalar
            return at
        return at + 1

    def _scalar(self, block: bytes, at: int) -> int:
        """Read a number, true, false, null, or whatever stands in their place, up to a delimiter."""
        if match := _SCALAR.match(block, at):
            at = match.end()
        if at < len(block):
            self._end_element()
        return at

    def _nested(self, block: bytes, at: int) -> int:
        """Read up to the bracket that closes the element, or the end of the block."""
        depth, size = self._depth, len(block)
        match_rest = _TO_BRACKET.match
        while (match := match_rest(block, at)) and (at := match.end()) < size:
            byte = block[at]
            at += 1
            if byte == _QUOTE:
                self._state = self._string
                break
            depth += 1 if byte in _OPENING else -1
            if not depth:
                self._end_element()
                break
        self._depth = depth
        return at

    def _string(self, block: bytes, at: int) -> int:
        """Read the rest of a string whose quote was read, perhaps blocks ago."""
        if match := _STRING_REST.match(block, at):
            at = match.end()
        if at == len(block):
            return at
        if block[at] == _BACKSLASH:  # the last byte of the block: an escape needs the one after it
            self._held = block[at:]
        elif self._depth:
            self._state = self._nested
        else:
            self._end_element()
        return at + 1

    def _separator(self, block: bytes, at: int) -> int:
        """Read the comma after an element, or the end of the array."""
        at = _after_space(block, at)
        if at == len(block):
            return at
        if block[at] == _COMMA:
            self._state = self._element
        elif block[at] == _CLOSING[0]:
            self._state = self._closed
        else:
            raise self._wrong(block, at, "',' or ']' was expected after a row")
        return at + 1

    def _closed(self, block: bytes, at: int) -> int:
        """Read the space after the array: nothing else may follow."""
        at = _after_space(block, at)
        if at < len(block):
            raise self._wrong(block, at, "nothing was expected after the ']' that ends the array")
        return at

    def _end_element(self) -> None:
        self._ended, self._state = True, self._element if self._bare else self._separator

    def _count_lines(self, block: bytes, at: int) -> None:
        """Move the line counter to `at`; each byte is looked at once."""
        self._line += block.count(b"\n", self._counted, at)
        self._counted = at

    def _wrong(self, block: bytes, at: int, expected: str) -> InputError:
        self._count_lines(block, at)
        found = block[at : at + 24].decode("utf-8", "replace")
        return InputError(
            self._path,
            f"{expected} at byte {self._base + at} (line {self._line}), found {found!r}",
            "Repair the JSON there, or write one JSON object per line into a .jsonl file.",
        )

    def _check_closed(self) -> None:
        if self._state == self._closed:
            return
        hint = "The file may have been cut short: write it again, or write one JSON object per line (.jsonl)."
        if self._state in (self._nested, self._string, self._scalar):
            what = f"the row that begins at byte {self._begun} (line {self._begun_line}) never ends"
        else:
            what = f"the file ends at byte {self._base} (line {self._line})"
            if self._state == self._separator:
                what += f", its last row begins at byte {self._begun} (line {self._begun_line})"
        raise InputError(self._path, f"the array is never closed: {what}", hint)


def _after_space(block: bytes, at: int) -> int:
    """The position of the first byte at or after `at` that is not JSON space."""
    match = _SPACE.match(block, at)
    return match.end() if match else at
