"""Units and rows of .jsonl, .json, .csv, .tsv and .txt.

Cutting finds spans: whole lines, CSV records, array elements. Reading finds the same spans again within a
unit, with the same code, so that the two cannot disagree.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO

from compiler.read.elements import Elements
from compiler.read.lines import Ask, closes, cut_lines
from compiler.read.model import (
    COUNTED,
    MAX_ROW,
    FileKind,
    Row,
    SourceFile,
    Unit,
    changed,
    checksum_of,
    digest_of,
    open_file,
    too_long,
    unreadable,
)
from compiler.read.records import DELIMITERS, MAX_FIELD, Records, read_csv, read_header
from compiler.read.source import open_stream
from compiler.read.together import TOGETHER, parse_rows
from compiler.read.value import not_utf8
from schemas.errors import Reject
from schemas.stores import StorePath

_JSON_SPACE = b" \t\r\n"


def cut(
    source: SourceFile, target_bytes: int, digests: Callable[[], bool], ask: Callable[[], Ask | None]
) -> Iterator[Unit]:
    """Yield units of consecutive spans of about `target_bytes`. `digests()` says of each whether it gets its digest."""
    with open_stream(source) as stream:
        if source.kind in (FileKind.JSONL, FileKind.TXT):
            yield from cut_lines(source, stream, target_bytes, digests, ask)
            return
        window = _Window(stream, source.start, str(source.path), MAX_ROW + 2 * target_bytes)
        blocks = window.blocks(max(1, target_bytes // 4))
        header: tuple[str, ...] = ()
        if source.kind in DELIMITERS:
            records = Records(str(source.path), source.kind, window.lines(), source.start)
            header = read_header(records)
            spans = records.spans()
        elif source.kind is FileKind.JSON:
            spans = Elements(str(source.path), source.start).spans(blocks)
        elif source.kind is FileKind.OBJECTS:
            spans = Elements(str(source.path), source.start, bare=True).spans(blocks)
        else:
            spans = iter([(source.start, source.start + sum(map(len, blocks)))])
        line = 1
        for begin, end, count in _grouped(spans, target_bytes, window):
            if source.kind not in COUNTED:
                line += window.newlines(begin)
            data = window.take(begin, end)
            newlines = data.count(b"\n")
            if source.kind is not FileKind.SESSION or not data.isspace():
                yield Unit(
                    path=str(source.path),
                    kind=source.kind,
                    offset=begin,
                    length=end - begin,
                    digest=digest_of(source.kind, header, data) if digests() else "",
                    data=data if source.compression or isinstance(source.path, StorePath) else None,
                    header=header,
                    line=None if source.kind in COUNTED else line,
                    count=count if source.kind in COUNTED else newlines + (not data.endswith(b"\n")),
                    checksum=checksum_of(data),
                )
            if source.kind not in COUNTED:
                line += newlines


def read(unit: Unit) -> Iterator[Row]:
    """Yield the rows of a unit of text."""
    data = _bytes_of(unit) if unit.data is None else unit.data
    if unit.kind is FileKind.JSONL:
        return _read_json_lines(unit, data)
    if unit.kind is FileKind.JSON:  # the brackets of the array are put back around the elements of the unit
        return _read_elements(unit, data, Elements(unit.path, unit.offset - 1).spans([b"[", data, b"]"]))
    if unit.kind is FileKind.OBJECTS:
        return _read_elements(unit, data, Elements(unit.path, unit.offset, bare=True).spans([data]))
    if unit.kind is FileKind.SESSION:
        return _read_session(unit, data)
    if unit.kind is FileKind.TXT:
        return _read_txt(unit, data)
    return read_csv(unit, data)


def _bytes_of(unit: Unit) -> bytes:
    """The bytes of a unit from its file; InputError if they are not those that were cut."""
    with open_file(unit.path) as file:
        try:
            file.seek(unit.offset)
            data = file.read(unit.length)
        except OSError as error:
            raise unreadable(unit.path, error) from error
    if checksum_of(data) != unit.checksum:
        raise changed(unit.path)
    return data


def named(unit: Unit) -> Unit:
    """The unit with its digest and its bytes."""
    data = _bytes_of(unit) if unit.data is None else unit.data
    return replace(unit, digest=digest_of(unit.kind, unit.header, data), data=data)


class _Window:
    """The part of a stream that was read and not yet taken."""

    def __init__(self, stream: BinaryIO, at: int, path: str, most: int) -> None:
        """Begin at offset `at`; `most` bytes are held, of the units that are not taken yet and the row after them."""
        self._stream, self._path, self._most = stream, path, most
        self._held = bytearray()
        self._at = at  # offset of the first byte held

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yield the stream in blocks of `size` bytes."""
        while block := self._stream.read(size):
            self._held += block
            self._check()
            yield block

    def lines(self) -> Iterator[bytes]:
        """Yield the stream line by line."""
        at = self._at
        while line := self._stream.readline(MAX_FIELD):
            if len(line) == MAX_FIELD:
                raise too_long(self._path, at, MAX_FIELD)
            at += len(line)
            self._held += line
            self._check()
            yield line

    def _check(self) -> None:
        if len(self._held) > self._most:
            raise too_long(self._path, self._at, MAX_ROW)

    def peek(self, begin: int, end: int) -> bytes:
        """The bytes of a range of offsets."""
        return bytes(self._held[begin - self._at : end - self._at])

    def newlines(self, end: int) -> int:
        """The number of lines that end before an offset, of those held."""
        return self._held.count(b"\n", 0, end - self._at)

    def take(self, begin: int, end: int) -> bytes:
        """The bytes of a range of offsets; they and all before them are dropped."""
        data = self.peek(begin, end)
        del self._held[: end - self._at]
        self._at = end
        return data


