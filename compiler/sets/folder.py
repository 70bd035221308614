"""The output folder: a set is written under a lock, and takes the place of the old one in one step where it can.

1. The new set is written into `OUT/.partial`, while the old one stays whole.
2. When all of it is on disk, the folder is moved beside OUT, as `.OUT.partial`, and the two folders are exchanged.
3. The old set is removed.

Where two folders cannot be exchanged (the system or the file system has no such call, OUT is a mount point or this
process is in it, or holds more than a set), the files are moved:

2. Every file of the old set gets a second name in `.old`, which then becomes `.replaced`; the old manifest is removed.
3. The files are moved into their places, the manifest last; `.replaced` is removed.

Between the two manifests `.replaced` holds the old set, and readers open it there. The next run after a kill puts back
what is aside.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from compiler.sets.own import (
    EMBEDDED_FILE,
    LOCK,
    OLD,
    OWN,
    PARTIAL,
    check_scratch,
    discard,
    files_of_set,
    foreign,
    foreign_files,
    is_embedded,
    is_ours,
    is_scratch,
    is_split,
    link,
    make_scratch,
    move,
    put_mark,
    refuse_foreign,
    remove,
)
from schemas import disk, lease, own
from schemas.arrow import EMBEDDED, MANIFEST, TEST
from schemas.errors import InputError, LockedError, UsageError
from schemas.manifest import REPLACED, Manifest, sealed

__all__ = ["EMBEDDED_FILE", "LOCK", "OWN", "Output", "foreign", "is_ours"]


class Output:
    """A folder that is being written: a context manager that holds the lock and removes what was not published."""

    def __init__(self, folder: Path, say: Callable[[str], object]) -> None:
        self.folder, self.partial, self._say = folder, folder / PARTIAL, say
        self._locks: list[int] = []
        self._created = self._published = False

    def __enter__(self) -> Output:
        refuse_foreign(self.folder)
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
            self._remove_partial()
            self._locks.append(make_scratch(self.partial, self.folder))
            disk.lock(self._locks[-1], self.partial, lambda _: None)
        except BaseException:
            self._release()
            raise
        return self

    def check(self) -> None:
        """Raise what entering would raise of the folder; nothing is made and no lock is taken."""
        refuse_foreign(self.folder)
        there = existing(self.folder)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = os.strerror(errno.EACCES if there.is_dir() else errno.ENOTDIR)
            raise InputError(str(self.folder), f"cannot be written: {why}", "Choose another -o folder.")
        for name in (PARTIAL, OLD, REPLACED):
            check_scratch(self.folder / name)
        self._check_links()

    def _check_links(self) -> None:
        for name in OWN:
            if (self.folder / name).is_symlink():
                what = f"{name} in it is a link, and nothing is written through links"
                raise UsageError(f"-o {self.folder}", what, "Remove the link, or choose another -o folder.")

    def _take_lock(self) -> None:
        path = self.folder / LOCK
        while True:
            lock = disk.open_lock(path)
            try:
                disk.lock(lock, self.folder, self._say)
                if os.fstat(lock).st_ino == path.stat(follow_symlinks=False).st_ino:
                    put_mark(lock, path, self.folder)
                    self._locks.append(lock)
                    return
            except FileNotFoundError:
                pass  # the last holder removed its lock file between our open and our lock: make a new one
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    @property
    def _aside(self) -> Path:
        """The folder beside OUT that is exchanged with it."""
        here = self.folder.resolve()
        return here.with_name(f".{here.name}{PARTIAL}")

    def _put_back(self) -> None:
        """Put the old set back, unless a set is in its place. If this is interrupted, it can be done again."""
        old, replaced = self.folder / OLD, self.folder / REPLACED
        if check_scratch(replaced):
            if not (self.folder / MANIFEST).exists():
                remove(self.folder, files_of_set(self.folder, self.partial / MANIFEST, replaced / MANIFEST))
                move(replaced, self.folder, files_of_set(replaced))
            self._discard(replaced)
        if check_scratch(old):  # second names of files that are in place, or files that were moved here
            names = files_of_set(old, self.folder / MANIFEST)
            move(old, self.folder, [name for name in names if not os.path.lexists(self.folder / name)])
            self._discard(old, self.folder / MANIFEST)
        if os.path.lexists(self._aside) and is_scratch(self._aside):
            self._discard(self._aside)

    def _discard(self, folder: Path, *manifests: Path) -> None:
        """Remove a scratch folder; a file in it that is no set's own is given back to OUT."""
        for name in discard(folder, *manifests):
            if not os.path.lexists(self.folder / name):
                (folder / name).rename(self.folder / name)
        if rest := discard(folder) if folder.exists() else []:
            self._say(f"{folder}: it is left, because it holds more than a set ({rest[0]!r})")

    def _remove_partial(self) -> None:
        if check_scratch(self.partial):
            own.remove(self.partial, LOCK)

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        state = "The set is published" if self._published else "Nothing was published"
        try:
            self._put_back()
            self._remove_partial()
        except OSError as failed:
            where = failed.filename or self.folder
            self._say(f"{where}: what is not needed any more cannot be removed ({failed.strerror}). {state}.")
        finally:
            self._release()
        if isinstance(error, OSError) and (error.filename is None or self._published):  # a full disk names no file
            what = f"cannot be written: {error.strerror or error}"
            raise InputError(str(self.folder), what, f"{state}.") from error

    def _release(self) -> None:
        """Give the lock back, and remove the folder if nothing was published into a new one."""
        with contextlib.suppress(OSError):
            (self.folder / LOCK).unlink(missing_ok=True)
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()
        lease.give_back_all(self.folder)
        if self._created:
            with contextlib.suppress(OSError):  # not empty: it was published
                self.folder.rmdir()

    def publish(self, manifest: Manifest) -> None:
        """Replace the old set by what was written, with its manifest, which gets its own digest."""
        for name in (EMBEDDED, TEST):
            is_free = is_embedded if name == EMBEDDED else _is_free_for_test
            if (self.partial / name).exists() and not is_free(self.folder / name):
                whose = "the images" if name == EMBEDDED else f"the split {TEST}"
                what = f"its folder {name} holds something else, and {whose} of the set would go there"
                raise UsageError(f"-o {self.folder}", what, "Choose another -o folder; what was compiled is kept.")
        self._check_links()
        (self.partial / MANIFEST).write_bytes(sealed(manifest))
        for path in (self.partial, *self.partial.rglob("*")):
            disk.flush(path)
        if not self._exchange():
            self._move()

    def _exchange(self) -> bool:
        """Exchange OUT with the new set's folder; whether that was possible."""
        here, aside = self.folder.resolve(), self._aside
        with contextlib.suppress(OSError):
            if Path.cwd().is_relative_to(here):
                return False
        if os.path.lexists(aside) or foreign_files(self.folder) or here.stat().st_uid != os.geteuid():
            return False
        try:
            shutil.copystat(here, self.partial)  # the mode, and what else the file system keeps of a folder
            os.utime(self.partial)
            if self.partial.stat().st_gid != here.stat().st_gid:
                os.chown(self.partial, -1, here.stat().st_gid)
            self.partial.rename(aside)
        except OSError:
            return False
        try:
            disk.exchange(aside, here)
        except OSError:
            aside.rename(self.partial)
            return False
        self._published = True
        disk.flush(here.parent)
        return True

    def _move(self) -> None:
        """Set the old set aside within OUT, and move the new files into their places, the manifest last."""
        old, replaced = self.folder / OLD, self.folder / REPLACED
        names = files_of_set(self.folder)
        os.close(make_scratch(old, self.folder))
        try:
            link(self.folder, old, names)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EINVAL):
                raise
            remove(old, names)  # no file can have two names here
            move(self.folder, old, reversed(names))
        disk.flush(old)
        old.rename(replaced)
        disk.flush(self.folder)
        remove(self.folder, reversed(names))  # the manifest first
        move(self.partial, self.folder, [name for name in files_of_set(self.partial) if name != MANIFEST])
        for name in (*OWN, EMBEDDED):
            if (self.folder / name).is_dir():
                disk.flush(self.folder / name)
        disk.flush(self.folder)
        (self.partial / MANIFEST).rename(self.folder / MANIFEST)
        self._published = True
        disk.flush(self.folder)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _is_free_for_test(folder: Path) -> bool:
    return not os.path.lexists(folder) or is_split(folder)
