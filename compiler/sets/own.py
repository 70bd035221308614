"""What in a folder is a set's own: only that is moved or removed, and only scratch folders with a mark are emptied.

The mark is the lock file of a run. It is in OUT while the run is at it, and in every folder that the run makes.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from schemas import disk, own
from schemas.arrow import EMBEDDED, ENCODERS, MANIFEST, SPLITS
from schemas.errors import UsageError
from schemas.lease import LEASE
from schemas.manifest import REPLACED
from schemas.places import LINES
from schemas.stores import AnyPath

OWN = (*SPLITS, "tokenizer", "rejects.jsonl", LINES, "README.md", ENCODERS, MANIFEST)
"""The names in a published folder. Publishing replaces these, and images that rows held, and touches nothing else."""
EMBEDDED_FILE = re.compile(rf"{EMBEDDED}/[0-9a-f]{{2}}/[0-9a-f]{{64}}\.[a-z]+")
_SHARD = re.compile(rf"({'|'.join(SPLITS)})/shard-\d+\.arrow")
LOCK, PARTIAL, OLD = ".lock", ".partial", ".old"
SCRATCH = {LOCK, PARTIAL, OLD, REPLACED}
_MARK = b"finetune-data-compiler writes a set here: "


def is_ours(manifest: bytes) -> bool:
    """Whether this is the manifest of a compiled set, of any version: other programs write a manifest.json too."""
    try:
        found = json.loads(manifest)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"format_version", "kind", "splits", "balance"} <= set(found)


def refuse_foreign(folder: Path) -> None:
    """UsageError if the folder holds files and no compiled set: `-o` never empties somebody's folder."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder}", "expected a folder, found a file")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names = {name for name in names if not name.startswith(LEASE)}
    left_over = names & {LOCK, PARTIAL} and names <= {EMBEDDED, *OWN, *SCRATCH} - {MANIFEST}
    if names and not left_over and not is_ours(_content(folder / MANIFEST)):
        raise foreign(folder, names)


def foreign(folder: AnyPath, names: set[str]) -> UsageError:
    """The error for a folder that holds something else."""
    what = f"the folder is not empty and holds no compiled set (found {min(names)!r})"
    return UsageError(f"-o {folder}", what, "Choose a new folder; nothing in this one was touched.")


def is_split(folder: Path) -> bool:
    """Whether a folder holds shards and nothing else. Only few sets have a split test: the name may be another's."""
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return bool(files) and all(re.fullmatch(r"shard-\d+\.arrow", name) for name in files)


def is_embedded(folder: Path) -> bool:
    """Whether a folder holds nothing but images that rows held, by their names, or does not exist."""
    if not os.path.lexists(folder):
        return True
    if folder.is_symlink() or not folder.is_dir():
        return False
    files = (path.relative_to(folder.parent).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return all(map(EMBEDDED_FILE.fullmatch, files))


def put_mark(descriptor: int, path: Path, folder: Path) -> None:
    """Write the mark into an open lock file; UsageError if it holds something else."""
    found = os.pread(descriptor, len(_MARK), 0)
    if found and found != _MARK:
        what = "expected a lock file of a compile, found another file of that name"
        raise UsageError(str(path), what, "Move it away, or choose another -o folder.")
    mark = _MARK + f"{folder.resolve()}, process {os.getpid()}\n".encode()
    os.pwrite(descriptor, mark, 0)  # in this order a kill leaves a mark
    os.ftruncate(descriptor, len(mark))


def make_scratch(folder: Path, target: Path) -> int:
    """Make a folder with the mark; return its lock file, open."""
    folder.mkdir()
    descriptor = disk.open_lock(folder / LOCK)
    put_mark(descriptor, folder / LOCK, target)
    return descriptor


def is_scratch(folder: Path) -> bool:
    """Whether a folder has the mark, or nothing in it but an empty lock file: a run of ours made it."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if _content(folder / LOCK).startswith(_MARK):
        return True
    rest = list(folder.iterdir())
    return not rest or (rest == [folder / LOCK] and not rest[0].is_symlink() and rest[0].lstat().st_size == 0)


def check_scratch(folder: Path) -> bool:
    """Whether there is such a folder; UsageError if it is not a run's."""
    if not os.path.lexists(folder):
        return False
    if not is_scratch(folder):
        what = "a compile keeps its files under this name, and what is there has no mark of one"
        raise UsageError(str(folder), what, "Move it away, or choose another -o folder; nothing was touched.")
    return True


def files_of_set(folder: Path, *manifests: Path) -> list[str]:
    """The files of a set in a folder, its manifest last: those that its manifest or other `manifests` name.

    Shards and images are a set's by their names.
    """
    named: set[str] = {"rejects.jsonl", LINES, "README.md", ENCODERS}
    for manifest in (folder / MANIFEST, *manifests):
        if is_ours(data := _content(manifest)):
            named |= {name for name in map(str, json.loads(data).get("files", ())) if _is_below(name)}
    found = []
    for top in (EMBEDDED, *OWN):
        path = folder / top
        inside = [path] if path.is_file() or path.is_symlink() else sorted(path.rglob("*")) if path.is_dir() else []
        for file in inside:
            name = file.relative_to(folder).as_posix()
            is_own = name in named or _SHARD.fullmatch(name) or EMBEDDED_FILE.fullmatch(name)
            if is_own and (file.is_symlink() or not file.is_dir()):
                found.append(name)
    if is_ours(_content(folder / MANIFEST)):
        found.append(MANIFEST)
    return found


def foreign_files(folder: Path) -> bool:
    """Whether a folder holds more than a set and what runs leave: it is not exchanged then."""
    own = set(files_of_set(folder))
    for path in folder.iterdir():
        if path.name in SCRATCH:
            continue
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
        for file in inside:
            if (file.is_symlink() or not file.is_dir()) and file.relative_to(folder).as_posix() not in own:
                return True
    return False


def move(source: Path, target: Path, names: Iterable[str]) -> None:
    """Move files into another folder, one by one, in this order; folders that become empty are removed."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(target / name)
    remove(source, ())


def link(source: Path, target: Path, names: Iterable[str]) -> None:
    """Give files a second name each, in another folder."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(source / name, target / name, follow_symlinks=False)


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files, in this order, and the folders of a set that are empty then."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for top in (EMBEDDED, *SPLITS, "tokenizer"):
        path = folder / top
        if path.is_dir() and not path.is_symlink():
            for inside in sorted((one for one in path.rglob("*") if one.is_dir()), reverse=True):
                _remove_empty(inside)
            _remove_empty(path)


def discard(folder: Path, *manifests: Path) -> list[str]:
    """Remove a scratch folder with the set in it, its mark last; what else is in it stays, and is named."""
    check_scratch(folder)
    if is_scratch(folder / PARTIAL):
        own.remove(folder / PARTIAL, LOCK)
    remove(folder, files_of_set(folder, *manifests))
    rest = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if not rest:
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()
    return rest


def _remove_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts[:1] in {("tokenizer",), (name,)}


def _content(path: Path) -> bytes:
    """What a regular file holds; nothing where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
