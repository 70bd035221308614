"""Lists and objects as Python prints them, parsed as data: `{'a': None}` equals `{"a": null}` in JSON."""

from __future__ import annotations

import ast
import math
import re
import warnings
from contextlib import suppress
from typing import Any

from compiler.read.value import parse

MAX_LITERAL = 1 << 20
"""Characters of a Python literal; the syntax tree made of it takes some hundred times as much memory.

Nesting needs no limit here: Python's tokenizer stops at 200 brackets, fewer than `compiler.read.MAX_DEPTH`.
"""


_QUOTED = re.compile(r"\s*[\[{(]\s*'")
"""The beginning of a text that cannot be JSON and that Python probably printed."""
_NOT_AS_JSON = re.compile(r""""|\\|True|true|False|false|None|null|-(?<!\w-)0""")
"""What may mean something else, or nothing, in a Python literal whose quotes are replaced by those of JSON: -0, but not
the 2025-04 of a date. Each way begins with a character of its own: so places that none begins at are passed quickly."""


def parse_text(text: str) -> Any:
    """The value of a text that is JSON or a Python literal; ValueError says why it is neither."""
    if "'" in text and _QUOTED.match(text):
        if not _NOT_AS_JSON.search(text):
            # Every single quote begins or ends a text then, so this is JSON or an error, and several times as fast.
            value, reject = parse(text.strip().replace("'", '"').encode(), "text")
            if reject is None:
                return value
        with suppress(ValueError):
            return parse_literal(text)
    value, reject = parse(text.strip().encode(), "text")
    if reject is None:
        return value
    try:
        return parse_literal(text)
    except ValueError as error:
        raise ValueError(f"neither JSON nor a Python literal: {reject.message}") from error


def parse_literal(text: str) -> Any:
    """The JSON value that a Python literal spells; ValueError where there is none.

    Nothing is executed: the text is parsed, and only numbers, strings, True, False, None, lists, tuples (read as lists)
    and dicts with string keys are accepted. It is as strict as JSON of a row: no repeated key, no infinite number, no
    lone surrogate.
    """
    if len(text) > MAX_LITERAL:
        raise ValueError(f"{len(text)} characters are more than {MAX_LITERAL}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" is a warning in Python; here it is two characters
            tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(error.msg) from error
    except (MemoryError, RecursionError) as error:  # raised for expressions too deep for Python's parser
        raise ValueError("too complex") from error
    return _value(tree.body)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return _scalar(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number = _scalar(node.operand.value)
        if type(number) in (int, float):
            return -number
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return _object(node)
    raise ValueError(f"a {type(node).__name__} is not a value")


def _object(node: ast.Dict) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        name = None if key is None else _value(key)
        if not isinstance(name, str):
            raise ValueError("a key that is not a string")  # noqa: TRY004 - every refusal is a ValueError
        if name in found:
            raise ValueError(f"the key {name!r} twice in one object")
        found[name] = _value(value)
    return found


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("half a character") from error
        return value
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and not math.isinf(value)):
        return value
    raise ValueError(f"{type(value).__name__} {str(value)[:40]} is not JSON")
