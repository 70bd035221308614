"""What may pass between rooms: the contract of compiler and trainer. The lowest floor; it imports nothing of ours.

*.schema.json  JSON Schemas of source formats, cards, configurations and the manifest
arrow.py       the columns of a shard
manifest.py    the manifest of a set
digests.py     what identifies a set
checkpoint.py  what is in a checkpoint, and whether it is whole
reader.py      a set opened by its manifest, every batch checked before use
packs.py       the examples in a row of a packed set
places.py      places in source files, as messages print them
order.py       seeded orders, the same on every machine
steps.py       which rows a step of training has: a function of rows, seed, epoch and step
windows.py     the same where rows are shuffled within windows of some shards
stores.py      object stores
kept.py        their small files, in memory while a run lasts
disk.py        durable writes, locks, digests of files, names that files give
lease.py       locks for file systems that have none
memory.py      when Python looks for garbage, and what goes back to the system
limits.py      a limit of time and memory for templates and patterns
checks.py      what a batch must be before it is used
own.py         folders with the mark of the command that made them
yaml.py        YAML 1.2: `5e-4` is a number, `no` is a word
printed.py     what --json prints
errors.py      errors that a user can fix, and reasons of rejects
hub.py         repositories of the hubs
install.py     the command that installs an extra
"""
# finetune-data-compiler: by this name cli.py knows its own packages.

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from schemas.errors import UsageError, nearest

ROOT = Path(__file__).parent


@cache
def schema(name: str) -> dict[str, Any]:
    """The JSON Schema `schemas/NAME.schema.json`, with the `$defs` of the one that it names in `x-defs-of`.

    It is shared: do not change it.
    """
    loaded: dict[str, Any] = json.loads((ROOT / f"{name}.schema.json").read_text(encoding="utf-8"))
    if other := loaded.pop("x-defs-of", None):
        loaded["$defs"] = schema(other)["$defs"] | loaded.get("$defs", {})
    return loaded


def _is_valid(value: Any, name: str) -> bool:
    """Whether a configuration certainly fits its schema."""
    import jsonschema_rs

    try:
        return jsonschema_rs.validator_for(schema(name)).is_valid(value)
    except ValueError:  # a value, or a pattern, that it does not know
        return False


def check_config(value: Any, name: str, where: str) -> None:
    """Check a configuration against its schema; UsageError with the place and the nearest valid key."""
    if _is_valid(value, name):
        return
    import jsonschema  # it says best what is wrong, and takes 50 ms to be imported

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema(name)).iter_errors(value))
    if error is None:
        return
    pointer = "/".join(["", *map(str, error.absolute_path)])
    hint = ""
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in known)
        hint = f"{unknown!r}: {nearest(unknown, known)}"
    mark = "" if "#" in where else "#"  # an entry of a larger file comes with its own pointer
    raise UsageError(f"{where}{mark}{pointer}", error.message[:300], hint)
