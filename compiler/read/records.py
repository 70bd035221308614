"""Records of .csv and .tsv, as the csv module splits them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from compiler.read.model import FileKind, Row, Unit, check_header, without_index
from compiler.read.value import excerpt, not_utf8
from schemas.errors import InputError, Reason, Reject
from schemas.places import spell

DELIMITERS = {FileKind.CSV: ",", FileKind.TSV: "\t"}
MAX_FIELD = 1 << 25
"""The most characters of a CSV field, and bytes of a line; more means an open quote, found before memory is full."""
csv.field_size_limit(MAX_FIELD)  # for the whole process: the module has no other setting


class Records:
    """CSV records and their positions, as the csv module splits them in strict mode.

    A record with broken quoting ends with the line at which the module gives up; the next one begins on the
    next line. A quote that is never closed is an InputError.
    """

    def __init__(self, path: str, kind: FileKind, lines: Iterable[bytes], at: int) -> None:
        self.path, self._delimiter = path, DELIMITERS[kind]
        self._at, self._line, self._ended = at, 0, False  # of the byte that the csv module reads next
        self._raw: list[bytes] = []
        self._lines = lines
        self._found = self._find()

    def __iter__(self) -> Iterator[tuple[int, int, bytes, list[str] | csv.Error]]:
        """Yield (offset, line from 0, exact bytes, fields or what is wrong) of each record that is not blank."""
        return self._found

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the range of each record."""
        return ((at, at + len(raw)) for at, _, raw, _ in self._found)

    def _decoded(self) -> Iterator[str]:
        """Yield the lines for the csv module; bytes that are not UTF-8 pass through as surrogates."""
        for line in self._lines:
            self._at += len(line)
            self._line += 1
            self._raw.append(line)
            yield line.decode("utf-8", "surrogateescape")
        self._ended = True

    def _find(self) -> Iterator[tuple[int, int, bytes, list[str] | csv.Error]]:
        reader = csv.reader(self._decoded(), delimiter=self._delimiter, strict=True)
        delimiter = self._delimiter.encode()
        while True:
            at, line = self._at, self._line
            found: list[str] | csv.Error
            try:
                found = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                found = error
                if self._ended or self._at - at > MAX_FIELD:
                    raise self._unclosed(at, line) from error
            raw = b"".join(self._raw).rstrip(b"\r\n")
            self._raw.clear()
            if raw.strip() or delimiter in raw:
                yield at, line, raw, found

    def _unclosed(self, at: int, line: int) -> InputError:
        what = f"a quote in the record that begins here (byte {at}) is never closed"
        where = spell(self.path, 0, line + 1)
        return InputError(where, what, 'Close it; a quote inside a quoted field is written twice: "".')


def read_header(records: Records) -> tuple[str, ...]:
    """The first record of a CSV file as column names."""
    where = records.path
    for _, _, raw, fields in records:
        if isinstance(fields, csv.Error):
            if b"\r" in raw:
                raise InputError(where, "lines end with \\r alone", "Convert the line ends to \\n.")
            raise InputError(where, f"the header is not a CSV record: {fields}", "Repair the first line.")
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            reject = not_utf8(raw, error)
            raise InputError(where, f"the header is not UTF-8: {reject.message}") from error
        check_header(where, tuple(fields))
        return tuple(fields)
    return ()


def read_csv(unit: Unit, data: bytes) -> Iterator[Row]:
    """Yield a row per record; every value is text."""
    records = Records(unit.path, unit.kind, io.BytesIO(data), unit.offset)
    for index, (at, line, raw, fields) in enumerate(records):
        value, reject = _csv_value(unit.header, raw, fields)
        yield Row(index, at, len(raw), value, raw, reject, None, line)


def _csv_value(
    header: tuple[str, ...], raw: bytes, fields: list[str] | csv.Error
) -> tuple[dict[str, str] | None, Reject | None]:
    """The value of a record, or why it has none."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return None, not_utf8(raw, error)
    if isinstance(fields, csv.Error):
        return None, Reject(Reason.CSV, f"not a CSV record: {fields}, in {excerpt(raw, 20)}")
    if len(fields) != len(header):
        columns = ", ".join(header[:8]) + (", ..." if len(header) > 8 else "")
        return None, Reject(Reason.CSV, f"{len(header)} fields were expected ({columns}), found {len(fields)}")
    value = dict(zip(header, fields, strict=True))
    reject = without_index(value)
    return (None, reject) if reject else (value, None)
