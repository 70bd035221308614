"""From what the command line names to datasets: files, cards of the registry, entries of a dataset_info.json.

A name is looked for in this order: the files of this command line (by stem), the user's registries (--registry),
the shipped cards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import registry
from compiler import formats, hub
from compiler.files import File, data_files, readable
from compiler.persona import COLUMNS as PERSONA_COLUMNS
from compiler.read import cut, open_source, read
from compiler.request import Request, unknown_dataset
from compiler.validate import recognise
from schemas import check_config
from schemas.errors import InputError, UsageError

SELF_COGNITION = "self-cognition"
_PEEK = 20
"""Rows looked at to recognise a format."""


@dataclass
class Dataset:
    """A dataset ready to be read."""

    name: str
    format: str
    columns: formats.Names
    tags: formats.Names
    files: list[File]
    weights: str
    sample: bool = False
    num_samples: int | None = None
    notes: list[str] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)
    """Where it came from, for the manifest: hub and revision, licence."""


@dataclass
class Catalogue:
    """Everything that can be named on this command line."""

    files: Sequence[str]
    registries: Sequence[Path]
    format: str = "auto"

    def requests(self, mix: list[Request]) -> list[Request]:
        """Return the requests, or one for each file where no mix is given."""
        for folder in self.registries:
            if not folder.is_dir():
                raise UsageError(f"--registry {folder}", "no such folder")
        stems = self._stems()
        if not mix:
            return [Request(name) for name in stems]
        unused = [name for name in stems if name not in {request.name for request in mix}]
        if unused:
            raise UsageError(
                f"--mix {','.join(r.name for r in mix)}", f"the file {readable(stems[unused[0]])!r} is not in it",
                f"Add {unused[0]}:SHARE to --mix, or leave the file out.",
            )  # fmt: skip
        return mix

    def resolve(self, name: str) -> Dataset:
        """Return the dataset called `name`."""
        stems = self._stems()
        if name in stems:
            return self._from_paths(name, [File(Path(stems[name]), readable(stems[name]))])
        infos = [(folder, _dataset_info(folder)) for folder in self.registries]
        for folder, info in infos:
            if name in info:
                return self._from_info(name, info[name], folder)
        cards = registry.datasets()
        if name in cards:
            return self._from_card(cards[name])
        raise unknown_dataset(name, [*stems, *(key for _, info in infos for key in info), *cards])

    def _stems(self) -> dict[str, str]:
        stems: dict[str, str] = {}
        for file in self.files:
            stem = readable(Path(file).name.split(".")[0] or file)
            if stem in stems:
                other = readable(stems[stem])
                raise UsageError(readable(file), f"another file is called {stem!r} too: {other}", "Rename one of them.")
            stems[stem] = file
        return stems

    def _from_paths(self, name: str, files: list[File]) -> Dataset:
        chosen, notes = self.format, []
        if chosen == "auto":
            chosen, note = _recognise(files[0])
            notes.append(note)
        format_ = formats.get(chosen, "--format")
        return Dataset(name, chosen, dict(format_.columns), dict(format_.tags), files, format_.weights, notes=notes)

    def _from_card(self, card: dict[str, Any]) -> Dataset:
        format_ = formats.get(card["format"], f"dataset {card['name']}")
        source: dict[str, Any] = {"license": card["license"]} if "license" in card else {}
        if "files" in card:
            files = [File(registry.ROOT / file, file) for file in card["files"]]
        else:
            folder, revision = hub.find(card["name"], card["hub"], self.registries)
            files = data_files(folder, card["name"], {})
            source |= {"hub": card["hub"]} | ({"revision": revision} if revision else {})
        return Dataset(
            card["name"], card["format"], dict(format_.columns), dict(format_.tags), files,
            card.get("weights", format_.weights), card.get("sample", False), source=source,
        )  # fmt: skip

    def _from_info(self, name: str, entry: dict[str, Any], folder: Path) -> Dataset:
        """Return the dataset of a `dataset_info.json` entry, in LLaMA-Factory's meaning of its keys."""
        where = f"{folder / 'dataset_info.json'}#/{name}"
        check_config(entry, "dataset_info", where)
        _refuse_other_kinds(entry, where)
        format_ = formats.get(entry.get("formatting", "alpaca"), where)
        source: dict[str, Any] = {}
        hubs = {hub_name: entry[key] for hub_name, key in hub.KEYS.items() if key in entry}
        if hubs:
            path, revision = hub.find(name, hubs, self.registries)
            source = {"hub": hubs} | ({"revision": revision} if revision else {})
            files = data_files(path, where, entry)
        elif "file_name" in entry:
            files = data_files(folder / entry["file_name"], where, entry, label=entry["file_name"])
        else:
            raise UsageError(where, "names no file_name and no hub", 'Add "file_name": "data.json".')
        return Dataset(
            name, format_.name, _names(format_.columns, entry.get("columns")), _names(format_.tags, entry.get("tags")),
            files, format_.weights, num_samples=entry.get("num_samples"), source=source,
        )  # fmt: skip


