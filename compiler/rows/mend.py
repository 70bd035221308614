"""Repairs of rows as they are in the file, before validation; each has a name and is made only on request.

A repair is pure: if it changes nothing it returns the very row it was given, else a new row that shares the unchanged
parts. It uses the user's own names of columns and tags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from compiler.options import Names
from compiler.read.literal import parse_text
from compiler.read.value import parse

RowRepair = Callable[[Any, Names, Names], Any]
"""(row, columns, tags) -> the repaired row, or the same object."""

LISTS = ("messages", "history", "instances", "steps", "output", "lines", "actions", "texts", "widths", "heights")
OBJECTS = ("answer", "agent", "request")
"""The columns that are lists or objects in every format that has them; a test compares them with the schemas."""

_RESULT = "function"
"""The `function_tag` of openai, where it means a tool's result; in sharegpt it is the role whose text is a call."""


def unwrap(value: Any, columns: Names, tags: Names) -> Any:  # noqa: ARG001
    """Unwrap a row from a list that contains nothing else."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) else value


def literals(value: Any, columns: Names, tags: Names) -> Any:  # noqa: ARG001
    """Parse a list or object that a row holds as text (JSON, or as Python prints it) where text is not allowed."""
    if not isinstance(value, dict):
        return value
    for names, kind in ((LISTS, list), (OBJECTS, dict)):
        for column in (columns.get(name) for name in names):
            if column is not None and column in value:
                value = _with(value, column, _read(value[column], kind))
    messages = columns.get("messages")
    return value if messages is None else _each(value, messages, lambda message: _read(message, dict))


def arguments(value: Any, columns: Names, tags: Names) -> Any:
    """Unquote the arguments of a tool call that were written as JSON text once too often."""
    messages, role_tag, content_tag = columns.get("messages"), tags.get("role_tag"), tags.get("content_tag")
    if not isinstance(value, dict) or messages is None or role_tag is None or content_tag is None:
        return value
    calls_as_text = tags.get("function_tag") not in (None, _RESULT)

    def mended(message: Any) -> Any:
        role = message.get(role_tag) if isinstance(message, dict) else None
        if role is not None and calls_as_text and role == tags["function_tag"]:
            return _with(message, content_tag, _mend_text(message.get(content_tag)))
        if role is not None and not calls_as_text and role == tags.get("assistant_tag"):
            message = _each(message, "tool_calls", lambda call: _nested(call, "function"))
            return _nested(message, "function_call")
        return message

    return _each(value, messages, mended)


def content(value: Any, columns: Names, tags: Names) -> Any:
    """Give the content "" to an assistant message that calls tools and has none."""
    messages, role_tag, content_tag = columns.get("messages"), tags.get("role_tag"), tags.get("content_tag")
    # Only openai reads `tool_calls`: a sharegpt message given a content would pass, and its calls would be lost.
    openai = tags.get("function_tag") == _RESULT
    if not isinstance(value, dict) or messages is None or role_tag is None or content_tag is None or not openai:
        return value

    def mended(message: Any) -> Any:
        if not isinstance(message, dict) or message.get(role_tag) != tags.get("assistant_tag"):
            return message
        calls = message.get("tool_calls") or message.get("function_call")
        return message | {content_tag: ""} if calls and message.get(content_tag) is None else message

    return _each(value, messages, mended)


ROW_REPAIRS: dict[str, RowRepair] = {
    "unwrap": unwrap,
    "literals": literals,
    "arguments": arguments,
    "content": content,
}
"""In the order in which they are applied."""


def mend(value: Any, repairs: Iterable[str], columns: Names, tags: Names) -> tuple[Any, list[str]]:
    """The row after those of the repairs that are in ROW_REPAIRS, and the names of those that changed it."""
    made = []
    for name, repair in ROW_REPAIRS.items():
        if name in repairs and (mended := repair(value, columns, tags)) is not value:
            value = mended
            made.append(name)
    return value, made


def _with(source: dict[str, Any], key: str, new: Any) -> dict[str, Any]:
    """The object with another value under a key; the same object if it already has that value."""
    return source if source.get(key) is new else source | {key: new}


def _each(source: dict[str, Any], key: str, mend: Callable[[Any], Any]) -> dict[str, Any]:
    """The object with every item of one of its lists mended; the same object if none changed."""
    items = source.get(key)
    if not isinstance(items, list):
        return source
    mended = [mend(item) for item in items]
    return source if all(map(_same, items, mended)) else source | {key: mended}


def _same(before: Any, after: Any) -> bool:
    return before is after


def _read(value: Any, kind: type) -> Any:
    """The list or object that a text spells; anything else unchanged."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = parse_text(value)
    except ValueError:
        return value  # not repaired: the row is rejected as it is
    return found if isinstance(found, kind) else value


def _nested(source: Any, key: str) -> Any:
    """The object with the arguments mended in the call that is its member `key`."""
    if not isinstance(source, dict) or not isinstance(source.get(key), dict):
        return source
    return _with(source, key, _mend_call(source[key]))


def _mend_call(call: Any) -> Any:
    if not isinstance(call, dict) or not isinstance(call.get("arguments"), str):
        return call
    return _with(call, "arguments", _unquoted(call["arguments"]))


def _mend_text(text: Any) -> Any:
    """The JSON text of a call, or of a list of calls, with the arguments mended."""
    if not isinstance(text, str):
        return text
    calls, reject = parse(text.strip().encode(), "text")
    if reject is not None:
        return text
    many = calls if isinstance(calls, list) else [calls]
    mended = [_mend_call(call) for call in many]
    if all(map(_same, many, mended)):
        return text
    return json.dumps(mended if isinstance(calls, list) else mended[0], ensure_ascii=False)


def _unquoted(text: str) -> str:
    """The innermost JSON text of an object inside nested JSON strings; `text` itself if there is none."""
    inner = text
    while True:
        found, reject = parse(inner.strip().encode(), "text")
        if reject is None and isinstance(found, dict):
            return inner
        if reject is not None or not isinstance(found, str):
            return text
        inner = found
