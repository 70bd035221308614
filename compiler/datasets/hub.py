"""Datasets and tokenizers of the hubs: a local copy of the user's, or a download (schemas/hub.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import registry
from compiler.options import CompileOptions
from registry import PROCESSOR_FILES, TOKENIZER_FILES
from schemas import hub
from schemas.errors import UsageError

KEYS = {hub.MODELSCOPE: "ms_hub_url", hub.HUGGING_FACE: "hf_hub_url", hub.OPENMIND: "om_hub_url"}
"""The keys of dataset_info.json, by hub."""


class HubDataset(NamedTuple):
    """The files of a hub's dataset."""

    folder: Path
    source: dict[str, Any]
    """Where they are from, for the manifest."""
    notes: list[str]


def named(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a dataset_info.json names a hub; its other places are ignored then."""
    return any(key in entry for key in KEYS.values())


def find(name: str, hubs: Mapping[str, str], asked: CompileOptions) -> HubDataset:
    """Find a dataset by its ids (ID or ID@REVISION) on hubs: a local copy if there is one, else a download."""
    ids = {one: hub.parse_id(text) for one, text in hubs.items()}
    for repository, revision in ids.values():
        for folder in asked.registries:
            for candidate in (folder / repository, folder / repository.split("/")[-1], folder / name):
                if candidate.is_dir():
                    note = f"{candidate} is read; whether it is the revision {revision} is not checked"
                    source = {"hub": {one: plain for one, (plain, _) in ids.items()}}
                    return HubDataset(candidate, source, [note] if revision else [])
    preferred = hub.chosen(asked.hub, "--hub")
    able = [one for one in hub.HUBS if one in ids]
    if not able:
        raise UsageError(
            f"dataset {name}", f"it is on no hub that is read, only on {', '.join(ids)}", f"{_advice(name, hubs)}."
        )
    one = preferred if preferred in able else able[0]
    notes = [f"it is from {one}: its entry names no repository of {preferred}"] if preferred not in (None, one) else []
    repository, revision = ids[one]
    snapshot = hub.download(one, repository, revision, "dataset", f"dataset {name}", _advice(name, {one: repository}))
    return HubDataset(snapshot.folder, snapshot.source, notes)


def _advice(name: str, hubs: Mapping[str, str]) -> str:
    samples = "The embedded samples are called agent and bench. " if name.startswith("ms-") else ""
    return f"{samples}Put its files into DIR/{next(iter(hubs.values()))} and add --registry DIR"


def tokenizer(name: str, asked: str | None) -> tuple[Path, dict[str, Any]]:
    """(the folder of a tokenizer, where it is from) for a folder or a hub's ID[@REVISION]; {} for a folder."""
    if Path(name).is_dir():
        return Path(name), {}
    where = f"--tokenizer {name}"
    if not hub.is_id(name):
        hint = "Give a folder with a tokenizer.json, or a hub id like Qwen/Qwen2.5-7B-Instruct."
        raise UsageError(where, "no such folder", hint)
    vocabularies = sorted({family["file"] for family in registry.tokenizer_families().values()})
    repository, revision = hub.parse_id(name)
    snapshot = hub.download(
        hub.chosen(asked, "--hub") or hub.HUBS[0], repository, revision, "model", where,
        "Give a folder with a tokenizer.json", only=(*TOKENIZER_FILES, *PROCESSOR_FILES, *vocabularies),
    )  # fmt: skip
    return snapshot.folder, snapshot.source
