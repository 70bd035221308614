"""Units of files of lines, cut without looking at every line, and in large files by several processes.

The rule is that of other text, `_grouped` in text.py: the content of a line decides whether a unit ends with it. It
cannot end before a quarter of the target, so no line before that is looked at.

Where a unit ends depends on where it begins, and on nothing before that. So a stretch of a file can be cut before it is
known where its first unit begins: from its first line on. Soon a unit so found begins where one really does, and from
there on all are right; the few before that are cut again.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, Protocol

from compiler.read.model import MAX_ROW, SourceFile, Unit, changed, checksum_of, digest_of, open_file, too_long
from schemas.errors import InputError
from schemas.stores import StorePath

_TARGETS, _FEW_TARGETS, _LEAST = 8, 3, 1 << 16
"""So many targets, and at least so many bytes, are read at once; fewer where one unit is cut."""
STRETCH = 32
"""Targets that another process cuts at once."""
_STRETCHES = 4
"""Stretches that are cut while this process goes through an earlier one."""
_CRCS = 1 << 33
_NEWLINE = 10


class Called(Protocol):
    """What a function that is called elsewhere will return."""

    def result(self) -> Any:
        """Wait for it."""


Ask = Callable[..., Called]
"""Calls a function with arguments in another process that sees the files."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A unit that was cut elsewhere."""

    offset: int
    length: int
    count: int
    """The number of its lines."""
    checksum: str
    """"" where the lines are blank."""


def closes(length: int, tail: bytes | memoryview, target: int) -> bool:
    """Whether a unit of a quarter of the target or more ends with this span, of so many bytes; `tail` are the last 64.

    The length counts too: rows often end alike, with the same keys in the same order.
    The probability is twice its length over the target.
    """
    return zlib.crc32(tail, length) < length * _CRCS // target


def cut_lines(
    source: SourceFile, stream: BinaryIO, target: int, digests: Callable[[], bool], ask: Callable[[], Ask | None]
) -> Iterator[Unit]:
    """Yield units of whole lines of about `target` bytes, of a stream that begins at `source.start`.

    `digests()` says of each whether it gets its digest. Where none does, others may cut what is left of a large file.
    """
    is_plain = not source.compression and not isinstance(source.path, StorePath)
    size = os.fstat(stream.fileno()).st_size if is_plain else 0
    line = 1
    for at, data, newlines in _pieces(source, stream, source.start, target, _TARGETS):
        wants_digest = digests()
        unit = _unit(source, data, at - len(data), line, newlines, digest=wants_digest)
        if unit is not None:
            yield unit
        line += newlines
        if not wants_digest and at + 2 * STRETCH * target < size and (others := ask()) is not None:
            break
    else:
        return
    for found in _cut_elsewhere(source, stream, at, target, range(at, size, STRETCH * target), others):
        if found.checksum:
            yield Unit(
                path=str(source.path), kind=source.kind, offset=found.offset, length=found.length, digest="", data=None,
                line=line, count=found.count, checksum=found.checksum,
            )  # fmt: skip
        line += found.count


def _pieces(
    source: SourceFile, stream: BinaryIO, at: int, target: int, targets: int
) -> Iterator[tuple[int, memoryview, int]]:
    """Yield the bytes of each unit of a stream that is at offset `at`: where they end, themselves, how many lines end.

    Bytes are read into the same memory again and again: the view is valid until the next one.
    """
    size = max(_LEAST, targets * target)
    held, filled = bytearray(size), 0  # memory that no byte is read into is never touched: most files are small
    more = True
    while more:
        if filled == len(held):
            if filled > MAX_ROW + 2 * target:
                raise too_long(str(source.path), at, MAX_ROW)
            held += bytes(size)
        with memoryview(held) as whole, whole[filled:] as free:
            count = stream.readinto(free)  # type: ignore[attr-defined]  # of every stream that open_stream yields
        filled, more = filled + count, count > 0
        begin = 0
        while (end := _end_of_unit(held, begin, filled, target, is_last=not more)) > begin:
            with memoryview(held) as whole, whole[begin:end] as data:
                yield at + end, data, held.count(b"\n", begin, end)
            begin = end
        held[: filled - begin] = held[begin:filled]
        filled, at = filled - begin, at + begin


