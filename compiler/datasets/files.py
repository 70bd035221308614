"""The files of a dataset: one file, or those of a folder that belong to a subset and a split."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from compiler.read import open_source
from schemas import kept
from schemas.errors import InputError, UsageError, shown
from schemas.stores import AnyPath, StorePath, no_such


@dataclass(frozen=True)
class File:
    """A file of a dataset: its path, and its name in shards, rejects and the manifest."""

    path: AnyPath
    label: str


def readable(name: str) -> str:
    """A file name as text in every locale: bytes that are not UTF-8, and control characters, become escapes."""
    return shown(os.fsencode(name).decode("utf-8", "backslashreplace"))


def data_files(path: AnyPath, where: str, entry: dict[str, Any], label: str | None = None) -> list[File]:
    """The data files of a dataset by name: one file, or a folder narrowed by `folder`, `subset` and `split`."""
    split = entry.get("split", "train")
    if path.is_file():
        if split != "train":
            raise UsageError(
                f"{where}/split",
                f'one file is one split, "train"; found {split!r}',
                "Name the folder of all splits.",
            )
        return [File(path, label or path.name)]
    if not path.is_dir():
        if isinstance(path, StorePath):
            raise no_such(path)
        raise InputError(
            str(path),
            f"no such file or folder (from {where})",
            "Check file_name; it is relative to its registry.",
        )
    root = path / entry["folder"] if entry.get("folder") else path
    inside = root.rglob("*")
    found = sorted(p for p in inside if is_data(p) and p.name != "dataset_info.json" and p.is_file())
    if subset := entry.get("subset"):
        found = [
            p for p in found if subset in (*_below(root, p).parts[:-1], p.name.split(".")[0], p.name.split("-")[0])
        ]
    if not found:
        raise InputError(
            str(root),
            f"no data file in it (from {where})",
            "Data files are .json .jsonl .csv .parquet .arrow .xlsx .txt, also .gz and .zst.",
        )
    found = _of_split(found, split, where)
    kept.prefetch(p for p in found if isinstance(p, StorePath))
    kinds = {open_source(p).kind for p in found}
    if len(kinds) > 1:
        raise UsageError(
            where,
            f"expected files of one type, found {', '.join(sorted(kinds))}",
            "Move them apart; on the command line, NAME='DIR/*.csv' names those of one type.",
        )
    return [File(p, f"{label or path.name}/{readable(_below(path, p).as_posix())}") for p in found]


def _below(folder: AnyPath, path: AnyPath) -> PurePath:
    """The path relative to a folder that it is in."""
    top, place = (one.key if isinstance(one, StorePath) else one for one in (folder, path))
    return place.relative_to(top)


_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval"),
}


def _of_split(files: list[AnyPath], split: str, where: str) -> list[AnyPath]:
    """The files of a split: those named or in a folder named exactly like it, else by the words in their names.

    Files that name no split are all of "train".
    """
    exact = [p for p in files if split in (re.split(r"[-.]", p.name)[0], p.parent.name)]
    if exact:
        return exact

    def words(path: Path) -> set[str]:
        text = path.as_posix().lower()
        for sign in "-_./ ":
            text = text.replace(sign, " ")
        return set(text.split())

    known = {word: name for name, group in _SPLIT_WORDS.items() for word in group}
    named = [p for p in files if words(Path(p.name)) & {*known, split}]
    if not named and split == "train":
        return files
    wanted = set(_SPLIT_WORDS.get(split, (split,)))
    chosen = [p for p in named if words(Path(p.name)) & wanted]
    if not chosen:
        raise UsageError(f"{where}/split", f"no file of split {split!r} among {', '.join(p.name for p in files[:6])}")
    return chosen


def is_data(path: AnyPath) -> bool:
    """Whether the name of a file says that it holds rows."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    suffixes = (
        ".json",
        ".jsonl",
        ".ndjson",
        ".csv",
        ".tsv",
        ".parquet",
        ".arrow",
        ".feather",
        ".xlsx",
        ".txt",
    )
    return name.endswith(suffixes) and not name.startswith(".")
