"""Rows of .parquet, .arrow and .feather: a unit is a row group (Parquet) or a record batch (Arrow)."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from compiler.read.cells import mapped, values_of
from compiler.read.model import MAX_COLUMNS, FileKind, SourceFile, Unit, changed, stamp_of, unreadable
from compiler.read.value import escape
from schemas import kept
from schemas.errors import InputError, Reject
from schemas.stores import StorePath, path_of, problem

_BATCH_ROWS = 1024  # rows held as Python objects at a time, at most
_BATCH_BYTES = 64 << 20  # and about so many bytes of them, so that a few images are enough
_MAX_TYPE_DEPTH = 250  # `Row.raw` is written by orjson, which stops at 254 levels


def groups(source: SourceFile, data: bytes | None) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (number, rows, data for the unit) of each row group or record batch."""
    path = str(source.path)
    with _arrow_errors(path, source.kind), _buffer(path, data) as file:
        if source.kind is FileKind.PARQUET:
            with pq.ParquetFile(file) as parquet:
                _check_schema(path, parquet.schema_arrow)
                for number in range(parquet.num_row_groups):
                    packed = _packed(parquet.read_row_group(number, use_threads=False)) if data else None
                    yield number, parquet.metadata.row_group(number).num_rows, packed
        elif _is_arrow_file(file):
            with pa.ipc.open_file(file) as arrow:
                _check_schema(path, arrow.schema)
                for number in range(arrow.num_record_batches):
                    batch = arrow.get_batch(number)
                    _check_batch(path, number, batch)
                    yield number, batch.num_rows, _packed(batch) if data else None
        else:
            with pa.ipc.open_stream(file) as stream:
                _check_schema(path, stream.schema)
                for number, batch in enumerate(stream):
                    _check_batch(path, number, batch)
                    yield number, batch.num_rows, _packed(batch)


def rows(unit: Unit) -> Iterator[tuple[dict[str, Any], Reject | None]]:
    """The value of each row of a unit, and the reject where a cell has no value."""
    for batch in _batches(unit):
        yield from values_of(batch)


def _batches(unit: Unit) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a unit, a few at a time."""
    if unit.stamp is not None and stamp_of(unit.path) != unit.stamp:
        raise changed(unit.path)
    with _arrow_errors(unit.path, unit.kind), _buffer(unit.path, unit.data) as file:
        if unit.data is not None:
            with pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    yield from _sliced(unit, batch)
        elif unit.kind is FileKind.PARQUET:
            with pq.ParquetFile(file) as parquet:
                if unit.offset >= parquet.num_row_groups:
                    raise changed(unit.path)
                group = parquet.metadata.row_group(unit.offset)
                at_once = _rows_at_once(group.num_rows, group.total_byte_size)
                yield from parquet.iter_batches(at_once, row_groups=[unit.offset], use_threads=False)
        else:
            with pa.ipc.open_file(file) as arrow:
                if unit.offset >= arrow.num_record_batches:
                    raise changed(unit.path)
                yield from _sliced(unit, arrow.get_batch(unit.offset))


def _sliced(unit: Unit, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield a record batch in small pieces."""
    _check_batch(unit.path, unit.offset, batch)
    at_once = _rows_at_once(batch.num_rows, batch.nbytes)
    for begin in range(0, batch.num_rows, at_once):
        yield batch.slice(begin, at_once)


def _rows_at_once(rows: int, size: int) -> int:
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(size, 1)))


def _check_batch(path: str, number: int, batch: pa.RecordBatch) -> None:
    """Raise InputError unless a record batch can be read safely.

    Arrow data is memory as it is: offsets beyond its end would crash. Text that is not UTF-8 would not, and
    is left to be a reject of its row: so the check is made as if text were binary.
    """
    for column in batch.columns:
        type_ = mapped(column.type, _binary_for_text)
        try:
            (column if type_ == column.type else column.view(type_)).validate(full=True)
        except pa.ArrowInvalid as error:
            what = f"record batch {number} is corrupt: {error}"
            raise InputError(path, what, "Write or download it again.") from error


def _binary_for_text(type_: pa.DataType) -> pa.DataType:
    """The binary type with the layout of a text type, or the type itself."""
    if pa.types.is_string(type_):
        return pa.binary()
    if pa.types.is_large_string(type_):
        return pa.large_binary()
    return pa.binary_view() if pa.types.is_string_view(type_) else type_


def _buffer(path: str, data: bytes | None) -> Any:
    """A file for pyarrow; not a memory map, which crashes when somebody else shortens the file."""
    if data is not None:
        return pa.BufferReader(data)
    place = path_of(path)
    if isinstance(place, StorePath):
        if (found := kept.fetch(place)) is not None:
            return pa.BufferReader(found[0])
        store, name = place.filesystem()
        return store.open_input_file(name)
    return pa.OSFile(path)


def _is_arrow_file(file: Any) -> bool:
    """Whether this is an Arrow file; a stream has no magic bytes."""
    magic = file.read(6)
    file.seek(0)
    return bool(magic == b"ARROW1")


def _packed(rows: pa.Table | pa.RecordBatch) -> bytes:
    """The rows as one Arrow stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write(rows)
    return sink.getvalue()


def _check_schema(path: str, schema: pa.Schema) -> None:
    """Raise InputError for tables whose rows cannot be JSON objects."""
    if len(schema) > MAX_COLUMNS:
        raise InputError(path, f"has {len(schema):,} columns, and at most {MAX_COLUMNS:,} are read", "Leave some out.")
    _check_fields(path, "", list(schema), 1)


def _check_fields(path: str, above: str, fields: list[pa.Field], depth: int) -> None:
    if depth > _MAX_TYPE_DEPTH:
        raise InputError(path, f"has columns nested deeper than {_MAX_TYPE_DEPTH} levels", "Flatten them.")
    names = Counter(field.name for field in fields)
    for field in fields:
        name = f"{above}/{escape(field.name)}"
        if names[field.name] > 1:
            raise InputError(path, f"column {name} exists more than once", "Rename or leave out all but one.")
        kind = field.type
        if pa.types.is_union(kind):
            raise InputError(path, f"column {name} is a union, which is not supported", "Leave it out.")
        inner = [kind.field(number) for number in range(kind.num_fields)]
        if pa.types.is_dictionary(kind):
            inner = [pa.field("values", kind.value_type)]
        _check_fields(path, name, inner, depth + 1)


@contextlib.contextmanager
def _arrow_errors(path: str, kind: FileKind) -> Iterator[None]:
    """Turn pyarrow's errors about a file into an InputError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: in a name or a message
        if isinstance(error, OSError) and error.errno:
            raise unreadable(path, error) from error
        place = path_of(path)
        if isinstance(error, OSError) and isinstance(place, StorePath) and "AWS Error" in str(error):
            raise problem(place, str(error)) from error
        name = "a Parquet file" if kind is FileKind.PARQUET else "an Arrow file or stream"
        what = f"cannot be read as {name}: {(str(error) or type(error).__name__).splitlines()[0]}"
        raise InputError(path, what, "Write it again, or check its suffix.") from error
