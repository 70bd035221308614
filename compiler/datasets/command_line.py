"""Datasets of the command line: format, kind and columns of their rows, by its options and by the first rows."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from compiler import formats
from compiler.conversation import Kind
from compiler.datasets.dataset import Dataset, media_of, weights_of
from compiler.datasets.files import File
from compiler.datasets.given import Given
from compiler.formats import Format
from compiler.formats.kinds import (
    KIND_KEYS,
    columns_for,
    kind_keys,
    kind_of_rows,
    kinds_of_rows,
    label_of,
    of_kind,
    other_names,
    own_names,
)
from compiler.options import CompileOptions, DatasetOptions, Names, quoted
from compiler.read import cut, open_source, place_of, read
from compiler.rows.mend import mend
from compiler.rows.nearest import nearest_format
from compiler.rows.recognise import fits_of, recognise, refused
from schemas.errors import UsageError, nearest

_PEEK = 20
"""The number of rows by which a format is recognised."""
_SURE = KIND_KEYS - {"label"}
"""Keys of rows that are no documents, whatever else they have."""
_UNREADABLE = "openai", str(Kind.SFT), "no row of it can be read, so its format is not known"
"""(format, kind, note): every row is a reject, whatever the format."""


def from_files(name: str, given: Given, asked: CompileOptions) -> Dataset:
    """The dataset of files of the command line, read as its options say or as its first rows look."""
    files = given.files
    file, first = next(((file, rows) for file in files if (rows := _first_rows(file))), (files[0], []))
    rows = [mend(row, asked.units.repairs, {}, {})[0] for row in first]
    kind = _kind_of(rows, asked)
    chosen, notes = asked.format, list(given.notes)
    if chosen == "auto":
        _check_names([format_ for format_ in formats.FORMATS.values() if kind in format_.kinds], asked)
        chosen, kind, note = _recognise(file, rows, kind, asked) if rows else _UNREADABLE
        notes.append(note)
    format_ = formats.get(chosen, "--format")
    _check_names([format_], asked)
    if kind not in format_.kinds:
        if asked.kind != "auto":
            raise UsageError(f"--kind {kind}", f"the format {chosen!r} has no {kind} rows", "See cli formats.")
        kind = format_.kinds[0]
    named = own_names(asked.columns, format_.columns) or {}
    columns = of_kind({**columns_for(format_, kind, rows, asked.units.ignore), **named}, kind)
    for name in (name for name in named if columns[name] is None):
        raise UsageError(f"--columns {name}", f"{kind} rows have no such column", "Leave it out, or name --kind.")
    notes += _kind_notes(rows, kind, columns) if asked.kind == "auto" else []
    notes += _unused(rows, named)
    others = other_names(format_, columns, asked.units.ignore)
    others = {key: column for key, column in others.items() if column not in named}
    tags = {**format_.tags, **(own_names(asked.tags, format_.tags) or {})}
    options = DatasetOptions(
        chosen, columns, dict(tags), weights_of(asked, format_.weights), kind,
        kind_keys=tuple(sorted(kind_keys(rows))) if asked.kind == "auto" else (), other_names=others,
        react=format_.react, media=media_of(asked, given.folder),
    )  # fmt: skip
    return Dataset(name, files, options, notes=notes)


def _kind_of(rows: list[Any], asked: CompileOptions) -> str:
    """The kind that is asked for, the one that has a given column, or that of the first rows."""
    names = {name for name, _ in asked.columns}
    if asked.kind != "auto":
        return asked.kind
    if "kto_tag" in names:
        return Kind.KTO
    if names & {"chosen", "rejected"}:
        return Kind.PREFERENCE
    return Kind.PRETRAIN if names == {"text"} else kind_of_rows(rows)


def _check_names(candidates: list[Format], asked: CompileOptions) -> None:
    """Raise unless one of the formats has all the given columns and tags."""
    for option, given, named in (
        ("--columns", asked.columns, [format_.columns for format_ in candidates]),
        ("--tags", asked.tags, [format_.tags for format_ in candidates]),
    ):
        for name, key in given:
            if all(own_names([(name, key)], defaults) is None for defaults in named):
                who = f"the format {candidates[0].name}" if len(candidates) == 1 else "no format"
                what = f"{who} has no such name" if len(candidates) == 1 else f"{who} has such a name"
                known = {one for defaults in named for pair in defaults.items() for one in pair}
                raise UsageError(f"{option} {name}={key}", what, nearest(name, known))
        if all(own_names(given, defaults) is None for defaults in named):
            together = ",".join(name for name, _ in given)
            raise UsageError(f"{option} {together}", "no format has all of these names", "See cli formats NAME.")


def _first_rows(file: File) -> list[Any]:
    units = cut(open_source(file.path))
    return list(islice((row.value for unit in units for row in read(unit) if row.reject is None), _PEEK))


def _recognise(file: File, rows: list[Any], kind: str, asked: CompileOptions) -> tuple[str, str, str]:
    """Recognise the first rows of a file: (format, kind, a note for the user)."""
    heard = {key for row in rows if isinstance(row, dict) for key in ("audios", "audio") if row.get(key)}
    if heard:
        raise UsageError(file.label, f"this version does not compile audios (its rows have the key {min(heard)!r})")
    if asked.kind == "auto" and (known := refused(rows)):
        raise UsageError(file.label, *known)
    given = asked.units.repairs, asked.columns, asked.tags, asked.units.ignore
    name, fitting = recognise(rows, kind, *given)
    is_open = asked.kind == "auto" and not any(isinstance(row, dict) and row.keys() & _SURE for row in rows)
    if name is None and is_open and (found := recognise(rows, Kind.PRETRAIN, *given))[0] is not None:
        kind, (name, fitting) = Kind.PRETRAIN, found  # a text with other keys beside it (url, label), and no chat
    elif name is None and asked.kind in (Kind.PREFERENCE, Kind.KTO):  # such rows may come later
        plain = {one: n for one, n, _ in fits_of(rows, Kind.SFT, *given) if kind in formats.FORMATS[one].kinds}
        name = max(plain, key=lambda one: plain[one]) if any(plain.values()) else None
    if name is None:
        keys = ", ".join(map(repr, rows[0])) if rows and isinstance(rows[0], dict) else "no object"
        raise UsageError(
            file.label, f"its rows match no known format (keys of the first: {keys})", _what_to_do(file, rows, kind)
        )
    if formats.FORMATS[name].session:
        return name, kind, f"recognised as {name}: all lines of a file are one row, which has the place of the first"
    what = name if kind in (Kind.SFT, name) else f"{name}, {kind} rows"
    return name, kind, f"recognised as {what} ({fitting} of the first {len(rows)} rows match its schema)"


def _what_to_do(file: File, rows: list[Any], kind: str) -> str:
    """The nearest format with the first mismatch, and names of columns that would make the rows fit it."""
    near = nearest_format(rows, kind)
    if near is None:
        return "Name it with --format; see cli formats."
    place = place_of(open_source(file.path), file.label, near.row, near.reject.pointer)
    known = ", ".join(formats.FORMATS)
    lines = [
        f"Name it with --format ({known}).",
        f"The nearest format is {near.format}, which {place} does not fit: {near.reject.message}.",
    ]
    if near.columns or near.tags:
        given = {option: names for option, names in (("columns", near.columns), ("tags", near.tags)) if names}
        listed = given | ({"tags": {**formats.FORMATS[near.format].tags, **near.tags}} if near.tags else {})
        entry = {"file_name": Path(file.label).name, "formatting": near.format, **listed}
        text = json.dumps({Path(file.label).name.split(".")[0]: entry}, ensure_ascii=False)
        how = " ".join(
            f"--{option} {','.join(f'{name}={quoted(key)}' for name, key in names.items())}"
            for option, names in given.items()
        )
        lines.append(f"The first {len(rows)} would fit with --format {near.format} {how},")
        lines.append(f"or with this dataset_info.json (--registry): {text}")
    else:
        lines.append("Map its columns with --columns, or in a dataset_info.json (--registry).")
    return "\n  ".join(lines)


def _kind_notes(rows: list[Any], kind: str, columns: Names) -> list[str]:
    """What was inferred about the kind where rows could also be read otherwise."""
    notes, found = [], kinds_of_rows(rows)
    if columns.get("kto_tag") == "label":
        notes.append("read as kto rows because 'label' is true or false beside a reply; --kind sft leaves it unread")
    elif kind == Kind.SFT and any(isinstance(row, dict) and label_of(row.get("label")) is not None for row in rows):
        why = "" if "label" in kind_keys(rows) else ", because some rows have other values than true and false"
        notes.append(f"the key 'label' is not read as a KTO label{why}; --kind kto reads it so")
    if len(found) > 1 and kind in found:
        others = ", ".join(f"{n} {other}" for other, n in sorted(found.items()) if other != kind)
        notes.append(f"kinds are mixed: {found[kind]} of the first {found.total()} rows are {kind}, {others}")
    return notes


def _unused(rows: list[Any], named: dict[str, str]) -> list[str]:
    """Notes on given columns that the first rows do not have."""
    keys = {key for row in rows if isinstance(row, dict) for key in row}
    which = [f"{name}={key}" for name, key in named.items() if key not in keys]
    return [f"--columns {','.join(which)}: none of the first {len(rows)} rows has this key"] if which else []
