"""Training configurations of other tools, unmodified: the tables in registry/train_configs map their keys to ours.

The table `own` is for our own files: what people know from Transformers and PEFT beside our own keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import registry
from schemas import schema
from schemas.errors import UsageError, nearest

OWN = "own"

Entry = Mapping[str, Any]
"""What a table says of a key."""


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
    found: dict[str, Any]
    """What the file says in the tool's own names, by dotted key."""
    rule: str | None
    """The name of the rule for its other defaults (trainer/config/derived.py)."""


def translate(raw: dict[str, Any], where: str, tools: Sequence[str] = ()) -> Translated:
    """Translate a configuration file into our names. It is for one of `tools`, or for any; its keys tell for which.

    One UsageError names all keys that are unknown or have a value without equivalent here, each with its reason.
    """
    name = recognise(raw, tools)
    table = registry.train_config(name)
    keys = table["keys"]
    values, others = _split(raw, keys) if name == OWN else ({}, raw)
    found = dict(flat(others, keys))
    made: dict[str, dict[str, Any]] = {}
    remarks: list[str] = []
    refused: list[tuple[str, str, str]] = []
    used = {other for key in found for other in (entry_of(keys, key) or {}).get("with", ())}
    for key, value in found.items():
        entry = entry_of(keys, key)
        if entry is None:
            what = f"it is not known here as a key of {table['title']}"
            refused.append((key, what, _near(key, keys)))
        elif problem := _problem(entry, value):
            refused.append((key, problem, _possible(entry)))
        else:
            made[key] = _settings(entry, value, found)
            if "remark" in entry and key not in used and value not in entry.get("quiet", ()):
                remarks.append(_remark(key, entry))
    if refused:
        raise _refusal(where, refused)
    for target, one in (pair for key in _in_order(made, keys) for pair in made[key].items()):
        if one is not None:
            put(values, target, one)
    remarks += [entry["absent"] for key, entry in keys.items() if "absent" in entry and key not in found]
    defaults = table["defaults"] if name != OWN else {}
    return Translated(name, values, defaults, remarks, found, table.get("derived"))


def _split(raw: dict[str, Any], keys: Mapping[str, Entry]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(our own keys and those that nobody knows, which the schema refuses; the keys that the table tells of)."""
    ours: dict[str, Any] = {}
    others: dict[str, Any] = {}
    known = schema("train_config")["properties"]
    for key, value in raw.items():
        inner = known.get(key, {}).get("properties")
        if inner is not None and isinstance(value, dict):
            told = {part for part in value if part not in inner and entry_of(keys, f"{key}.{part}") is not None}
            ours[key] = {part: one for part, one in value.items() if part not in told}
            others |= {f"{key}.{part}": value[part] for part in told}
        elif key not in known and all(entry_of(keys, one) is not None for one, _ in flat({key: value}, keys)):
            others[key] = value
        else:
            ours[key] = value
    return ours, others


def recognise(raw: dict[str, Any], tools: Sequence[str]) -> str:
    """The tool a file is for: the one of whose marks it has most; our own where it has none, or as many of ours."""
    names = tools or sorted(registry.train_config_names(), key=lambda name: name != OWN)
    marks = {name: registry.train_config(name).get("recognised_by", ()) for name in names}
    return max(names, key=lambda name: sum(mark in raw for mark in marks[name]))


def entry_of(keys: Mapping[str, Entry], key: str) -> Entry | None:
    """What a table says of a key: by its name, else by the first pattern that it matches."""
    if key in keys:
        return keys[key]
    return next((entry for name, entry in keys.items() if "*" in name and fnmatchcase(key, name)), None)


def _in_order(some: Mapping[str, Any], keys: Mapping[str, Entry]) -> list[str]:
    """Keys in the order of their table: of two that set the same, the later one in the table wins."""
    places = {key: place for place, key in enumerate(keys)}
    return sorted(some, key=lambda key: places.get(key, len(places)))


def flat(raw: dict[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values; a mapping that is itself a known key is a value."""
    for key, value in raw.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            yield from flat(value, known, f"{name}.")
        elif value is not None or name not in known or None in known[name].get("only", ()):
            yield name, value


def _problem(entry: Entry, value: Any) -> str | None:
    """Why a value of a known key is refused; None if it is not."""
    refused = entry.get("refused", {})
    for one in value if isinstance(value, list) else [value]:
        if _text(one) in refused:
            return f"{_shown(one)} is not supported: {refused[_text(one)]}"
    if "only" in entry and value not in entry["only"]:
        return f"{_shown(value)} is not supported: {entry['why']}"
    for kind in ("values", "settings"):
        if kind in entry and _text(value) not in entry[kind] and not entry.get("others"):
            return f"{_shown(value)} is not supported here"
    if not {"to", "settings", "only", "remark"} & set(entry):
        return str(entry["why"])
    return None


def _possible(entry: Entry) -> str:
    allowed = [_text(one) for one in entry.get("only", ()) if one not in (None, "", [], {})]
    allowed += [name for kind in ("values", "settings") for name in entry.get(kind, ())]
    if entry.get("others") or set(allowed) <= {"false", "0"}:
        return "Leave it out."
    return f"Possible: {', '.join(allowed)}."


def _refusal(where: str, refused: list[tuple[str, str, str]]) -> UsageError:
    if len(refused) == 1:
        key, what, hint = refused[0]
        return UsageError(f"{where}#/{key.replace('.', '/')}", what, hint)
    listed = "\n  ".join(f"#/{key.replace('.', '/')}: {what}{hint and f' ({hint})'}" for key, what, hint in refused)
    return UsageError(
        where, f"{len(refused)} of its keys cannot be used\n  {listed}", "Change them, or leave them out."
    )


def _near(key: str, known: Mapping[str, Any]) -> str:
    names = {one.rpartition(".")[2]: one for one in known if "*" not in one}
    return nearest(key.rpartition(".")[2], names).partition("known:")[0].strip() or "Leave it out."


def _settings(entry: Entry, value: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a key sets, by our dotted keys."""
    if "settings" in entry:
        return dict(entry["settings"][_text(value)])
    if "to" not in entry:
        return {}
    made = _value(entry, value, found)
    return {entry["to"]: made} | (entry.get("sets", {}) if made is not None else {})


def _value(entry: Entry, value: Any, found: Mapping[str, Any]) -> Any:
    """The value in our terms; None if it says the same as no value."""
    if "sum_of" in entry:
        return sum(found.get(key, 0) for key in entry["sum_of"])
    if value in entry.get("null", ()):
        return None
    if _text(value) in entry.get("values", {}):
        value = entry["values"][_text(value)]
    if "with" in entry and isinstance(value, str):
        value = value.format_map(entry["with"] | found)
    if "split" in entry and isinstance(value, str):
        value = [part.strip() for part in value.split(entry["split"]) if part.strip()]
    if "each" in entry:
        parts = [part for one in (value if isinstance(value, list) else [value]) for part in str(one).split(",")]
        mapped = [entry["each"].get(part, part) for part in parts]
        value = [name for one in mapped for name in (one if isinstance(one, list) else [one])]
    if "prefixes" in entry:
        value = [f"^{re.escape(str(one))}" for one in (value if isinstance(value, list) else [value])]
    return value


def _remark(key: str, entry: Entry) -> str:
    return f"{key}: {entry['remark']}" if "to" in entry else f"{key} has no effect: {entry['remark']}"


def _text(value: Any) -> str:
    """A value as the tables write it: true, false, null, texts as they are."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else _text(value)


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
