"""Training configurations of other tools, unmodified: the tables in registry/train_configs map their keys to ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import registry
from schemas import schema
from schemas.errors import UsageError, nearest

OWN = "own"


class Translated(NamedTuple):
    """A configuration file in our names."""

    dialect: str
    """The tool it is for."""
    values: dict[str, Any]
    """What the file says."""
    defaults: dict[str, Any]
    """The tool's own defaults that differ from ours, by dotted key."""
    remarks: list[str]
    """A line for each key that has no effect here."""


def translate(raw: dict[str, Any], where: str) -> Translated:
    """Translate a configuration file into our names.

    An unknown key is a UsageError that names the nearest one; a value without equivalent here is a UsageError too.
    """
    name = _recognise(raw)
    if name == OWN:
        return Translated(OWN, dict(raw), {}, [])
    table = registry.train_config(name)
    values: dict[str, Any] = {}
    remarks: list[str] = []
    found = dict(flat(raw, table["keys"]))
    for key, value in found.items():
        pointer = f"{where}#/{key.replace('.', '/')}"
        entry = table["keys"].get(key)
        if entry is None:
            last = key.rpartition(".")[2]
            near = {known.rpartition(".")[2]: known for known in table["keys"]}
            hint = nearest(last, near)
            raise UsageError(pointer, f"not a key of {name} files, or one without meaning here", hint)
        if "to" in entry:
            put(values, entry["to"], _value(entry, value, found, pointer))
        elif "only" in entry and value not in entry["only"]:
            allowed = ", ".join(str(one) for one in entry["only"] if one is not None)
            raise UsageError(pointer, f"{value!r} is not supported: {entry['why']}", f"Possible: {allowed}.")
        elif "remark" in entry:
            remarks.append(f"{key} has no effect: {entry['remark']}")
    return Translated(name, values, table.get("defaults", {}), remarks)


def _recognise(raw: dict[str, Any]) -> str:
    """The tool a file is for: another one if it has a top-level key of that tool which is not one of ours."""
    ours = schema("train_config")["properties"]
    for name in registry.train_config_names():
        marks = registry.train_config(name).get("recognised_by", ())
        if any(mark in raw and mark not in ours for mark in marks):
            return name
    return OWN


def flat(raw: dict[str, Any], known: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values; a mapping that is itself a known key is a value."""
    for key, value in raw.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            yield from flat(value, known, f"{name}.")
        elif value is not None or name not in known or None in known[name].get("only", ()):
            yield name, value


def _value(entry: dict[str, Any], value: Any, found: dict[str, Any], pointer: str) -> Any:
    """The value in our terms."""
    if "sum_of" in entry:
        return sum(found.get(key, 0) for key in entry["sum_of"])
    if value in entry.get("null", ()):
        return None
    if "values" in entry:
        known = {str(key): ours for key, ours in entry["values"].items()}
        if str(value) not in known:
            raise UsageError(pointer, f"{value!r} is not supported here", nearest(str(value), known))
        return known[str(value)]
    if "split" in entry and isinstance(value, str):
        return [part.strip() for part in value.split(entry["split"]) if part.strip()]
    return value


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; None unsets it."""
    first, _, inner = key.partition(".")
    target = values
    if inner:
        target = values[first] = dict(values.get(first) or {})
    if value is None:
        target.pop(inner or first, None)
    else:
        target[inner or first] = value
