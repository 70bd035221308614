"""The output folder: a set is written under a lock, and published by renames, the manifest last.

1. The new set is written into `.partial`, while the old one stays whole.
2. When all of it is on disk, the old set is moved into `.old`, its manifest first; then `.old` becomes `.replaced`.
3. The new files are moved into place, the manifest last: without a manifest there is no set.

A run that ends in between puts the old set back, and so does the next run after a kill: from `.old` what was moved
aside, from `.replaced` the whole set.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from schemas import disk
from schemas.arrow import EMBEDDED, MANIFEST, SPLITS, TEST
from schemas.errors import InputError, LockedError, UsageError
from schemas.manifest import Manifest, sealed
from schemas.places import LINES
from schemas.stores import AnyPath

OWN = (*SPLITS, "tokenizer", "rejects.jsonl", LINES, "README.md", MANIFEST)
"""The names in a published folder. Publishing replaces these, and images that rows held, and touches nothing else."""
EMBEDDED_FILE = re.compile(rf"{EMBEDDED}/[0-9a-f]{{2}}/[0-9a-f]{{64}}\.[a-z]+")
_LOCK, _PARTIAL = ".lock", ".partial"
_OLD, _REPLACED = ".old", ".replaced"
"""Where the old set is while a new one takes its place: while it is moved aside, and after that."""


class Output:
    """A folder that is being written: a context manager that holds the lock and removes what was not published."""

    def __init__(self, folder: Path, say: Callable[[str], object]) -> None:
        self.folder, self.partial, self._say = folder, folder / _PARTIAL, say
        self._lock: IO[str] | None = None
        self._created = False

    def __enter__(self) -> Output:
        _refuse_foreign(self.folder)
        try:
            self._created = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except BlockingIOError:
            raise LockedError(
                str(self.folder), "another compile is writing it", "Wait for it, or choose another -o folder."
            ) from None
        except OSError as error:
            raise InputError(
                str(self.folder), f"cannot be written: {error.strerror}", "Choose another -o folder."
            ) from error
        try:
            self._put_back()  # what a killed run moved aside
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir()
        except OSError:
            self.__exit__(None, None, None)
            raise
        return self

    def _take_lock(self) -> None:
        path = self.folder / _LOCK
        while True:
            lock = path.open("w")
            try:
                disk.lock(lock.fileno(), self.folder, self._say)
                if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                    self._lock = lock
                    return
            except FileNotFoundError:
                pass  # the last holder removed its lock file between our open and our lock: make a new one
            except BlockingIOError:
                lock.close()
                raise
            lock.close()

    def _put_back(self) -> None:
        """Put the old set back, unless the new one is in its place. If this is interrupted, it can be done again."""
        old, replaced = self.folder / _OLD, self.folder / _REPLACED
        if replaced.is_dir() and (self.folder / MANIFEST).exists():
            shutil.rmtree(replaced)
        elif replaced.is_dir():
            for name in _own(self.folder):  # of the new set
                _remove(self.folder / name)
            replaced.rename(old)
        if old.is_dir():
            for name in _own(old):  # the manifest last
                (old / name).rename(self.folder / name)
            old.rmdir()

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._put_back()
        shutil.rmtree(self.partial, ignore_errors=True)
        (self.folder / _LOCK).unlink(missing_ok=True)
        if self._lock:
            self._lock.close()
        if self._created:
            with contextlib.suppress(OSError):  # not empty: it was published
                self.folder.rmdir()
        if isinstance(error, OSError) and error.filename is None:  # the error of a full disk names no file
            what = f"cannot be written: {error.strerror or error}"
            raise InputError(str(self.folder), what, "Nothing was published.") from error

    def publish(self, manifest: Manifest) -> None:
        """Replace the old set by what was written, the manifest with its own digest last."""
        if (self.partial / EMBEDDED).exists() and not _is_embedded(self.folder / EMBEDDED):
            what = f"its folder {EMBEDDED} holds something else, and the images of the set would go there"
            raise UsageError(f"-o {self.folder}", what, "Choose another -o folder; what was compiled is kept.")
        (self.partial / MANIFEST).write_bytes(sealed(manifest))
        for path in self.partial.rglob("*"):
            disk.flush(path)
        if (self.partial / TEST).exists() and os.path.lexists(self.folder / TEST) and not _is_split(self.folder / TEST):
            what = f"its folder {TEST} holds something else, and the split {TEST} of the set would go there"
            raise UsageError(f"-o {self.folder}", what, "Choose another -o folder; what was compiled is kept.")
        old = self.folder / _OLD
        old.mkdir()
        for name in reversed(_own(self.folder)):  # the manifest first
            (self.folder / name).rename(old / name)
            disk.flush(self.folder)
        old.rename(self.folder / _REPLACED)
        for name in (EMBEDDED, *OWN):
            if name != MANIFEST and (self.partial / name).exists():
                (self.partial / name).rename(self.folder / name)
        disk.flush(self.folder)
        (self.partial / MANIFEST).rename(self.folder / MANIFEST)
        disk.flush(self.folder)


def _own(folder: Path) -> list[str]:
    """The names in a folder that are a set's, its manifest last."""
    return [
        name for name in (EMBEDDED, *OWN)
        if os.path.lexists(folder / name)
        and (name != EMBEDDED or _is_embedded(folder / name)) and (name != TEST or _is_split(folder / name))
    ]  # fmt: skip


def _is_split(folder: Path) -> bool:
    """Whether a folder holds shards and nothing else. Only few sets have a split test: the name may be another's."""
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return bool(files) and all(re.fullmatch(r"shard-\d+\.arrow", name) for name in files)


def _is_embedded(folder: Path) -> bool:
    """Whether a folder holds nothing but images that rows held, by their names, or does not exist."""
    if not os.path.lexists(folder):
        return True
    if folder.is_symlink() or not folder.is_dir():
        return False
    files = (path.relative_to(folder.parent).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return all(map(EMBEDDED_FILE.fullmatch, files))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_foreign(folder: Path) -> None:
    """UsageError if the folder holds files and no compiled set: `-o` never empties somebody's folder."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder}", "expected a folder, found a file")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    left_over = names & {_LOCK, _PARTIAL} and names <= {EMBEDDED, *OWN, _LOCK, _PARTIAL, _OLD, _REPLACED} - {MANIFEST}
    if names and not left_over and not ((folder / MANIFEST).is_file() and is_ours((folder / MANIFEST).read_bytes())):
        raise foreign(folder, names)


def foreign(folder: AnyPath, names: set[str]) -> UsageError:
    """The error for a folder that holds something else."""
    what = f"the folder is not empty and holds no compiled set (found {min(names)!r})"
    return UsageError(f"-o {folder}", what, "Choose a new folder; nothing in this one was touched.")


def is_ours(manifest: bytes) -> bool:
    """Whether this is the manifest of a compiled set, of any version: other programs write a manifest.json too."""
    try:
        found = json.loads(manifest)
    except ValueError:
        return False
    return isinstance(found, dict) and {"format_version", "kind", "splits", "balance"} <= set(found)
