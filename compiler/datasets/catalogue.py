"""Datasets by name: files of the command line, entries of a dataset_info.json, cards of the registry.

A name is looked for in this order: the files of this command line (NAME=FILE, or the stem), the user's registries
(--registry), the shipped cards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import registry
from compiler import formats
from compiler.conversation import Kind
from compiler.datasets import hub
from compiler.datasets.files import File, data_files, readable
from compiler.datasets.given import Given, given_datasets
from compiler.formats import Format
from compiler.formats.kinds import columns_for, kind_of_rows, kinds_of_rows, label_of, of_kind, other_names, own_names
from compiler.options import CompileOptions, DatasetOptions, Names, Request, quoted
from compiler.read import cut, open_source, read
from compiler.rows.mend import mend
from compiler.rows.nearest import nearest_format
from compiler.rows.persona import COLUMNS, persona
from compiler.rows.recognise import recognise
from schemas import check_config
from schemas.errors import InputError, UsageError, nearest
from schemas.stores import SCHEME, AnyPath, StorePath, path_of

SELF_COGNITION = "self-cognition"
_PEEK = 20
"""The number of rows by which a format is recognised."""


@dataclass
class Dataset:
    """A dataset ready to be read."""

    name: str
    files: list[File]
    options: DatasetOptions
    sample: bool = False
    """Whether it is an embedded sample, too small to train on."""
    num_samples: int | None = None
    notes: list[str] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)
    """Where it came from, for the manifest: hub and revision, licence."""


_UNREADABLE = "openai", str(Kind.SFT), "no row of it can be read, so its format is not known"
"""(format, kind, note): every row is a reject, whatever the format."""


@dataclass(frozen=True)
class Catalogue:
    """Everything that a mix can name."""

    options: CompileOptions

    @cached_property
    def given(self) -> dict[str, Given]:
        """The datasets of the command line, by name."""
        return given_datasets(self.options.files, self.options.cache)

    def requests(self) -> list[Request]:
        """The requests of the mix, or one for each file where no mix is given."""
        mix = self.options.mix
        for folder in self.options.registries:
            if not folder.is_dir():
                raise UsageError(f"--registry {folder}", "no such folder")
            if not any(folder.glob("*/")) and not (folder / "dataset_info.json").is_file():
                what = "it holds no dataset_info.json, and no folder with the data of a hub dataset"
                raise UsageError(f"--registry {folder}", what, "Name LLaMA-Factory's data folder, or one like it.")
        given = self.given
        if not mix:
            return [Request(name) for name in given]
        unused = [name for name in given if name not in {request.name for request in mix}]
        if unused:
            raise UsageError(
                f"--mix {','.join(quoted(r.name) for r in mix)}", f"the file {given[unused[0]].shown!r} is not in it",
                f"Add {quoted(unused[0])}:SHARE to --mix, or leave the file out.",
            )  # fmt: skip
        return list(mix)

    def resolve(self, name: str) -> Dataset:
        """Find the dataset called `name`."""
        if name in self.given:
            return self._from_files(name, self.given[name])
        infos = [(folder, _dataset_info(folder)) for folder in self.options.registries]
        having = [(folder, info) for folder, info in infos if name in info]
        if len(having) > 1:
            where = " and ".join(str(folder / "dataset_info.json") for folder, _ in having)
            raise UsageError(
                f"--mix {name}", f"{name!r} is an entry of {where}", "Leave one --registry out, or rename it."
            )
        for folder, info in having:
            return self._from_info(name, info[name], folder)
        cards = registry.datasets()
        if name in cards:
            return self._from_card(cards[name])
        known = [*self.given, *(key for _, info in infos for key in info), *cards]
        raise UsageError(f"--mix {name}", "unknown dataset", nearest(name, known))

    def _from_files(self, name: str, given: Given) -> Dataset:
        files = given.files
        file, first = next(((file, rows) for file in files if (rows := _first_rows(file))), (files[0], []))
        rows = [mend(row, self.options.units.repairs, {}, {})[0] for row in first]
        kind, asked = self._kind_of(rows), self.options
        chosen, notes = asked.format, list(given.notes)
        if chosen == "auto":
            self._check_names([format_ for format_ in formats.FORMATS.values() if kind in format_.kinds])
            chosen, kind, note = _recognise(file, rows, kind, asked) if rows else _UNREADABLE
            notes.append(note)
        format_ = formats.get(chosen, "--format")
        self._check_names([format_])
        if kind not in format_.kinds:
            if asked.kind != "auto":
                raise UsageError(f"--kind {kind}", f"the format {chosen!r} has no {kind} rows", "See cli formats.")
            kind = format_.kinds[0]
        named = own_names(asked.columns, format_.columns) or {}
        columns = of_kind({**columns_for(format_, kind, rows), **named}, kind)
        for name in (name for name in named if columns[name] is None):
            raise UsageError(f"--columns {name}", f"{kind} rows have no such column", "Leave it out, or name --kind.")
        notes += _kind_notes(rows, kind, columns) if asked.kind == "auto" else []
        notes += _unused(rows, named)
        others = {key: column for key, column in other_names(format_, columns).items() if column not in named}
        tags = {**format_.tags, **(own_names(asked.tags, format_.tags) or {})}
        options = DatasetOptions(
            chosen, columns, dict(tags), self._weights(format_.weights), kind,
            kind_by_rows=asked.kind == "auto", other_names=others, react=format_.react,
            media=self._media(given.folder),
        )  # fmt: skip
        return Dataset(name, files, options, notes=notes)

    def _kind_of(self, rows: list[Any]) -> str:
        """The kind that is asked for, the one that has a given column, or that of the first rows."""
        names = {name for name, _ in self.options.columns}
        if self.options.kind != "auto":
            return self.options.kind
        if "kto_tag" in names:
            return Kind.KTO
        if names & {"chosen", "rejected"}:
            return Kind.PREFERENCE
        return Kind.PRETRAIN if names == {"text"} else kind_of_rows(rows)

    def _check_names(self, candidates: list[Format]) -> None:
        """Raise unless one of the formats has all the given columns and tags."""
        for option, given, named in (
            ("--columns", self.options.columns, [format_.columns for format_ in candidates]),
            ("--tags", self.options.tags, [format_.tags for format_ in candidates]),
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

    def _from_card(self, card: dict[str, Any]) -> Dataset:
        format_ = formats.get(card["format"], f"dataset {card['name']}")
        source: dict[str, Any] = {"license": card["license"]} if "license" in card else {}
        if "files" in card:
            folder = registry.ROOT
            files = [File(folder / file, file) for file in card["files"]]
        else:
            folder, revision = hub.find(card["name"], card["hub"], self.options.registries)
            files = data_files(folder, card["name"], {})
            source |= {"hub": card["hub"]} | ({"revision": revision} if revision else {})
        weights = card.get("weights", format_.weights)
        options = DatasetOptions(
            card["format"], dict(format_.columns), dict(format_.tags), self._weights(weights),
            react=format_.react and card.get("weights") != "none", clean=card.get("clean", {}),
            media=self._media(folder),
        )  # fmt: skip
        return Dataset(card["name"], files, options, sample=card.get("sample", False), source=source)

    def _from_info(self, name: str, entry: dict[str, Any], folder: Path) -> Dataset:
        """The dataset of an entry of a `dataset_info.json`; its keys mean what they mean to LLaMA-Factory."""
        where = f"{folder / 'dataset_info.json'}#/{name}"
        check_config(entry, "dataset_info", where)
        _refuse_what_we_do_not_read(entry, where)
        kind = _kind_of(entry)
        format_ = formats.get("pretrain" if kind == Kind.PRETRAIN else entry.get("formatting", "alpaca"), where)
        if kind not in format_.kinds:
            raise UsageError(where, f"the format {format_.name!r} has no {kind} rows", "See cli formats.")
        columns = of_kind(_names(format_.columns, _columns(entry, kind)), kind)
        source: dict[str, Any] = {}
        hubs = {hub_name: entry[key] for hub_name, key in hub.KEYS.items() if key in entry}
        media: AnyPath = folder
        if hubs:
            path, revision = hub.find(name, hubs, self.options.registries)
            source = {"hub": hubs} | ({"revision": revision} if revision else {})
            files, media = data_files(path, where, entry), path
        elif (cloud := entry.get("cloud_file_name", "")).startswith(SCHEME):  # before file_name, as upstream has it
            files = _named(cloud, where, entry, folder)
        elif "file_name" in entry:
            files = _named(entry["file_name"], where, entry, folder)
        else:
            raise UsageError(where, "names no file_name and no hub", 'Add "file_name": "data.json".')
        options = DatasetOptions(
            format_.name, columns, _names(format_.tags, entry.get("tags")), self._weights(format_.weights), kind,
            react=format_.react, media=self._media(media),
        )  # fmt: skip
        return Dataset(name, files, options, num_samples=entry.get("num_samples"), source=source)

    def self_cognition(self) -> Dataset:
        """The pool of self-cognition rows, the user's or the embedded one, with the name and author to fill in."""
        given, whose = self.options.self_cognition_file, persona(self.options.name, self.options.author)
        pool = File(registry.SELF_COGNITION, "self_cognition/pool.jsonl")
        file = File(given, readable(str(given))) if given else pool
        media = str(registry.ROOT.resolve())
        with_comma = [f"the {key.split('.')[0]} is {value!r}" for key, value in whose[::2] if "," in value]
        return Dataset(
            SELF_COGNITION, [file], DatasetOptions("alpaca", dict(COLUMNS), {}, "none", persona=whose, media=media),
            notes=with_comma,
        )  # fmt: skip

    def _weights(self, own: str) -> str:
        """The weights policy of a dataset whose own is `own`. ReAct text needs one that trains no tool result."""
        given = self.options.weights
        if self.options.units.tools == "template" or "react" in given.split("+"):
            return own if given == "auto" else given
        if given != "auto":
            what = "--tools writes results into replies, and only the policy react leaves them untrained"
            raise UsageError(f"--weights {given}", what, "Use --weights react, or last_round+react.")
        return "react"

    def _media(self, folder: AnyPath) -> str:
        folder = self.options.media_dir or folder
        return str(folder.resolve() if isinstance(folder, Path) else folder)