def self_cognition() -> Dataset:
    """Return the embedded self-cognition pool."""
    file = File(registry.SELF_COGNITION, "self_cognition/pool.jsonl")
    return Dataset(SELF_COGNITION, "alpaca", dict(PERSONA_COLUMNS), {}, [file], "none", sample=False)


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


def _names(defaults: dict[str, str], given: dict[str, str | None] | None) -> formats.Names:
    """Return names as LLaMA-Factory does: where the object is present, what it does not list is not there."""
    return dict(defaults) if given is None else {key: given.get(key) for key in defaults}


def _refuse_other_kinds(entry: dict[str, Any], where: str) -> None:
    """Raise for what this version cannot compile, naming it, instead of compiling something else."""
    columns = entry.get("columns") or {}
    other = {
        "ranking": "preference pairs" if entry.get("ranking") else None,
        "columns/kto_tag": "KTO rows" if "kto_tag" in columns else None,
        "columns/images": "images" if "images" in columns else None,
        "columns/videos": "videos" if "videos" in columns else None,
        "columns/audios": "audios" if "audios" in columns else None,
        "columns/response": "pretraining text (no response column)"
        if entry.get("formatting", "alpaca") == "alpaca" and columns and "response" not in columns
        else None,
        "script_url": "a loading script, which would run its code"
        if "script_url" in entry and not hub.named(entry)
        else None,
        "cloud_file_name": "files in cloud storage"
        if "cloud_file_name" in entry and "file_name" not in entry
        else None,
    }
    for key, what in other.items():
        if what:
            raise UsageError(f"{where}/{key}", f"this version does not compile {what}")


def _recognise(file: File) -> tuple[str, str]:
    """Return (format, what to say about it) from the first rows of a file."""
    units = cut(open_source(file.path))
    rows = list(islice((row.value for unit in units for row in read(unit) if row.reject is None), _PEEK))
    other = _other_kind(rows)
    if other:
        what, key = other
        raise UsageError(file.label, f"this version does not compile {what} (its rows have the key {key!r})")
    name, fits = recognise(rows)
    if name is None:
        keys = ", ".join(map(repr, rows[0])) if rows and isinstance(rows[0], dict) else "no object"
        raise UsageError(
            file.label, f"its rows match no known format (keys of the first: {keys})",
            f"Name it with --format ({', '.join(fits)}), or map its columns in a dataset_info.json (--registry).",
        )  # fmt: skip
    return name, f"recognised as {name} ({fits[name]} of the first {len(rows)} rows match its schema)"


def _other_kind(rows: list[Any]) -> tuple[str, str] | None:
    """Return (kind, key) of rows that look like a format of ours but are data of another kind."""
    for row in (row for row in rows if isinstance(row, dict)):
        for key in ("label", "kto_tag"):
            if isinstance(row.get(key), bool):
                return "KTO rows", key
        if "chosen" in row and "rejected" in row:
            return "preference pairs", "chosen"
        for key in ("images", "image", "videos", "audios"):
            if row.get(key):
                return {"image": "images"}.get(key, key), key
        if set(row) == {"text"}:
            return "pretraining text", "text"
    return None


def with_weights(dataset: Dataset, weights: str) -> Dataset:
    """Return the dataset with `--weights` applied; "auto" leaves its own."""
    return dataset if weights == "auto" else replace(dataset, weights=weights)
