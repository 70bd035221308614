"""Rows as they would be without their container: lists that a table holds as JSON text, and nulls that unions add.

Both are read as what they hold. Nothing here changes a row that is a list of objects already and fits its schema.
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Embedded
from compiler.formats import Format
from compiler.options import Names
from compiler.read.value import parse
from compiler.rows.mend import LISTS, OBJECTS
from compiler.rows.validate import Validator
from schemas.errors import Reject

_VALUES = frozenset({"arguments", "input", "action", "tools", "functions"})
"""Keys of messages and blocks whose value is free: a null in it may mean something."""


def held_columns(format_: Format, columns: Names) -> tuple[str, ...]:
    """The keys of a row that hold its messages, or other lists and objects that are never plain text."""
    names = {name: None for name in (format_.turns, *LISTS, *OBJECTS) if name is not None}
    return tuple(column for name in names if (column := columns.get(name)) is not None)


def unpack(row: Any, keys: tuple[str, ...]) -> Any:
    """The row with the lists and objects under `keys` that it holds as JSON text; the same row where it holds none.

    Of a list, every item must be an object: then it is no text that somebody wrote.
    """
    if not isinstance(row, dict):
        return row
    for key in keys:
        if isinstance(text := row.get(key), str) and (found := _held(text)) is not None:
            row = row | {key: found}
    return row


def check(row: Any, keys: tuple[str, ...], validator: Validator) -> tuple[Any, Reject | None]:
    """The row, without the nulls in its messages if only they are wrong, and what is wrong with it."""
    reject = validator.check(row)
    return (row, None) if reject is None else check_without_nulls(row, keys, validator, reject)


def check_without_nulls(
    row: Any, keys: tuple[str, ...], validator: Validator, reject: Reject
) -> tuple[Any, Reject | None]:
    """A rejected row without the nulls in its messages and None, if it is valid then; else the row and its reject."""
    if not isinstance(row, dict):
        return row, reject
    found = {key: _without_nulls(row[key]) for key in keys if isinstance(row.get(key), list)}
    bare = row | found
    return (row, reject) if bare == row or validator.check(bare) is not None else (bare, None)


def _held(text: str) -> Any:
    """The list of objects, or the object, that a text holds; None if it holds neither."""
    text = text.strip()
    if text[:1] not in ("[", "{"):
        return None
    value, reject = parse(text.encode(), "text")
    if reject is not None:
        return None
    is_list = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    return value if is_list or isinstance(value, dict) else None


def _without_nulls(value: Any) -> Any:
    """The value without the keys that are null, at every depth but in free values."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if not isinstance(value, dict) or isinstance(value, Embedded):
        return value
    return {
        key: inner if key in _VALUES else _without_nulls(inner) for key, inner in value.items() if inner is not None
    }
