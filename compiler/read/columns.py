"""Units and rows of .parquet, .arrow, .feather and .xlsx.

Tables cannot say "this key is absent", only null. So a null column of a row, and a null member of a struct
at any depth, is a key that the row does not have. Elements of lists and values of maps may be null: they
stay. Text, numbers and booleans stay what they are (NaN is a float, and left to the schema to reject).
Everything else becomes text: `str()` of dates, times, durations, decimals, UUIDs (to the microsecond: Python
has no finer times); binary is decoded as UTF-8, and is a reject where it is not, because `str(b"...")` would
be trained on as if somebody had written it.

Cells of a workbook become what a person reads there: 3.0 is "3", dates are ISO 8601, an empty cell is "";
booleans stay booleans.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import python_calamine

from compiler.read.model import FileKind, Row, SourceFile, Unit, changed, check_header, open_file, stamp_of, unreadable
from compiler.read.source import open_stream
from compiler.read.value import escape
from schemas.errors import InputError, Reason, Reject, RowError
from schemas.stores import StorePath, path_of, problem

_BATCH_ROWS = 1024  # rows that are Python objects at a time
_MAX_TYPE_DEPTH = 250  # `Row.raw` is written by orjson, which stops at 254 levels

Convert = Callable[[Any], Any]


def cut(source: SourceFile) -> Iterator[Unit]:
    """Yield a unit per row group (Parquet), per record batch (Arrow), or one for the first sheet (.xlsx)."""
    stamp = stamp_of(source.path)  # before the bytes are read: what is written from now on shows
    with open_stream(source) as stream:
        data = stream.read() if source.compression or source.kind is FileKind.XLSX else None
        if data is None:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # a BufferedReader
        elif data:
            sha256 = hashlib.sha256(data).hexdigest()
        else:
            return
    if data is not None and source.kind is FileKind.XLSX:
        yield from _cut_sheet(source, sha256, data)
        return
    for number, rows, packed in _groups(source, data):
        if rows:
            yield replace(_unit(source, sha256, number, packed), stamp=None if packed else stamp)


def read(unit: Unit) -> Iterator[Row]:
    """Yield the rows of a unit of a table; they have no offsets."""
    if unit.kind is FileKind.XLSX:
        values: Iterable[tuple[dict[str, Any], Reject | None]] = _read_sheet(unit)
    else:
        values = (row for batch in _batches(unit) for row in _rows_of(batch))
    for index, (value, reject) in enumerate(values):
        raw = orjson.dumps(value, default=str)
        yield Row(index, None, None, None if reject else value, raw, reject)


def _unit(source: SourceFile, sha256: str, number: int, data: bytes | None, header: tuple[str, ...] = ()) -> Unit:
    digest = _digest(source.kind, sha256, number)
    return Unit(str(source.path), source.kind, number, 1, digest, data, header)


def _digest(kind: FileKind, sha256: str, number: int) -> str:
    """Return the digest of a unit: that of the file, and which part of it."""
    return hashlib.sha256(f"{kind}\0{sha256}\0{number}".encode()).hexdigest()


# Parquet and Arrow


@contextlib.contextmanager
def _arrow_errors(path: str, kind: FileKind) -> Iterator[None]:
    """Turn what pyarrow says about a file into an InputError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a name, or a message
        if isinstance(error, OSError) and error.errno:
            raise unreadable(path, error) from error
        place = path_of(path)
        if isinstance(error, OSError) and isinstance(place, StorePath) and "AWS Error" in str(error):
            raise problem(place, str(error)) from error
        name = "a Parquet file" if kind is FileKind.PARQUET else "an Arrow file or stream"
        what = f"cannot be read as {name}: {(str(error) or type(error).__name__).splitlines()[0]}"
        raise InputError(path, what, "Write it again, or check its suffix.") from error


def _groups(source: SourceFile, data: bytes | None) -> Iterator[tuple[int, int, bytes | None]]:
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
                yield from parquet.iter_batches(_BATCH_ROWS, row_groups=[unit.offset], use_threads=False)
        else:
            with pa.ipc.open_file(file) as arrow:
                if unit.offset >= arrow.num_record_batches:
                    raise changed(unit.path)
                yield from _sliced(unit, arrow.get_batch(unit.offset))