def _cut_elsewhere(
    source: SourceFile, stream: BinaryIO, at: int, target: int, begins: range, ask: Ask
) -> Iterator[_Found]:
    """Yield the units from `at` on, of which others cut the stretches that begin there."""

    def cut_here(targets: int) -> Iterator[_Found]:
        stream.seek(at)
        return (_found(data, end, newlines) for end, data, newlines in _pieces(source, stream, at, target, targets))

    asked: deque[Called] = deque()
    left = iter(begins)
    for begin in begins:
        asked += [ask(cut_stretch, source, more, more + begins.step, target) for more in _some(left, asked)]
        units: list[_Found] = asked.popleft().result()
        place = {unit.offset: number for number, unit in enumerate(units)}
        while at < min(begin + begins.step, begins.stop):
            known = units[place[at] :] if at in place else list(islice(cut_here(_FEW_TARGETS), 1))
            if not known:
                raise changed(source.path)
            yield from known
            at = known[-1].offset + known[-1].length
    yield from cut_here(_TARGETS)  # what was added to the file meanwhile


def _some(left: Iterator[int], asked: deque[Called]) -> Iterator[int]:
    """The stretches to ask for next, so that enough are under way."""
    return (begin for _, begin in zip(range(_STRETCHES + 1 - len(asked)), left, strict=False))


def cut_stretch(source: SourceFile, begin: int, end: int, target: int) -> list[_Found]:
    """Cut units from the first line that begins at offset `begin` or later, until one ends at `end` or later.

    Where a row has no end there are fewer; whoever cuts the file from its start says so.
    """
    found: list[_Found] = []
    with open_file(source.path) as file, suppress(InputError):
        file.seek(begin - 1)
        file.readline(MAX_ROW)
        for at, data, newlines in _pieces(source, file, file.tell(), target, _TARGETS):
            found.append(_found(data, at, newlines))
            if at >= end:
                break
    return found


def _found(data: memoryview, end: int, newlines: int) -> _Found:
    count = newlines + (data[-1] != _NEWLINE)
    return _Found(end - len(data), len(data), count, "" if _is_blank(data) else checksum_of(data))


def _end_of_unit(held: bytearray, begin: int, filled: int, target: int, *, is_last: bool) -> int:
    """Where the unit ends that begins there; `begin` if that is not known yet. `is_last`: nothing comes after."""
    find, crc32, scale, most = held.find, zlib.crc32, _CRCS, begin + 2 * target
    end = find(b"\n", begin + -(-target // 4) - 1, filled) + 1
    start = max(begin, held.rfind(b"\n", begin, end - 1) + 1) if end else begin  # of the line that ends there
    while end:
        length = end - start
        tail = held[end - 64 if length > 64 else start : end]
        if crc32(tail, length) < length * scale // target or end >= most:  # as `closes`, which takes longer to call
            return end
        start, end = end, find(b"\n", end, filled) + 1
    return filled if is_last else begin


def _unit(source: SourceFile, data: memoryview, offset: int, line: int, newlines: int, *, digest: bool) -> Unit | None:
    """The unit of these lines; None if they are blank."""
    if _is_blank(data):
        return None
    keep = bool(source.compression) or isinstance(source.path, StorePath)
    return Unit(
        path=str(source.path),
        kind=source.kind,
        offset=offset,
        length=len(data),
        digest=digest_of(source.kind, (), data) if digest else "",
        data=bytes(data) if keep else None,
        line=line,
        count=newlines + (data[-1] != _NEWLINE),
        checksum=checksum_of(data),
    )


def _is_blank(data: memoryview) -> bool:
    return bytes(data[:64]).isspace() and bytes(data).isspace()