def _named(place: str, where: str, entry: dict[str, Any], folder: Path) -> list[File]:
    """The files that an entry names: below its folder, or in an object store."""
    path = path_of(place)
    if isinstance(path, StorePath):
        return data_files(path, where, entry, label=path.uri)
    return data_files(folder / path, where, entry, label=place)


def _dataset_info(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}  # a folder that only holds data of hub datasets
    except ValueError as error:
        raise InputError(str(path), f"not valid JSON: {error}") from error
    if not isinstance(info, dict):
        raise UsageError(str(path), "expected an object of dataset entries")
    return info


def _names(defaults: dict[str, str], given: dict[str, str | None] | None) -> Names:
    """Names as LLaMA-Factory fills them in: if the entry has the object, a name that it does not list is absent."""
    return dict(defaults) if given is None else {key: given.get(key) for key in defaults}


def _kind_of(entry: dict[str, Any]) -> str:
    """The kind of an entry's rows, as LLaMA-Factory reads its keys."""
    columns = entry.get("columns") or {}
    if columns.get("kto_tag"):
        return Kind.KTO
    if entry.get("ranking"):
        return Kind.PREFERENCE
    texts_only = columns.get("prompt") and not columns.get("response")
    return Kind.PRETRAIN if texts_only and entry.get("formatting", "alpaca") == "alpaca" else Kind.SFT


