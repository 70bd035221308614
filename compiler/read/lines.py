"""Units of files of lines, cut without looking at every line.

The rule is that of `grouped`: the content of a line decides whether a unit ends with it. It cannot end before a quarter
of the target, so no line before that is looked at.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from compiler.read.model import MAX_ROW, SourceFile, Unit, checksum_of, digest_of, too_long
from schemas.stores import StorePath

_BLOCK = 4
"""Targets that are read at once."""


def closes(length: int, tail: bytes | memoryview, target: int) -> bool:
    """Whether a unit of a quarter of the target or more ends with this span, of so many bytes; `tail` are the last 64.

    The probability is twice its length over the target.
    """
    return zlib.crc32(tail) < length * (1 << 33) // target


def cut_lines(source: SourceFile, stream: BinaryIO, target: int, digests: Callable[[], bool]) -> Iterator[Unit]:
    """Yield units of whole lines of about `target` bytes, of a stream that begins at `source.start`.

    `digests()` says of each whether it gets its digest.
    """
    held, at, line, most = b"", source.start, 1, MAX_ROW + 2 * target
    keep = bool(source.compression) or isinstance(source.path, StorePath)
    more = True
    while more:
        block = stream.read(max(1, _BLOCK * target))
        held, more = held + block, bool(block)
        begin = 0
        while (end := _end_of_unit(held, begin, target, whole=not more)) > begin:
            count = held.count(b"\n", begin, end)
            if unit := _unit(source, held[begin:end], at + begin, line, count, keep=keep, digest=digests()):
                yield unit
            line += count
            begin = end
        held, at = held[begin:], at + begin
        if len(held) > most:
            raise too_long(str(source.path), at, MAX_ROW)


def _end_of_unit(held: bytes, begin: int, target: int, *, whole: bool) -> int:
    """Where the unit ends that begins there; `begin` if that is not known yet. `whole`: nothing comes after `held`."""
    end = held.find(b"\n", max(begin, begin + -(-target // 4) - 1)) + 1
    start = max(begin, held.rfind(b"\n", begin, end - 1) + 1) if end else begin  # of the line that ends there
    while end:
        if end - begin >= 2 * target or closes(end - start, held[max(start, end - 64) : end], target):
            return end
        start, end = end, held.find(b"\n", end) + 1
    return len(held) if whole else begin


def _unit(
    source: SourceFile, data: bytes, offset: int, line: int, newlines: int, *, keep: bool, digest: bool
) -> Unit | None:
    """The unit of these lines; None if they are blank."""
    if data[:64].isspace() and data.isspace():
        return None
    return Unit(
        path=str(source.path),
        kind=source.kind,
        offset=offset,
        length=len(data),
        digest=digest_of(source.kind, (), data) if digest else "",
        data=data if keep else None,
        line=line,
        count=newlines + (not data.endswith(b"\n")),
        checksum=checksum_of(data),
    )