def _sliced(unit: Unit, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield a record batch in small pieces."""
    _check_batch(unit.path, unit.offset, batch)
    for begin in range(0, batch.num_rows, _BATCH_ROWS):
        yield batch.slice(begin, _BATCH_ROWS)


def _check_batch(path: str, number: int, batch: pa.RecordBatch) -> None:
    """Raise InputError unless a record batch can be read safely.

    Arrow data is memory as it is: offsets beyond its end would crash. Text that is not UTF-8 would not, and
    is left to be a reject of its row: so the check is made as if text were binary.
    """
    for column in batch.columns:
        type_ = _mapped(column.type, _binary_for_text)
        try:
            (column if type_ == column.type else column.view(type_)).validate(full=True)
        except pa.ArrowInvalid as error:
            what = f"record batch {number} is corrupt: {error}"
            raise InputError(path, what, "Write or download it again.") from error


def _binary_for_text(type_: pa.DataType) -> pa.DataType:
    """Return the binary type with the layout of a text type, or the type itself."""
    if pa.types.is_string(type_):
        return pa.binary()
    if pa.types.is_large_string(type_):
        return pa.large_binary()
    return pa.binary_view() if pa.types.is_string_view(type_) else type_


def _buffer(path: str, data: bytes | None) -> Any:
    """Return a file for pyarrow; not a memory map, which crashes when somebody else shortens the file."""
    if data is not None:
        return pa.BufferReader(data)
    place = path_of(path)
    if isinstance(place, StorePath):
        store, name = place.filesystem()
        return store.open_input_file(name)
    return pa.OSFile(path)


def _is_arrow_file(file: Any) -> bool:
    """Return whether this is an Arrow file rather than a stream, which begins with no magic."""
    magic = file.read(6)
    file.seek(0)
    return bool(magic == b"ARROW1")


def _packed(rows: pa.Table | pa.RecordBatch) -> bytes:
    """Return rows as one Arrow stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write(rows)
    return sink.getvalue()


def _check_schema(path: str, schema: pa.Schema) -> None:
    """Raise InputError for tables whose rows cannot be JSON objects."""
    _check_fields(path, "", list(schema), 1)


def _check_fields(path: str, above: str, fields: list[pa.Field], depth: int) -> None:
    if depth > _MAX_TYPE_DEPTH:
        raise InputError(path, f"has columns nested deeper than {_MAX_TYPE_DEPTH} levels", "Flatten them.")
    names = [field.name for field in fields]
    for field in fields:
        name = f"{above}/{escape(field.name)}"
        if names.count(field.name) > 1:
            raise InputError(path, f"column {name} exists more than once", "Rename or leave out all but one.")
        kind = field.type
        if pa.types.is_union(kind):
            raise InputError(path, f"column {name} is a union, which is not supported", "Leave it out.")
        inner = [kind.field(number) for number in range(kind.num_fields)]
        if pa.types.is_dictionary(kind):
            inner = [pa.field("values", kind.value_type)]
        _check_fields(path, name, inner, depth + 1)


def _rows_of(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], Reject | None]]:
    """Yield (value, reject) per row; with a reject, the value lacks the cell that it is about."""
    names = batch.schema.names
    columns = [_cells(name, column) for name, column in zip(names, batch.columns, strict=True)]
    for number in range(batch.num_rows):
        value: dict[str, Any] = {}
        reject: Reject | None = None
        for name, column in zip(names, columns, strict=True):
            cell = column[number]
            if isinstance(cell, Reject):
                reject = reject or cell
            elif cell is not None:
                value[name] = cell
        yield value, reject


def _cells(name: str, column: pa.Array) -> list[Any]:
    """Return the values of a column; a cell that has none is a Reject."""
    try:
        return _converted(column)
    except (ValueError, OverflowError, KeyError, pa.ArrowException, RowError):
        return [_cell(name, column.slice(number, 1)) for number in range(len(column))]


def _cell(name: str, column: pa.Array) -> Any:
    """Return the one value of a column, or the reject saying why there is none."""
    pointer = "/" + escape(name)
    try:
        return _converted(column)[0]
    except RowError as error:
        return Reject(error.reject.reason, error.reject.message, pointer)
    except UnicodeDecodeError as error:
        return Reject(Reason.NOT_UTF8, f"column {name!r} holds text that is not UTF-8 ({error})", pointer)
    except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:
        what = f"column {name!r} holds a {column.type} that cannot be written as JSON ({error})"
        return Reject(Reason.JSON, what, pointer)


def _converted(column: pa.Array) -> list[Any]:
    """Return the values of a column as JSON values."""
    type_ = _mapped(column.type, _without_nanoseconds)
    if type_ != column.type:
        column = column.cast(type_, safe=False)
    values: list[Any] = column.to_pylist()
    convert = _converter(type_)
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _without_nanoseconds(type_: pa.DataType) -> pa.DataType:
    """Return the type of a time to the microsecond, or the type itself.

    pyarrow gives nanoseconds as pandas objects if pandas is installed and fails otherwise; a row must not
    depend on that.
    """
    if pa.types.is_timestamp(type_) and type_.unit == "ns":
        return pa.timestamp("us", type_.tz)
    if pa.types.is_duration(type_) and type_.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if pa.types.is_time64(type_) else type_


