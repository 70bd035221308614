"""The cells of a table as JSON values.

Tables cannot say "this key is absent", only null. So a null column of a row, and a null member of a struct
at any depth, is a key that the row does not have. Elements of lists and values of maps may be null: they
stay. Text, numbers and booleans stay what they are (NaN is a float, and left to the schema to reject).
Everything else becomes text: `str()` of dates, times, durations, decimals, UUIDs (to the microsecond: Python
has no finer times); binary is decoded as UTF-8, and is a reject where it is not, because `str(b"...")` would
be trained on as if somebody had written it.

A struct {bytes, path} whose bytes are binary is a file, as `datasets` writes images: it becomes an `Embedded`. That
holds for a column, and inside it under the names where formats have images; elsewhere it is a struct like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from compiler.conversation import Embedded
from compiler.read.value import escape
from schemas.errors import Reason, Reject, RowError

Convert = Callable[[Any], Any]
_IMAGE_NAMES = frozenset({"image", "images", "content"})
"""The names that lead from a column to the images inside its values: messages/content/image, steps/image."""


def values_of(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], Reject | None]]:
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
    """The values of a column; a cell that has none is a Reject."""
    try:
        return _converted(column)
    except (ValueError, OverflowError, KeyError, pa.ArrowException, RowError):
        return [_cell(name, column.slice(number, 1)) for number in range(len(column))]


def _cell(name: str, column: pa.Array) -> Any:
    """The one value of a column, or the reject saying why there is none."""
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
    """The values of a column as JSON values."""
    type_ = mapped(column.type, _without_nanoseconds)
    if type_ != column.type:
        column = column.cast(type_, safe=False)
    values: list[Any] = column.to_pylist()
    convert = _converter(type_, files=True)
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _without_nanoseconds(type_: pa.DataType) -> pa.DataType:
    """The type of a time to the microsecond, or the type itself.

    pyarrow gives nanoseconds as pandas objects if pandas is installed and fails otherwise; a row must not
    depend on that.
    """
    if pa.types.is_timestamp(type_) and type_.unit == "ns":
        return pa.timestamp("us", type_.tz)
    if pa.types.is_duration(type_) and type_.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if pa.types.is_time64(type_) else type_


def mapped(type_: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with `leaf` applied to the types inside it."""
    types = pa.types

    def inner(field: pa.Field) -> pa.Field:
        return field.with_type(mapped(field.type, leaf))

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
        return pa.dictionary(type_.index_type, mapped(type_.value_type, leaf), type_.ordered)
    return leaf(type_)


def _converter(type_: pa.DataType, *, files: bool = False) -> Convert | None:
    """The function that converts a value of this type (not null) to JSON; None if it already is JSON.

    `files` says whether a struct {bytes, path} is a file here.
    """
    types = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        inner = _converter(type_.storage_type)
        return _scalar if inner is None else inner
    if types.is_dictionary(type_) or types.is_run_end_encoded(type_):
        return _converter(type_.value_type)
    if types.is_struct(type_):
        return _file if files and _is_file(type_) else _struct_converter(type_, files=files)
    if types.is_map(type_):
        return _map_converter(type_)
    if types.is_nested(type_):
        inner = _converter(type_.value_type, files=files)
        return None if inner is None else _list_converter(inner)
    plain = (types.is_string, types.is_large_string, types.is_string_view, types.is_boolean, types.is_integer)
    if any(is_plain(type_) for is_plain in plain) or types.is_float32(type_) or types.is_float64(type_):
        return None
    return _scalar


def _is_file(type_: pa.StructType) -> bool:
    """Whether a struct is {bytes, path}, or {bytes} alone, with binary bytes."""
    types = {field.name: field.type for field in type_}
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return "bytes" in types and types.keys() <= {"bytes", "path"} and any(is_(types["bytes"]) for is_ in binary)


def _file(value: dict[str, Any]) -> dict[str, Any]:
    """The file; where there are no bytes, what there is."""
    if value["bytes"] is None:
        return {name: found for name, found in value.items() if found is not None}
    return Embedded(value["bytes"], value.get("path"))


def _struct_converter(type_: pa.StructType, *, files: bool) -> Convert:
    fields = [(field.name, _converter(field.type, files=files and field.name in _IMAGE_NAMES)) for field in type_]

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
    """A single value as JSON: text, unless it is JSON already."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            what = f"{len(value)} bytes of binary data that are not UTF-8 text; leave the column out"
            raise RowError(Reason.NOT_UTF8, what) from None
    return str(value)
