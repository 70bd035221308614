"""Datasets by name: files of the command line, entries of a dataset_info.json, cards of the registry.

A name is looked for in this order: the files of this command line (NAME=FILE, or the stem), the user's registries
(--registry), the shipped cards, and, where it looks like one, as an id of a hub.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import registry
from compiler import formats
from compiler.datasets import hub
from compiler.datasets.command_line import from_files
from compiler.datasets.dataset import Dataset, media_of, weights_of
from compiler.datasets.dataset_info import entries_of, from_entry
from compiler.datasets.files import File, data_files, readable
from compiler.datasets.given import Given, given_datasets
from compiler.options import CompileOptions, DatasetOptions, Request, quoted
from compiler.rows.persona import COLUMNS, persona
from schemas.arrow import TEST, TRAIN, VAL
from schemas.errors import UsageError, nearest
from schemas.hub import HUBS, chosen, is_id

SELF_COGNITION = "self-cognition"
_OF_FILES = {"format", "kind", "columns", "tags"}
"""What a dataset of a registry says itself."""


@dataclass(frozen=True)
class Catalogue:
    """Everything that a mix can name."""

    options: CompileOptions

    @cached_property
    def given(self) -> dict[str, Given]:
        """The datasets of the command line, by name."""
        options = self.options
        files = {TRAIN: options.files, VAL: options.val, TEST: options.test}
        return given_datasets([(text, split) for split, texts in files.items() for text in texts], options.cache)

    def requests(self) -> list[Request]:
        """The requests of the mix, or one for each file where no mix is given; then one for each held-out file."""
        held_out = [Request(name, split=one.split) for name, one in self.given.items() if one.split != TRAIN]
        return [*self._mix(), *held_out]

    def _mix(self) -> list[Request]:
        mix = self.options.mix
        for folder in self.options.registries:
            if not folder.is_dir():
                raise UsageError(f"--registry {folder}", "no such folder")
            if not any(folder.glob("*/")) and not (folder / "dataset_info.json").is_file():
                what = "it holds no dataset_info.json, and no folder with the data of a hub dataset"
                raise UsageError(f"--registry {folder}", what, "Name LLaMA-Factory's data folder, or one like it.")
        given = {name: one for name, one in self.given.items() if one.split == TRAIN}
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
        own = self.options.own.get(name, {})
        if own.keys() & _OF_FILES and name not in self.given and not is_id(name):
            key = min(own.keys() & _OF_FILES)
            what = f"{key} is about files, and {name!r} is a dataset of a registry, whose entry says it itself"
            raise UsageError(f"datasets/{name}", what, "Give it a path, or leave it out.")
        return replace(self, options=replace(self.options, **own))._resolve(name) if own else self._resolve(name)

    def _resolve(self, name: str) -> Dataset:
        if name in self.given:
            return from_files(name, self.given[name], self.options)
        infos = [(folder, entries_of(folder)) for folder in self.options.registries]
        having = [(folder, info) for folder, info in infos if name in info]
        if len(having) > 1:
            where = " and ".join(str(folder / "dataset_info.json") for folder, _ in having)
            raise UsageError(
                f"--mix {name}", f"{name!r} is an entry of {where}", "Leave one --registry out, or rename it."
            )
        for folder, info in having:
            return from_entry(name, info[name], folder, self.options)
        cards = registry.datasets()
        if name in cards:
            return self._from_card(cards[name])
        if is_id(name):
            return self._from_hub(name)
        known = [*self.given, *(key for _, info in infos for key in info), *cards]
        raise UsageError(f"--mix {name}", "unknown dataset", nearest(name, known))

    def _from_hub(self, name: str) -> Dataset:
        """The dataset of a hub's id, in the format that its first rows look like."""
        found = hub.find(name, {chosen(self.options.hub, "--hub") or HUBS[0]: name}, self.options)
        given = Given(name, data_files(found.folder, name, {}), found.folder, found.notes)
        return replace(from_files(name, given, self.options), source=found.source)

    def _from_card(self, card: dict[str, Any]) -> Dataset:
        format_ = formats.get(card["format"], f"dataset {card['name']}")
        source: dict[str, Any] = {"license": card["license"]} if "license" in card else {}
        notes: list[str] = []
        if "files" in card:
            folder = registry.ROOT
            files = [File(folder / file, file) for file in card["files"]]
        else:
            folder, found, notes = hub.find(card["name"], card["hub"], self.options)
            files = data_files(folder, card["name"], {})
            source |= found
        weights = card.get("weights", format_.weights)
        options = DatasetOptions(
            card["format"], dict(format_.columns), dict(format_.tags), weights_of(self.options, weights),
            react=format_.react and card.get("weights") != "none", clean=card.get("clean", {}),
            media=media_of(self.options, folder),
        )  # fmt: skip
        sample = card.get("sample", False)
        return Dataset(card["name"], files, options, sample=sample, source=source, notes=notes)

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
