"""What was asked, as the manifest has it: the options that decide bytes, and where the parts of the set came from."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import registry
from compiler.options import CompileOptions, wants_near
from compiler.rows.shingles import minhash_version
from compiler.units.compiled import CompiledDataset
from schemas.manifest import RunEntry
from schemas.stores import SCHEME


def options_entry(options: CompileOptions) -> dict[str, Any]:
    """The options that decide bytes, by their names on the command line; those about sources only where given.

    The format is in the entry of each dataset: a set is the same whether its format was named or recognised.
    """
    persona = {"name": options.name, "author": options.author} if options.self_cognition else None
    found = asdict(options.mixing) | asdict(options.units)
    for name in ("allow_empty", "scan_secrets", "redact"):
        if not found[name]:
            del found[name]
    if options.units.thinking == "template":
        del found["thinking"]
    if options.units.scan_secrets:
        found["secret_rules"] = f"gitleaks {registry.secrets()[1]['gitleaks']['version']}"
    if wants_near(options.mixing):
        found["minhash"] = minhash_version()
    asked = {name: found.pop(name) for name in tuple(found) if name.startswith("decontaminate")}
    if options.units.decontaminate:
        found |= asked | {"decontaminate": dict(options.units.decontaminate)}
    del found["seed"]  # it stands beside the options
    given: dict[str, tuple[Any, Any]] = {
        "kind": (options.kind, "auto"),
        "columns": (dict(options.columns), {}),
        "tags": (dict(options.tags), {}),
        "unknown_keys": (options.unknown_keys, "count"),
        "where": (options.where, ""),
        "limit": (options.limit, None),
        "own": ({name: own | _names(own) for name, own in options.own.items()}, {}),
    }
    found |= {name: value for name, (value, default) in given.items() if value != default}
    return found | {"max_rejects": options.max_rejects, "persona": persona}


def _names(own: dict[str, Any]) -> dict[str, Any]:
    """What a dataset has of its own that is no plain value: names as an object, and the folder of its media."""
    named = {key: dict(own[key]) for key in ("columns", "tags") if key in own}
    return named | ({"media_dir": str(own["media_dir"])} if "media_dir" in own else {})


def run_entry(compiled: list[CompiledDataset], options: CompileOptions) -> RunEntry:
    """Where the parts of the set that is written to `options.out` came from."""
    out = options.out
    entry: RunEntry = {}
    if options.recipe and isinstance(out, Path):
        base = Path(os.path.relpath(Path.cwd(), out.resolve())).as_posix()
        entry["recipe"] = {"base": base} | options.recipe
    if options.tokenizer_source:
        entry["tokenizer"] = options.tokenizer_source
    with_files = [one.dataset for one in compiled if any(unit.info["files"] for unit in one.loaded)]
    if with_files and isinstance(out, Path):
        here = out.resolve()
        entry["media"] = {
            one.name: Path(os.path.relpath(one.options.media, here)).as_posix()
            for one in with_files
            if not one.options.media.startswith(SCHEME)
        }
    return entry
