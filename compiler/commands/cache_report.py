"""The output of `cli cache`: contents by version and by dataset; and how sizes and ages are written."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compiler.cache.prune import Entry, images_of, size_of
from schemas.errors import UsageError

_SIZES = {"": 1} | {f"{p}B": 1000**n for n, p in enumerate(("", "K", "M", "G", "T"))}
_SIZES |= {f"{p}IB": 1024**n for n, p in enumerate(("K", "M", "G", "T"), 1)}
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str) -> int:
    """Parse "10GB", "1.5 GiB" or "0" into bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _SIZES:
        raise UsageError(f"--keep {text}", "expected a size", "Such as 500MB, 10GB or 1.5TiB.")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def parse_age(text: str) -> float:
    """Parse "30d", "12h", "45m" or "2w" into seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([mhdw])", text.strip())
    if match is None:
        raise UsageError(f"--unused-for {text}", "expected a time", "Such as 45m, 12h, 30d or 2w.")
    return float(match[1]) * _SECONDS[match[2]]


def contents(folder: Path, found: list[Entry], rest: list[Path]) -> dict[str, Any]:
    """The contents as JSON values: in total, by version, by dataset, and the remains of killed runs."""
    by_maker = _grouped(found, lambda entry: (not entry.usable, entry.kind == "damaged", *entry.made_by.items()))
    usable = [entry for entry in found if entry.usable and entry.dataset is not None]
    by_dataset = _grouped(usable, lambda entry: (str(entry.dataset),))
    return {
        "cache": str(folder),
        **_total(found),
        "versions": [
            {"usable": entries[0].usable, "made_by": entries[0].made_by, **_total(entries)} for entries in by_maker
        ],
        "datasets": [
            {"name": entries[0].dataset, "rows": sum(entry.rows for entry in entries), **_total(entries)}
            for entries in by_dataset
        ],
        "left_over": {"files": len(rest), "bytes": sum(map(size_of, rest))},
    }


def _grouped(found: Iterable[Entry], by: Callable[[Entry], tuple[Any, ...]]) -> list[list[Entry]]:
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in found:
        groups.setdefault(by(entry), []).append(entry)
    return [groups[key] for key in sorted(groups, key=lambda key: tuple(map(str, key)))]


def _total(found: list[Entry]) -> dict[str, Any]:
    count = {f"{kind}s": sum(entry.kind == kind for entry in found) for kind in ("object", "record")}
    used = max((entry.used for entry in found), default=None)
    return {
        **count,
        "damaged": sum(entry.kind == "damaged" for entry in found),
        "bytes": sum(entry.bytes for entry in found) + sum(images_of(found).values()),
        "last_used": None if used is None else datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds"),
    }


def listing(said: dict[str, Any]) -> RenderableType:
    """The contents as tables."""
    parts: list[RenderableType] = [Text(f"{said['cache']}: {amount(said)}")]
    if said["versions"]:
        parts.append(Text())
        table = _table("made by", "objects", "records", "size", "last used")
        for entry in said["versions"]:
            table.add_row(_maker(entry), *_cells(entry))
        parts.append(table)
    if said["datasets"]:
        parts.append(Text())
        table = _table("dataset (this version)", "rows", "objects", "records", "size", "last used")
        for entry in said["datasets"]:
            table.add_row(entry["name"], f"{entry['rows']:,}", *_cells(entry))
        parts.append(table)
    if said["left_over"]["files"]:
        rest = said["left_over"]
        parts.append(Text(f"\n{size(rest['bytes'])} belong to killed runs or to runs in progress"))
    return Group(*parts)


def _maker(entry: dict[str, Any]) -> str:
    made_by = entry["made_by"]
    if entry["damaged"]:
        return "damaged, never used"
    if not made_by:
        return "an older version, not usable"
    name = f"{made_by['version']} (code {made_by['code'][:8]})"
    return f"{name}, this version" if entry["usable"] else f"{name}, not usable"


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    return f"{entry['objects']:,}", f"{entry['records']:,}", size(entry["bytes"]), _age(entry["last_used"])


def amount(total: dict[str, Any]) -> str:
    """Objects, records and size in words, such as "3 objects, 1 record, 12.5 MB"."""
    counts = [(total["objects"], "object"), (total["records"], "record")]
    damaged = [f"{total['damaged']:,} damaged"] if total["damaged"] else []
    said = [f"{count:,} {name}{'' if count == 1 else 's'}" for count, name in counts]
    return ", ".join([*said, *damaged, size(total["bytes"])])


def removal(chosen: list[Entry], rest: list[Path], freed: int, *, dry_run: bool) -> dict[str, Any]:
    """What was removed, or would be, as JSON values."""
    total = _total(chosen)
    return {
        "dry_run": dry_run, "objects": total["objects"], "records": total["records"], "damaged": total["damaged"],
        "left_over": len(rest), "bytes": freed, "keys": [entry.key for entry in chosen],
    }  # fmt: skip


def size(count: int) -> str:
    """A number of bytes with its unit, such as "12.5 MB"."""
    for name in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {name}" if name == "bytes" else f"{count:,.1f} {name}"
        count = count / 1000  # type: ignore[assignment]  # a fraction from here on
    return f"{count:,.1f} TB"


def _age(when: str | None) -> str:
    seconds = time.time() - datetime.fromisoformat(when).timestamp() if when else 0.0
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count:,} {name}{'' if count == 1 else 's'} ago"
    return "just now"


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    return table
