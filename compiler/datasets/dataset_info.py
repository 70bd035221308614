"""The entries of a `dataset_info.json`, whose keys mean what they mean to LLaMA-Factory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from compiler import formats
from compiler.conversation import Kind
from compiler.datasets import hub
from compiler.datasets.dataset import Dataset, media_of, weights_of
from compiler.datasets.files import File, data_files
from compiler.formats.kinds import of_kind
from compiler.options import CompileOptions, DatasetOptions, Names
from schemas import check_config
from schemas.errors import InputError, UsageError
from schemas.stores import SCHEME, AnyPath, StorePath, path_of


def entries_of(folder: Path) -> dict[str, Any]:
    """The entries of a folder's `dataset_info.json`, by name; {} where it has none."""
    path = folder / "dataset_info.json"
    try:
        info = orjson.loads(path.read_bytes())  # it refuses halves of characters
    except FileNotFoundError:
        return {}  # a folder that only holds data of hub datasets
    except ValueError as error:
        raise InputError(str(path), f"not valid JSON: {error}") from error
    if not isinstance(info, dict):
        raise UsageError(str(path), "expected an object of dataset entries")
    return info


def from_entry(name: str, entry: dict[str, Any], folder: Path, asked: CompileOptions) -> Dataset:
    """The dataset of an entry of the `dataset_info.json` in a folder."""
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
    notes: list[str] = []
    if hubs:
        path, source, notes = hub.find(name, hubs, asked)
        files, media = data_files(path, where, entry), path
    elif (cloud := entry.get("cloud_file_name", "")).startswith(SCHEME):  # before file_name, as upstream has it
        files = _named(cloud, where, entry, folder)
    elif "file_name" in entry:
        files = _named(entry["file_name"], where, entry, folder)
    else:
        raise UsageError(where, "names no file_name and no hub", 'Add "file_name": "data.json".')
    options = DatasetOptions(
        format_.name, columns, _names(format_.tags, entry.get("tags")), weights_of(asked, format_.weights), kind,
        react=format_.react, media=media_of(asked, media),
    )  # fmt: skip
    return Dataset(name, files, options, num_samples=entry.get("num_samples"), source=source, notes=notes)


def _named(place: str, where: str, entry: dict[str, Any], folder: Path) -> list[File]:
    """The files that an entry names: below its folder, or in an object store."""
    path = path_of(place)
    if isinstance(path, StorePath):
        return data_files(path, where, entry, label=path.uri)
    return data_files(folder / path, where, entry, label=place)


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