def _grouped(spans: Iterable[tuple[int, int]], target_bytes: int, window: _Window) -> Iterator[tuple[int, int, int]]:
    """Yield the range of each group of consecutive spans of about `target_bytes`, and the number of its spans.

    The content of a span decides whether it closes a group, not its position: after a row was edited, inserted or
    removed, groups soon end where they did before, and their objects are reused. A span closes a group of at least a
    quarter of the target with a probability of twice its length over the target, and always at twice the target.
    """
    group: tuple[int, int, int] | None = None
    for begin, end in spans:
        group = (group[0], end, group[2] + 1) if group else (begin, end, 1)
        size = end - group[0]
        tail = max(begin, end - 64)
        if (
            size * 4 >= target_bytes and closes(end - begin, window.peek(tail, end), target_bytes)
        ) or size >= 2 * target_bytes:
            yield group
            group = None
    if group:
        yield group


def _read_json_lines(unit: Unit, data: bytes) -> Iterator[Row]:
    """Yield a row per line that is not blank; JSON space around the value is not part of the row."""
    index = number = 0
    at = unit.offset
    for block in _blocks(data):
        rows: list[Row] = []
        begun = at
        for line in block.split(b"\n"):
            if raw := line.strip(_JSON_SPACE):
                offset = at if raw is line else at + line.index(raw)
                rows.append(Row(index, offset, len(raw), None, raw, None, None, number))
                index += 1
            at += len(line) + 1
            number += 1
        parse_rows(rows, block, begun)
        yield from rows


def _blocks(data: bytes) -> Iterator[bytes]:
    """Yield whole lines of about TOGETHER bytes, without the newline that ends the last."""
    at, size = 0, len(data)
    while at < size:
        end = data.find(b"\n", at + TOGETHER)
        end = size if end < 0 else end
        yield data[at:end]
        at = end + 1


def _read_elements(unit: Unit, data: bytes, spans: Iterable[tuple[int, int]]) -> Iterator[Row]:
    """Yield a row per element."""
    line = None if unit.kind in COUNTED else 0
    before = first = 0
    rows: list[Row] = []
    for index, (begin, end) in enumerate(spans):
        at, after = begin - unit.offset, end - unit.offset
        if line is not None:
            line += data.count(b"\n", before, at)
            before = at
        if not rows:
            first = at
        rows.append(Row(index, begin, end - begin, None, data[at:after], None, None, line))
        if after - first >= TOGETHER:
            parse_rows(rows, data[first:after], unit.offset + first)
            yield from rows
            rows = []
    if rows:
        parse_rows(rows, data[first:after], unit.offset + first)
        yield from rows


def _read_session(unit: Unit, data: bytes) -> Iterator[Row]:
    """Yield the one row {"lines": [...]} of all lines that are not blank; a line that is wrong rejects the row."""
    lines, reject = [], None
    for line in _read_json_lines(unit, data):
        lines.append(line.value)
        for wrong in (line.reject, *(line.not_json or {}).values()):
            if wrong is not None and reject is None:
                reject = Reject(wrong.reason, wrong.message, f"/lines/{line.index}{wrong.pointer}")
    raw = data.strip(_JSON_SPACE)
    at = data.index(raw)
    value = None if reject else {"lines": lines}
    yield Row(0, unit.offset + at, len(raw), value, raw, reject, line=data.count(b"\n", 0, at))


def lines_of_items(session: Row) -> list[int]:
    """The lines on which the items of a session begin, as those of rows are counted."""
    first = session.line or 0
    return [n for n, line in enumerate(session.raw.split(b"\n"), first) if line.strip(_JSON_SPACE)]


def _read_txt(unit: Unit, data: bytes) -> Iterator[Row]:
    """Yield {"text": line} for each line that is not blank; the line keeps its spaces, not its ending."""
    index, at = 0, unit.offset
    for number, line in enumerate(_lines(data)):
        raw = _without_ending(line)
        if raw.strip():
            value, reject = None, None
            try:
                value = {"text": raw.decode()}
            except UnicodeDecodeError as error:
                reject = not_utf8(raw, error)
            yield Row(index, at, len(raw), value, raw, reject, None, number)
            index += 1
        at += len(line)


def _lines(data: bytes) -> Iterable[bytes]:
    """The lines with their endings; only b"\\n" ends a line (bytes.splitlines splits at more)."""
    return io.BytesIO(data)


def _without_ending(line: bytes) -> bytes:
    """A line without its \\n or \\r\\n."""
    return line[: -2 if line.endswith(b"\r\n") else -1] if line.endswith(b"\n") else line
