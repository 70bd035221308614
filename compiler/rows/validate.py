"""Rows against the JSON Schema of their format, with the user's own names of columns and roles.

The schema is adapted to the row instead of the row to the schema, so that every pointer in a reject points into the
row as it is in the file.
"""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import jsonschema_rs

from compiler.formats import Format
from compiler.options import Names
from compiler.read.value import json_type
from schemas.errors import Reason, Reject, UsageError


class Validator:
    """Checks rows of one format under given column and tag names."""

    def __init__(self, format_: Format, columns: Names, tags: Names, where: str, kind: str = "sft") -> None:
        self.schema = specialise(_of_kind(format_.schema, kind), columns, tags, where)
        self._validator = jsonschema_rs.validator_for(self.schema)

    def check(self, row: Any) -> Reject | None:
        """The reject that names the first thing wrong with a row; None for a valid row."""
        if self._validator.is_valid(row):
            return None
        errors = sorted(self._validator.iter_errors(row), key=lambda e: [str(p).zfill(9) for p in e.instance_path])
        return _reject(_plainest(errors), row, self.schema)


def _plainest(errors: list[Any]) -> Any:
    """The first of the errors, in the order of their places; of a choice that fits nowhere, a wrong type below it."""
    first = errors[0]
    if not hasattr(first.kind, "context"):  # neither anyOf nor oneOf
        return first
    path = list(first.instance_path)
    below = (e for e in errors if len(e.instance_path) > len(path) and list(e.instance_path)[: len(path)] == path)
    return next((error for error in below if hasattr(error.kind, "types")), first)


def _of_kind(node: Any, kind: str) -> Any:
    """The schema for rows of one kind: `x-kinds` names the kinds of a property, `x-required` what a kind needs.

    At every depth: properties of list items may belong to one kind too.
    """
    if isinstance(node, list):
        return [_of_kind(item, kind) for item in node if not _is_for_other(item, kind)]
    if not isinstance(node, dict):
        return node
    new = {key: _of_kind(value, kind) for key, value in node.items() if not _is_for_other(value, kind)}
    needed = new.pop("x-required", {}).get(kind, [])
    return new | ({"required": [*new.get("required", []), *needed]} if needed else {})


def _is_for_other(node: Any, kind: str) -> bool:
    return isinstance(node, dict) and kind not in node.get("x-kinds", [kind])


def specialise(node: Any, columns: Names, tags: Names, where: str) -> Any:
    """The schema with the user's names in place of the marks `x-column`, `x-tag`, `x-role` and `x-roles`.

    A name that is None removes its property; removing a required one is a UsageError.
    """
    if isinstance(node, list):
        return [specialise(item, columns, tags, where) for item in node]
    if not isinstance(node, dict):
        return node
    new = {
        key: specialise(value, columns, tags, where)
        for key, value in node.items()
        if key not in ("properties", "examples")
    }
    if "x-roles" in node:
        names = [role[1:] if role.startswith("=") else tags.get(role) for role in node["x-roles"]]
        new["enum"] = list(dict.fromkeys(name for name in names if name is not None))
    if "x-role" in node:
        new["const"] = tags.get(node["x-role"])
    properties: dict[str, Any] = {}
    needed = node.get("required", ())
    required = list(needed)
    for name, value in node.get("properties", {}).items():
        actual = _actual(name, value, columns, tags)
        if actual is not None:
            properties[actual] = specialise(value, columns, tags, where)
        elif name in needed:
            kind, key = ("tags", value["x-tag"]) if "x-tag" in value else ("columns", value["x-column"])
            raise UsageError(where, f"{kind!r} is given but does not name {key!r}", f'Add "{key}": "..." to {kind}.')
        if name in needed and actual is not None:
            required[needed.index(name)] = actual
    return new | ({"properties": properties} if properties else {}) | ({"required": required} if required else {})


def _actual(name: str, value: Any, columns: Names, tags: Names) -> str | None:
    if isinstance(value, dict) and "x-column" in value:
        return columns.get(value["x-column"])
    if isinstance(value, dict) and "x-tag" in value:
        return tags.get(value["x-tag"])
    return name


def _reject(error: Any, row: Any, root: Any) -> Reject:
    pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in error.instance_path)
    found = row
    for part in error.instance_path:
        found = found[part]
    keyword = str(error.schema_path[-1]) if error.schema_path else ""
    message = str(error.message)
    kind = error.kind
    if hasattr(kind, "types"):
        message = f"expected {' or '.join(kind.types)}, found {json_type(found)}"
        if found is row and isinstance(row, list) and len(row) == 1 and isinstance(row[0], dict):
            message += " of one object; --repair unwrap takes it out"
    elif hasattr(kind, "property") and isinstance(found, dict):
        keys = ", ".join(map(repr, list(found)[:8])) or "none"
        message = f"expected the key {str(kind.property)!r}, found the keys {keys}"
    elif hasattr(kind, "options"):
        options = (option if isinstance(option, str) else json.dumps(option) for option in kind.options)
        wanted = _expected(root, error.schema_path) or f"one of {', '.join(options)}"
        message = f"expected {wanted}, found {found!r}"
    elif keyword in _LIMITS:
        message = (
            f"expected {_LIMITS[keyword].format(kind.limit, '' if kind.limit == 1 else 's')}, found {_size(found)}"
        )
    elif keyword == "pattern" and isinstance(found, str):
        message = f"expected {_expected(root, error.schema_path)}, found {found[:60]!r}"
    elif (expected := _expected(root, error.schema_path)) and isinstance(found, dict):
        shown = [f"{key!r}{' (null)' if value is None else ''}" for key, value in islice(found.items(), 8)]
        message = f"expected {expected}, found the keys {', '.join(shown) or 'none'}"
    elif expected and isinstance(found, list):
        message = f"expected {expected}, found none among {len(found)}"
    return Reject(Reason.SCHEMA, message[:500], pointer)


_LIMITS = {
    "minItems": "at least {} item{}",
    "maxItems": "at most {} item{}",
    "minimum": "at least {}",
    "minLength": "text that is not empty",
}


def _size(found: Any) -> str:
    return str(len(found)) if isinstance(found, list) else repr(found)


def _expected(root: Any, path: list[str | int]) -> str | None:
    """The description of what was expected (`x-expected`), for parts of a schema that no keyword describes well."""
    node = root
    for part in path[:-1]:
        if part == "$ref":
            target = node["$ref"].removeprefix("#/").split("/")
            node = root
            for name in target:
                node = node[name]
        else:
            node = node[part]
    return node.get("x-expected") if isinstance(node, dict) else None