def _mapped(type_: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return the type with `leaf` applied to the types inside it."""
    types = pa.types

    def inner(field: pa.Field) -> pa.Field:
        return field.with_type(_mapped(field.type, leaf))

    if types.is_struct(type_):
        return pa.struct([inner(field) for field in type_])
    if types.is_map(type_):
        return pa.map_(inner(type_.key_field), inner(type_.item_field), type_.keys_sorted)
    if types.is_list(type_):
        return pa.list_(inner(type_.value_field))
    if types.is_large_list(type_):
        return pa.large_list(inner(type_.value_field))
    if types.is_fixed_size_list(type_):
        return pa.list_(inner(type_.value_field), type_.list_size)
    if types.is_dictionary(type_):
        return pa.dictionary(type_.index_type, _mapped(type_.value_type, leaf), type_.ordered)
    return leaf(type_)


def _converter(type_: pa.DataType) -> Convert | None:
    """Return what makes JSON of a value of this type that is not null; None if the value is JSON already."""
    types = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        inner = _converter(type_.storage_type)
        return _scalar if inner is None else inner
    if types.is_dictionary(type_) or types.is_run_end_encoded(type_):
        return _converter(type_.value_type)
    if types.is_struct(type_):
        return _struct_converter(type_)
    if types.is_map(type_):
        return _map_converter(type_)
    if types.is_nested(type_):
        inner = _converter(type_.value_type)
        return None if inner is None else _list_converter(inner)
    plain = (types.is_string, types.is_large_string, types.is_string_view, types.is_boolean, types.is_integer)
    if any(is_plain(type_) for is_plain in plain) or types.is_float32(type_) or types.is_float64(type_):
        return None
    return _scalar


def _struct_converter(type_: pa.StructType) -> Convert:
    fields = [(field.name, _converter(field.type)) for field in type_]

    def convert(value: dict[str, Any]) -> dict[str, Any]:
        return {
            name: found if inner is None else inner(found)
            for name, inner in fields
            if (found := value[name]) is not None
        }

    return convert


def _list_converter(inner: Convert) -> Convert:
    return lambda value: [None if item is None else inner(item) for item in value]


def _map_converter(type_: pa.MapType) -> Convert:
    key_of, item_of = _converter(type_.key_type), _converter(type_.item_type)

    def convert(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in pairs:
            name = str(key if key_of is None else key_of(key))
            if name in found:
                raise RowError(Reason.DUPLICATE_KEY, f"the key {name!r} occurs more than once in one map")
            found[name] = item if item is None or item_of is None else item_of(item)
        return found

    return convert


def _scalar(value: Any) -> Any:
    """Return a single value as JSON: text, unless it is JSON already."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            what = f"{len(value)} bytes of binary data that are not UTF-8 text; leave the column out"
            raise RowError(Reason.NOT_UTF8, what) from None
    return str(value)


# Workbooks


def _sheet(path: str, data: bytes) -> list[list[str | bool]]:
    """Return the rows of the first sheet that hold something; the first of them is the header.

    The columns after the last one that holds anything are left out: formatting alone makes such columns.
    """
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        cells = book.get_sheet_by_index(0).to_python()
    except python_calamine.CalamineError as error:
        hint = "Open it in a spreadsheet program and save it again, or save it as CSV (UTF-8)."
        raise InputError(path, f"cannot be read as a workbook: {error}", hint) from error
    texts = [[_cell_text(cell) for cell in row] for row in cells]
    rows = [row for row in texts if any(cell != "" for cell in row)]
    width = max((number for row in rows for number, cell in enumerate(row, 1) if cell != ""), default=0)
    return [row[:width] for row in rows]


def _cut_sheet(source: SourceFile, sha256: str, data: bytes) -> Iterator[Unit]:
    rows = _sheet(str(source.path), data)
    if not rows:
        return
    header = tuple(str(name).upper() if isinstance(name, bool) else name for name in rows[0])
    check_header(str(source.path), header)
    if len(rows) > 1:
        yield _unit(source, sha256, 0, data if source.compression else None, header)


def _read_sheet(unit: Unit) -> Iterator[tuple[dict[str, Any], None]]:
    """Yield (value, no reject) per row under the header."""
    data = unit.data
    if data is None:
        with open_file(unit.path) as file:
            data = file.read()
        if _digest(unit.kind, hashlib.sha256(data).hexdigest(), 0) != unit.digest:
            raise changed(unit.path)
    for row in _sheet(unit.path, data)[1:]:
        yield dict(zip(unit.header, row, strict=True)), None


def _cell_text(cell: Any) -> str | bool:
    """Return a cell as a person reads it; spreadsheets show 15 digits."""
    if isinstance(cell, bool | str):
        return cell
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() else f"{cell:.15g}"
    return cell.isoformat() if isinstance(cell, dt.date | dt.time) else str(cell)
