"""The values of many rows at once: what `value.parse` proves of a row is proved of all of them together.

Its proof compares the colons that are read with those that are written. Of no row are more written than read. So where
the sums over many rows are equal, they are equal in each row. A row with an escaped colon or a number of 19 digits is
parsed by itself, and so is one that orjson refuses. The first two are looked for in all bytes at once.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from operator import attrgetter

import orjson

from compiler.read.model import Row
from compiler.read.value import BEFORE_NUMBER, parse_row

TOGETHER = 1 << 17
"""About how many bytes of rows are parsed together: the checks take a call each, and the values are held at once."""

_ESCAPED_COLON = re.compile(rb"\\u003[aA]")
_DIGITS = re.compile(rb"[0-9]+")
_offset_of = attrgetter("offset")


def parse_rows(rows: list[Row], block: bytes, at: int) -> None:
    """Give rows the values or rejects that `parse_row` has for them; `block` holds their bytes, from offset `at` on."""
    alone = {bisect_right(rows, at + place, key=_offset_of) - 1 for place in _unclear(block)}
    for number, row in enumerate(rows):
        if number not in alone:
            try:
                row.value = orjson.loads(row.raw)
            except ValueError:
                alone.add(number)
    aside = sum(rows[number].raw.count(b":") for number in alone)
    for number in alone if _are_kept(rows, block, aside) else range(len(rows)):
        row = rows[number]
        row.value, row.reject, row.not_json = parse_row(row.raw)


def _are_kept(rows: Iterable[Row], block: bytes, aside: int) -> bool:
    """Whether the values have every key of the block, but for rows without a value, which have `aside` colons."""
    try:
        written = orjson.dumps([row.value for row in rows])
    except TypeError:  # it stops at 254 levels
        return False
    return _colons(block) - aside == _colons(written)


def _colons(text: bytes) -> int:
    import numpy as np  # a tenth of a second, for those who read rows

    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord(":")))


def _unclear(block: bytes) -> Iterator[int]:
    """Yield where an escaped colon or a number of 19 digits may be."""
    import numpy as np

    bytes_ = np.frombuffer(block, np.uint8)
    if ((bytes_[:-3] == ord("u")) & (bytes_[1:-2] == ord("0")) & (bytes_[3:] == ord("3"))).any():
        yield from (found.start() for found in _ESCAPED_COLON.finditer(block))
    # Of 19 bytes in a row, at least three have a position that is divisible by 6; five at most come before them.
    is_digit = bytes_[::6] - np.uint8(ord("0")) < 10
    end = 0
    for sixth in np.flatnonzero(is_digit[:-2] & is_digit[1:-1] & is_digit[2:]).tolist():
        place = 6 * sixth
        if place >= end and (digits := _DIGITS.match(block, place)):
            end = digits.end()
            begin = max(place - 5, 0) + len(block[max(place - 5, 0) : place].rstrip(b"0123456789"))
            if end - begin >= 19 and (begin == 0 or block[begin - 1] in BEFORE_NUMBER):
                yield begin
