"""The output folder: written under a lock, published by renames with the manifest last, opened and verified.

Without a manifest there is no dataset. While a new set is written the old one stays whole; it is replaced only when
everything of the new one is on disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import IO

from schemas.arrow import MANIFEST, SPLITS
from schemas.disk import flush
from schemas.errors import InputError, LockedError, UsageError
from schemas.manifest import Manifest, sealed
from schemas.stores import AnyPath

OWN = (*SPLITS, "tokenizer", "rejects.jsonl", "README.md", MANIFEST)
"""What a published folder holds; publishing replaces these and touches nothing else."""
_LOCK, _PARTIAL = ".lock", ".partial"
_OLD, _REPLACED = ".old", ".replaced"
"""Where the old set is while a new one takes its place: until all of it is moved aside, and then."""


class Output:
    """A folder being written. Use as a context manager: it holds the lock and removes what was not published."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.partial = folder, folder / _PARTIAL
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
            self._put_back()  # what a killed run took away
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
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                    self._lock = lock
                    return
            except FileNotFoundError:
                pass  # the holder before us removed its lock file between our open and our lock: take a new one
            except BlockingIOError:
                lock.close()
                raise
            lock.close()

    def _put_back(self) -> None:
        """Put the old set back in its place, unless the new one is in it. Whatever ends this, it can be done again."""
        old, replaced = self.folder / _OLD, self.folder / _REPLACED
        if replaced.is_dir() and (self.folder / MANIFEST).exists():
            shutil.rmtree(replaced)
        elif replaced.is_dir():
            for name in OWN:  # of the new set
                _remove(self.folder / name)
            replaced.rename(old)
        if old.is_dir():
            for name in OWN:  # the manifest last
                if os.path.lexists(old / name):
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
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say which file it was
            what = f"cannot be written: {error.strerror or error}"
            raise InputError(str(self.folder), what, "Nothing was published.") from error

    def publish(self, manifest: Manifest) -> None:
        """Put everything in place of the old set, the manifest with its own digest last.

        The old set is moved aside until then, so that a run that ends in between can put it back.
        """
        (self.partial / MANIFEST).write_bytes(sealed(manifest))
        for path in self.partial.rglob("*"):
            flush(path)
        old = self.folder / _OLD
        old.mkdir()
        for name in reversed(OWN):  # the manifest first
            if os.path.lexists(self.folder / name):
                (self.folder / name).rename(old / name)
                flush(self.folder)
        old.rename(self.folder / _REPLACED)
        for name in OWN:
            if name != MANIFEST and (self.partial / name).exists():
                (self.partial / name).rename(self.folder / name)
        flush(self.folder)
        (self.partial / MANIFEST).rename(self.folder / MANIFEST)
        flush(self.folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_foreign(folder: Path) -> None:
    """Raise if the folder holds files and is not a set of ours: `-o` must never empty somebody's folder."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder}", "expected a folder, found a file")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    left_over = names & {_LOCK, _PARTIAL} and names <= {*OWN, _LOCK, _PARTIAL, _OLD, _REPLACED} - {MANIFEST}
    if names and not left_over and not ((folder / MANIFEST).is_file() and is_ours((folder / MANIFEST).read_bytes())):
        raise foreign(folder, names)


def foreign(folder: AnyPath, names: set[str]) -> UsageError:
    """Return the error for a folder that holds something else."""
    what = f"the folder is not empty and holds no compiled set (found {min(names)!r})"
    return UsageError(f"-o {folder}", what, "Choose a new folder; nothing in this one was touched.")


def is_ours(manifest: bytes) -> bool:
    """Return whether this is a manifest of a compiled set, of any version: others have a manifest.json too."""
    try:
        found = json.loads(manifest)
    except ValueError:
        return False
    return isinstance(found, dict) and {"format_version", "kind", "splits", "balance"} <= set(found)