def _columns(entry: dict[str, Any], kind: str) -> dict[str, str | None] | None:
    given = entry.get("columns")
    return {"text": given["prompt"]} if kind == Kind.PRETRAIN and given else given


def _refuse_what_we_do_not_read(entry: dict[str, Any], where: str) -> None:
    """Raise for what this version cannot compile, by its name."""
    columns = entry.get("columns") or {}
    other = {
        "columns/audios": "audios" if columns.get("audios") else None,
        "script_url": "a loading script, which would run its code"
        if "script_url" in entry and not hub.named(entry)
        else None,
        "cloud_file_name": "files in cloud storage other than s3://"
        if not entry.get("cloud_file_name", SCHEME).startswith(SCHEME) and "file_name" not in entry
        else None,
    }
    for key, what in other.items():
        if what:
            raise UsageError(f"{where}/{key}", f"this version does not compile {what}")


def _first_rows(file: File) -> list[Any]:
    units = cut(open_source(file.path))
    return list(islice((row.value for unit in units for row in read(unit) if row.reject is None), _PEEK))


def _what_to_do(file: File, rows: list[Any], kind: str) -> str:
    """The nearest format with the first mismatch, and names of columns that would make the rows fit it."""
    near = nearest_format(rows, kind)
    if near is None:
        return "Name it with --format; see cli formats."
    place = f"{file.label}:{near.row + 1}#{near.reject.pointer}"
    known = ", ".join(formats.FORMATS)
    lines = [
        f"Name it with --format ({known}).",
        f"The nearest format is {near.format}, which {place} does not fit: {near.reject.message}.",
    ]
    if near.columns:
        entry = {"file_name": Path(file.label).name, "formatting": near.format, "columns": near.columns}
        text = json.dumps({Path(file.label).name.split(".")[0]: entry}, ensure_ascii=False)
        names = ",".join(f"{column}={key}" for column, key in near.columns.items())
        lines.append(f"The first {len(rows)} would fit with --format {near.format} --columns {names},")
        lines.append(f"or with this dataset_info.json (--registry): {text}")
    else:
        lines.append("Map its columns with --columns, or in a dataset_info.json (--registry).")
    return "\n  ".join(lines)


