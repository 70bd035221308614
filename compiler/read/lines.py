"""Units of files of lines, cut without looking at every line.

The rule is that of other text, `_grouped` in text.py: the content of a line decides whether a unit ends with it. It
cannot end before a quarter of the target, so no line before that is looked at.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from compiler.read.model import MAX_ROW, SourceFile, Unit, checksum_of, digest_of, too_long
from schemas.stores import StorePath

_TARGETS, _LEAST = 8, 1 << 16
"""So many targets, and at least so many bytes, are read at once."""
_CRCS = 1 << 33
_NEWLINE = 10


def closes(length: int, tail: bytes | memoryview, target: int) -> bool:
    """Whether a unit of a quarter of the target or more ends with this span, of so many bytes; `tail` are the last 64.

    The probability is twice its length over the target.
    """
    return zlib.crc32(tail) < length * _CRCS // target


def cut_lines(source: SourceFile, stream: BinaryIO, target: int, digests: Callable[[], bool]) -> Iterator[Unit]:
    """Yield units of whole lines of about `target` bytes, of a stream that begins at `source.start`.

    `digests()` says of each whether it gets its digest. Bytes are read into the same memory again and again.
    """
    size = max(_LEAST, _TARGETS * target)
    held, filled = bytearray(size), 0  # memory that no byte is read into is never touched: most files are small
    at, line, more = source.start, 1, True
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
            newlines = held.count(b"\n", begin, end)
            with memoryview(held) as whole, whole[begin:end] as data:
                unit = _unit(source, data, at + begin, line, newlines, digest=digests())
            if unit is not None:
                yield unit
            line += newlines
            begin = end
        held[: filled - begin] = held[begin:filled]
        filled, at = filled - begin, at + begin


def _end_of_unit(held: bytearray, begin: int, filled: int, target: int, *, is_last: bool) -> int:
    """Where the unit ends that begins there; `begin` if that is not known yet. `is_last`: nothing comes after."""
    find, crc32, scale, most = held.find, zlib.crc32, _CRCS, begin + 2 * target
    end = find(b"\n", begin + -(-target // 4) - 1, filled) + 1
    start = max(begin, held.rfind(b"\n", begin, end - 1) + 1) if end else begin  # of the line that ends there
    while end:
        length = end - start
        tail = held[end - 64 if length > 64 else start : end]
        if crc32(tail) < length * scale // target or end >= most:  # as `closes`, which takes longer to call
            return end
        start, end = end, find(b"\n", end, filled) + 1
    return filled if is_last else begin


def _unit(source: SourceFile, data: memoryview, offset: int, line: int, newlines: int, *, digest: bool) -> Unit | None:
    """The unit of these lines; None if they are blank."""
    if bytes(data[:64]).isspace() and bytes(data).isspace():
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
