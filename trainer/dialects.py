"""Training configurations of other tools, unchanged: their keys become ours by the tables in registry/train_configs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import registry
from schemas import schema
from schemas.errors import UsageError, nearest

OWN = "own"


def translate(raw: dict[str, Any], where: str) -> tuple[str, dict[str, Any], list[str]]:
    """Return (dialect, values in our names, remarks) of a configuration file's contents.

    A key that the tool's table does not know is a UsageError with the nearest one, as is a value that cannot be had.
    """
    name = _recognise(raw)
    if name == OWN:
        return OWN, raw, []
    table = registry.train_config(name)
    values: dict[str, Any] = {}
    for key, value in table.get("defaults", {}).items():
        _put(values, key, value)
    remarks: list[str] = []
    found = dict(_flat(raw, "", table["keys"]))
    for key, value in found.items():
        pointer = f"{where}#/{key.replace('.', '/')}"
        entry = table["keys"].get(key)
        if entry is None:
            last = key.rpartition(".")[2]
            near = {known.rpartition(".")[2]: known for known in table["keys"]}
            hint = nearest(last, near)
            raise UsageError(pointer, f"a key that {name} files do not have, or that means nothing here", hint)
        if "to" in entry:
            _put(values, entry["to"], _value(entry, value, found, pointer))
        elif "only" in entry and value not in entry["only"]:
            allowed = ", ".join(str(one) for one in entry["only"] if one is not None)
            raise UsageError(pointer, f"{value!r} cannot be had: {entry['why']}", f"Possible: {allowed}.")
        elif "remark" in entry:
            remarks.append(f"{key} has no effect: {entry['remark']}")
    return name, values, remarks


def _recognise(raw: dict[str, Any]) -> str:
    """Return whose file it is: another tool's if it has a top-level key of theirs that is none of ours."""
    ours = schema("train_config")["properties"]
    for name in registry.train_config_names():
        marks = registry.train_config(name).get("recognised_by", ())
        if any(mark in raw and mark not in ours for mark in marks):
            return name
    return OWN


def _flat(raw: dict[str, Any], prefix: str, known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values; a mapping that is itself a known key is a value."""
    for key, value in raw.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            yield from _flat(value, f"{name}.", known)
        elif value is not None or name not in known or None in known[name].get("only", ()):
            yield name, value


def _value(entry: dict[str, Any], value: Any, found: dict[str, Any], pointer: str) -> Any:
    """Return a value as ours."""
    if "sum_of" in entry:
        return sum(found.get(key, 0) for key in entry["sum_of"])
    if value in entry.get("null", ()):
        return None
    if "values" in entry:
        known = {str(key): ours for key, ours in entry["values"].items()}
        if str(value) not in known:
            raise UsageError(pointer, f"{value!r} cannot be had here", nearest(str(value), known))
        return known[str(value)]
    if "split" in entry and isinstance(value, str):
        return [part.strip() for part in value.split(entry["split"]) if part.strip()]
    return value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; None leaves it unset."""
    first, _, inner = key.partition(".")
    if inner and value is not None:
        values[first] = {**values.get(first, {}), inner: value}
    elif value is None:
        values.pop(first, None) if not inner else values.get(first, {}).pop(inner, None)
    else:
        values[first] = value