def _kind_notes(rows: list[Any], kind: str, columns: Names) -> list[str]:
    """What was inferred about the kind where rows could also be read otherwise."""
    notes, found = [], kinds_of_rows(rows)
    if columns.get("kto_tag") == "label":
        notes.append("read as kto rows because the key 'label' is true or false beside a reply")
    elif kind == Kind.SFT and any(isinstance(row, dict) and label_of(row.get("label")) is not None for row in rows):
        notes.append("the key 'label' is not read as a KTO label; --kind kto reads it so")
    if len(found) > 1 and kind in found:
        others = ", ".join(f"{n} {other}" for other, n in sorted(found.items()) if other != kind)
        notes.append(f"kinds are mixed: {found[kind]} of the first {found.total()} rows are {kind}, {others}")
    return notes


def _unused(rows: list[Any], named: dict[str, str]) -> list[str]:
    """Notes on given columns that the first rows do not have."""
    keys = {key for row in rows if isinstance(row, dict) for key in row}
    which = [f"{name}={key}" for name, key in named.items() if key not in keys]
    return [f"--columns {','.join(which)}: none of the first {len(rows)} rows has this key"] if which else []


def _recognise(file: File, rows: list[Any], kind: str, asked: CompileOptions) -> tuple[str, str, str]:
    """Recognise the first rows of a file: (format, kind, a note for the user)."""
    heard = {key for row in rows if isinstance(row, dict) for key in ("audios", "audio") if row.get(key)}
    if heard:
        raise UsageError(file.label, f"this version does not compile audios (its rows have the key {min(heard)!r})")
    given = asked.units.repairs, asked.columns, asked.tags
    name, fits = recognise(rows, kind, *given)
    is_open = kind == Kind.SFT and asked.kind == "auto"
    if name is None and is_open and (found := recognise(rows, Kind.PRETRAIN, *given))[0] is not None:
        kind, (name, fits) = Kind.PRETRAIN, found  # a text with other keys beside it (url, timestamp), and no chat
    if name is None:
        keys = ", ".join(map(repr, rows[0])) if rows and isinstance(rows[0], dict) else "no object"
        raise UsageError(
            file.label, f"its rows match no known format (keys of the first: {keys})", _what_to_do(file, rows, kind)
        )
    if formats.FORMATS[name].session:
        return name, kind, f"recognised as {name}: all lines of a file are one row, which has the place of the first"
    what = name if kind in (Kind.SFT, name) else f"{name}, {kind} rows"
    return name, kind, f"recognised as {what} ({fits[name]} of the first {len(rows)} rows match its schema)"
