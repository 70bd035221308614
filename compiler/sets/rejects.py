"""Rejects: the file `rejects.jsonl` of a set, and the errors of a run that has too many, or keys that nothing reads."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import islice
from pathlib import Path

from compiler.formats.kinds import kind_of_rows
from compiler.options import CompileOptions, quoted
from compiler.read.value import parse
from compiler.rows.recognise import recognise
from compiler.sets.readme import not_read
from compiler.units.compiled import CompiledDataset
from schemas import disk
from schemas.errors import DROPPED, InputError, Reason, TooManyRejects, UsageError
from schemas.stores import StorePath

_LOOKED_AT = 20
"""Rejected rows that are compared with other formats."""


def rejects_jsonl(compiled: list[CompiledDataset]) -> bytes:
    """The bytes of `rejects.jsonl`: one object a line, in the order of datasets, files and rows."""
    rejects = (reject for one in compiled for reject in one.rejects())
    return b"".join(json.dumps(reject, ensure_ascii=False).encode() + b"\n" for reject in rejects)


def allowed_rejects(options: CompileOptions, read: int) -> int:
    """How many of so many rows may be rejected."""
    number = float(options.max_rejects.rstrip("%"))
    return int(number * read / 100) if options.max_rejects.endswith("%") else int(number)


def check_rejects(compiled: list[CompiledDataset], options: CompileOptions, *, dry: bool = False) -> None:
    """Raise if a dataset has more rejects than allowed, or no row is left; the rejects are written to a file first.

    A dry run writes nothing.
    """
    nothing_left = not any(unit.num_rows for one in compiled for unit in one.loaded)
    for one in compiled:
        read, reasons = one.num_examples(), one.rejected()
        what = "examples" if one.counts()["expanded"] else "rows"
        rejected = sum(reasons.values())
        allowed = allowed_rejects(options, read)
        if rejected <= allowed and not nothing_left:
            continue
        limit = "No row is left" if nothing_left else f"--max-rejects {options.max_rejects} allows {allowed:,}"
        first = min(one.rejects(), key=lambda reject: reject["reason"] in DROPPED, default=None)
        if first is None:
            continue
        counted = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items())
        ending = "It is a dry run: nothing was written"
        if not dry:
            ending = f"Nothing was published. All rejects are in {_keep_rejects(compiled, options)}"
        raise TooManyRejects(
            one.place_of(first),
            f"{first['reason']}: {first['message']}",
            f"{rejected:,} of {read:,} {what} of {one.dataset.name!r} were rejected ({counted}). {limit}.\n"
            f"{_what_they_are(one)}"
            f"  {ending}; what was compiled is kept for the next run.",
        )


def _what_they_are(one: CompiledDataset) -> str:
    """A line on rejects that are good rows of another format or kind, as where a file mixes formats; else ""."""
    asked = one.dataset.options
    misfits = (reject["raw"] for reject in one.rejects() if reject["reason"] == Reason.SCHEMA and "raw" in reject)
    rows = [row for raw in islice(misfits, _LOOKED_AT) if isinstance(row := parse(raw.encode(), "text")[0], dict)]
    kind = kind_of_rows(rows)
    name, fitting = recognise(rows, kind) if rows else (None, 0)
    if name is None or fitting < len(rows) or (name, kind) == (asked.format, asked.kind):
        return ""
    others = f"rejects that are good {kind} rows of the format {name} among {asked.kind} rows of {asked.format}"
    return f"  There are {others}; put each sort into a file of its own.\n"


def check_where(compiled: list[CompiledDataset]) -> None:
    """Raise if --where names a column that no row of a dataset has, or leaves out every row of it."""
    for one in compiled:
        text, counts = one.dataset.options.where, one.counts()
        if not text:
            continue
        found = {key.removeprefix("where:"): times for key, times in counts.items() if key.startswith("where:")}
        if missing := [name for name, times in found.items() if not times]:
            what = f"no row of {one.dataset.name!r} has the column {missing[0]!r}"
            raise UsageError(f"--where {text!r}", what, "Compile the datasets that have it by themselves.")
        if counts["left_out"] == counts["read"]:
            what = f"it leaves out all {counts['read']:,} rows of {one.dataset.name!r}"
            raise UsageError(f"--where {text!r}", what, "Loosen the condition, or leave the dataset out.")


def forget_rejects(options: CompileOptions) -> None:
    """Remove the rejects of an earlier run that failed: OUT/rejects.jsonl says what is true now."""
    for path in _kept_in(options):
        path.unlink(missing_ok=True)


def _keep_rejects(compiled: list[CompiledDataset], options: CompileOptions) -> Path:
    """Write the rejects beside the output, or into the cache where that cannot be written."""
    data = rejects_jsonl(compiled)
    *beside, in_cache = _kept_in(options)
    for path in beside:
        with suppress(OSError, InputError):  # the next place, so that the message is about the rows
            disk.write(path, data)
            return path
    disk.write(in_cache, data)
    return in_cache


def _kept_in(options: CompileOptions) -> list[Path]:
    """Where the rejects of a run that failed may be: beside the output, or in the cache."""
    name = f"{options.out.name}.rejects.jsonl"
    folders = [options.cache] if isinstance(options.out, StorePath) else [options.out.parent, options.cache]
    return [folder / name for folder in folders]


def check_keys(compiled: list[CompiledDataset], options: CompileOptions) -> None:
    """Raise with --unknown-keys error if rows have keys that nothing reads."""
    for one in compiled:
        if options.unknown_keys == "error" and (unread := one.unread()):
            raise UsageError(
                f"--unknown-keys {options.unknown_keys}: {one.dataset.name}", not_read(unread, one.counts()["read"]),
                f"Name those that need not be read: --ignore {','.join(map(quoted, unread))}",
            )  # fmt: skip
