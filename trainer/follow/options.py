"""What the options of a call mean to `cli compile`, by the tables in registry/train_configs."""

from __future__ import annotations

import json
import shlex
from typing import Any

import registry
from schemas.errors import UsageError
from trainer.config import dialects


def of(table: str, found: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(options for cli compile, notes on what has no effect); one UsageError names all that has no equivalent."""
    keys = registry.train_config(table)["keys"]
    options: list[str] = []
    notes: list[str] = []
    refused: list[str] = []
    for key, value in found.items():
        said = (dialects.entry_of(keys, key) or {}).get("compile", {})
        if value in (None, "", [], 0) or "mix" in said:  # 0 and false: as without it
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if "options" in said:
            joined = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            options += [word.replace("{}", joined) for word in shlex.split(said["options"])]
        elif text in said.get("values", {}):
            options += shlex.split(said["values"][text])
        elif "note" in said:
            notes.append(f"{key} has no effect: {said['note']}")
        elif said:
            known = ", ".join(said.get("values", {}))
            refused.append(f"--{key} {text}: {said.get('refused') or f'not supported; possible: {known}'}")
    if refused:
        where, _, what = refused[0].partition(": ")
        if len(refused) > 1:
            where, what = "the call", f"{len(refused)} options have no equivalent\n  " + "\n  ".join(refused)
        raise UsageError(where, what, "Leave it out; --compile OPTIONS gives cli compile what you mean.")
    return options, notes
