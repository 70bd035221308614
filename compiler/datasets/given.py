"""The datasets of the command line: FILE, FOLDER, 'PATTERN' and - for the standard input, each also as NAME=.

A dataset is called by the stem of its file or by its folder. Where two would have one name, as much of their paths is
added as tells them apart, and a note says so.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from compiler.datasets.files import File, data_files, is_data, readable
from compiler.datasets.piped import FOLDER, keep_piped
from schemas.arrow import TRAIN
from schemas.errors import InputError, UsageError
from schemas.stores import SCHEME, AnyPath, StorePath, path_of

PIPED = "-"
"""The standard input."""
_NAMED = re.compile(r"(?P<name>[^/=]+)=(?P<place>.+)", re.DOTALL)
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Given:
    """A dataset of the command line: its files, and what the user should know about them."""

    shown: str
    """As it was given, in readable text."""
    files: list[File]
    folder: AnyPath
    """The folder that references to media start from."""
    notes: list[str] = field(default_factory=list)
    split: str = TRAIN
    """The split that its rows are for."""


@dataclass(frozen=True)
class _Place:
    """One path of the command line, with the name that was given for it."""

    text: str
    name: str | None
    files: tuple[str, ...] = ()
    """The files of a pattern."""


def given_datasets(texts: Sequence[tuple[str, str]], cache: Path) -> dict[str, Given]:
    """The datasets of the command line by name, in order, from (text, split) pairs.

    UsageError if a name or a path is given twice.
    """
    found = [(place, split) for text, split in texts for place in _places(text)]
    places = [place for place, _ in found]
    if sum(place.text == PIPED for place in places) > 1:
        raise UsageError(PIPED, "is named twice", "A pipe is read once; --mix NAME#ROWS repeats rows.")
    names = _names(places)
    return {
        name: replace(_given(place, note, cache), split=split)
        for (place, split), (name, note) in zip(found, names, strict=True)
    }


def _places(text: str) -> list[_Place]:
    """The places that an argument means: one, or every file of a pattern without a name, as in a shell."""
    if text == PIPED or text.startswith(SCHEME) or _exists(text):
        return [_Place(text, None)]
    named = _NAMED.fullmatch(text)
    name, place = (named["name"].strip(), named["place"]) if named else (None, text)
    if name == "":
        raise UsageError(readable(text), "the name before '=' is empty", "Write NAME=PATH.")
    name = None if name is None else readable(name)
    if place == PIPED or place.startswith(SCHEME) or _exists(place) or not _MAGIC.search(place):
        return [_Place(place, name)]
    files = sorted(glob.glob(place, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
    if not files:
        raise InputError(readable(place), "no file matches this pattern", "Check it with ls.")
    if name is None:
        return [_Place(file, None) for file in files]
    folders = [file for file in files if Path(file).is_dir()]
    if folders:
        hint = f"Let it match files only, such as {readable(place)}/*.jsonl."
        raise UsageError(readable(text), f"the pattern matches the folder {readable(folders[0])}", hint)
    return [_Place(place, name, tuple(files))]


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or a NUL byte: whoever opens it says so
        return False


def _names(places: Sequence[_Place]) -> list[tuple[str, str]]:
    """(Name, note or "") of each place, no two names equal."""
    chosen = Counter(place.name for place in places if place.name is not None)
    for name, times in chosen.items():
        if times > 1:
            hint = f"One dataset of several files is a folder or a pattern: '{name}=DIR/*.jsonl'."
            raise UsageError(f"{name}=", f"{times} datasets of the command line are called {name!r}", hint)
    open_ = [place for place in places if place.name is None]
    stems = [_stem(place.text) for place in open_]
    taken = {*chosen, *(stem for stem, times in Counter(stems).items() if times > 1)}
    longer = _told_apart(
        [place.text for place, stem in zip(open_, stems, strict=True) if stem in taken], {*chosen, *stems}
    )
    names: list[tuple[str, str]] = []
    for place in places:
        if place.name is not None:
            names.append((place.name, ""))
            continue
        stem = _stem(place.text)
        name = longer.get(place.text, stem)
        note = f"called so because another dataset is called {stem!r} too; NAME={readable(place.text)} names it"
        names.append((name, note if name != stem else ""))
    twice = [name for name, times in Counter(name for name, _ in names).items() if times > 1]
    if twice:
        hint = f"Name one of them: OTHER={twice[0]}."
        raise UsageError(twice[0], "two datasets of the command line have this name", hint)
    return names


def _stem(text: str) -> str:
    """The name of a file without any suffix, or the name of a folder."""
    path = path_of(text)
    if text == PIPED:
        return FOLDER
    if isinstance(path, Path) and path.is_dir():
        return readable(path.resolve().name or "data")
    return readable(path.name.split(".")[0] or text)


def _told_apart(texts: Sequence[str], taken: set[str]) -> dict[str, str]:
    """The shortest ends of paths that differ: a.csv and a.jsonl, or a/train and b/train."""
    if twice := [text for text, times in Counter(texts).items() if times > 1]:
        raise UsageError(readable(twice[0]), "is named twice", "Name it once; --mix NAME#ROWS repeats rows.")
    parts = {text: _parts(text) for text in texts}
    longest = max(map(len, parts.values()), default=0)
    ways = [(1, True), *((depth, suffix) for depth in range(2, longest + 1) for suffix in (False, True))]
    for depth, suffix in ways:
        ends = {text: "/".join((*one[-depth:-1], one[-1] if suffix else _stem(text))) for text, one in parts.items()}
        if len({*ends.values()}) == len(ends) and not taken & {*ends.values()}:
            return ends
    return {text: readable(text) for text in texts}


def _parts(text: str) -> tuple[str, ...]:
    path = path_of(text)
    if isinstance(path, StorePath):
        return path.key.parts
    return tuple(readable(part) for part in path.absolute().parts)


def _given(place: _Place, note: str, cache: Path) -> Given:
    """The files of a place."""
    notes = [note] if note else []
    shown = readable(place.text)
    if place.files:
        files = [File(Path(file), readable(file)) for file in place.files]
        return Given(shown, files, files[0].path.parent, notes)
    if place.text == PIPED:
        return Given(PIPED, [File(keep_piped(cache), PIPED)], Path(), notes)
    path = path_of(place.text)
    if isinstance(path, StorePath):
        if not path.name or (not path.suffix and path.is_dir()):
            return Given(shown, data_files(path, path.uri, {}, label=path.uri), path, notes)
        return Given(shown, [File(path, path.uri)], path.parent, notes)
    if not path.is_dir():
        return Given(shown, [File(path, shown)], path.parent, notes)
    files = data_files(path, shown, {}, label=shown.rstrip("/") or "/")
    return Given(shown, files, path, [*notes, *_left_out(path, files)])


def _left_out(folder: Path, files: Sequence[File]) -> list[str]:
    """Notes on what a folder holds and the dataset does not: files of another split, files that hold no rows."""
    used = {file.path for file in files}
    inside = [path for path in folder.rglob("*") if path not in used and not path.name.startswith(".")]
    left = sorted(path for path in inside if path.is_file())
    splits = [readable(path.relative_to(folder).as_posix()) for path in left if is_data(path)]
    other = Counter(path.suffix or path.name for path in left if not is_data(path))
    notes = [f"{len(files)} files of the folder are read"] if len(files) > 1 else []
    if splits:
        shown = ", ".join(splits[:4]) + (", ..." if len(splits) > 4 else "")
        notes.append(f"{len(splits)} data files of it are not read, as they are not of the split train: {shown}")
    if other:
        shown = ", ".join(f"{times} {readable(suffix)}" for suffix, times in sorted(other.items())[:6])
        notes.append(f"files of it that are no data files: {shown}")
    return notes
