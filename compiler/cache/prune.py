"""Listing, checking and pruning the cache.

An entry is an object (`KEY.arrow` and its record `KEY.json`) or a record alone: a template's certificate, the check of
a fast encoder. A record's time of change is when it was last used. Images that rows held are files of their own, which
stay as long as an object lists them. A compile holds a shared lock on the cache from beginning to end; removing takes
an exclusive one, so that nothing is removed that a compile uses.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.cache import halves, objects, records
from schemas import disk, lease
from schemas.arrow import EMBEDDED
from schemas.errors import InputError, LockedError

_LOCK = ".lock"
_PIPED = "stdin"
_HALF = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{40}\.(?:arrow|json)|[0-9a-f]{64}\.[a-z]+)-\w+")
_OBJECT = re.compile(r"[0-9a-f]{40}\.arrow|\.[0-9a-f]{40}\.(arrow|json)\.\w+")
_IMAGE = re.compile(rf"{EMBEDDED}/[0-9a-f]{{2}}/(?:[0-9a-f]{{64}}\.[a-z]+|\.[0-9a-f]{{64}}\.[a-z]+\.\w+)")
_PIPED_FILE = re.compile(r"[0-9a-f]{32}\.\w+|\.\w+\.json")
"""The names that runs give, those of earlier versions too. A file with another name is not the cache's, and stays."""
_DAY = 86_400.0
_OUTGOING = "outgoing"
"""Sets that are being put into an object store, see compiler/sets/store.py."""


@dataclass(frozen=True)
class Entry:
    """One record of the cache; of an object with its rows."""

    key: str
    kind: str
    """object, record, or damaged (a record that cannot be read)."""
    bytes: int
    used: float
    """When it was last used, in seconds since 1970."""
    usable: bool
    """Whether this code with these libraries made it; otherwise this code never uses it."""
    made_by: dict[str, str]
    dataset: str | None
    rows: int
    embedded: dict[str, int] = field(default_factory=dict)
    """The size of every image that its rows held, by its place in the cache. Entries may share them."""


@contextmanager
def in_use(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep the cache from being pruned. Waits while it is being pruned.

    Where there is no lock file and none can be made, nobody has pruned: that makes one.
    """
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        file = disk.open_lock(folder / _LOCK, write=False)
    except OSError:
        yield
        return
    try:
        _remove_halves(folder, file)
        try:
            disk.lock(file, folder, say, shared=True)
        except BlockingIOError:
            say(f"waiting until {folder} is pruned")
            disk.lock(file, folder, say, shared=True, wait=True)
        yield
    finally:
        os.close(file)
        lease.give_back_all(folder)


def _remove_halves(folder: Path, lock: int) -> None:
    """Remove the files that killed runs had not finished, if no run uses the cache.

    Those of other machines may be being written where their locks do not reach this one: they are removed when old.
    """
    found = [path for path in halves_of(folder) if _HALF.fullmatch(path.name)]
    if not found:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    for path in found:
        with suppress(OSError):
            if path.name.startswith(halves.machine()) or time.time() - path.lstat().st_mtime > _DAY:
                path.unlink()


def halves_of(folder: Path) -> Iterator[Path]:
    """Half-written files, of runs that are at it or were killed."""
    for kind in ("objects", EMBEDDED):
        yield from (folder / kind / halves.HALVES).glob("*")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the cache exclusively; LockedError while a compile uses it."""
    try:
        lock = disk.open_lock(folder / _LOCK)
    except OSError as error:
        raise InputError(str(folder), f"the cache cannot be written: {error.strerror}") from error
    try:
        try:
            disk.lock(lock, folder, lambda text: print(text, file=sys.stderr))
        except BlockingIOError as error:
            what = "a compile is using the cache"
            raise LockedError(str(folder), what, "Wait for it; nothing was removed.") from error
        yield
    finally:
        os.close(lock)
        lease.give_back_all(folder)


def entries(folder: Path) -> list[Entry]:
    """All entries of the cache, least recently used first."""
    return sorted((_entry(path) for path in _records(folder)), key=lambda entry: (entry.used, entry.key))


def _records(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise InputError(str(folder), "no such folder", "Name the cache with --cache; compile makes one.")
    return (folder / "objects").glob("??/*.json")


def _entry(path: Path) -> Entry:
    found = path.stat()
    rows = path.with_suffix(".arrow")
    size = found.st_size + (rows.stat().st_size if rows.exists() else 0)
    record = records.read_record(path)
    if record is None:
        return Entry(path.stem, "damaged", size, found.st_mtime, False, {}, None, 0)
    kind = "object" if "rows_xxh3" in record else "record"
    made_by = record.get("made_by", {})
    return Entry(
        path.stem, kind, size, found.st_mtime, made_by == records.maker(), made_by,
        record.get("dataset"), record.get("counts", {}).get("read", 0), record.get("embedded", {}),
    )  # fmt: skip


def left_over(folder: Path, found: list[Entry]) -> list[Path]:
    """Files that runs left: half-written ones, rows without a record, sets not yet put into a store, piped input.

    Also images that none of the entries `found` lists.
    """
    inside = (path for path in (folder / "objects").glob("??/*") if _OBJECT.fullmatch(path.name))
    rows = [
        path for path in inside
        if path.name.startswith(".") or (path.suffix == ".arrow" and not path.with_suffix(".json").exists())
    ]  # fmt: skip
    listed = images_of(found)
    images = (path.relative_to(folder).as_posix() for path in (folder / EMBEDDED).glob("??/*"))
    unused = [folder / uri for uri in images if _IMAGE.fullmatch(uri) and uri not in listed]
    outgoing = (path for path in (folder / _OUTGOING).glob("*") if re.fullmatch("[0-9a-f]{16}", path.name))
    piped = (path for path in (folder / _PIPED).glob("*") if _PIPED_FILE.fullmatch(path.name))
    halves = (path for path in halves_of(folder) if _HALF.fullmatch(path.name))
    return sorted([*rows, *halves, *unused, *outgoing, *piped])


def images_of(found: Iterable[Entry]) -> dict[str, int]:
    """The size of every image that the entries list, by its place in the cache; each is there once."""
    return {uri: size for entry in found for uri, size in entry.embedded.items()}


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def verify(folder: Path, each: Callable[[list[Path]], Any] = iter) -> dict[str, str]:
    """Find damage: file -> what is wrong with it. `each` may show progress over the records."""
    wrong: dict[str, str] = {}
    images: set[str] = set()
    for path in each(sorted(_records(folder))):
        record = records.read_record(path)
        if record is None:
            wrong[str(path)] = "the record is damaged"
        elif "rows_xxh3" in record and not objects.is_whole(path.with_suffix(".arrow"), record["rows_xxh3"]):
            wrong[str(path.with_suffix(".arrow"))] = "the rows are missing or damaged"
        images |= record.get("embedded", {}).keys() - images if record else set()
    for uri in sorted(images):
        if not objects.is_named_by_digest(folder / uri):
            wrong[str(folder / uri)] = "the image is missing or damaged"
    return wrong


def remove_damaged(folder: Path, each: Callable[[list[Path]], Any] = iter) -> dict[str, str]:
    """Remove damaged entries; return what `verify` found."""
    with _alone(folder):
        wrong = verify(folder, each)
        for path in map(Path, wrong):
            if path.suffix in (".json", ".arrow"):
                objects.remove(folder, path.stem)
            else:
                path.unlink(missing_ok=True)  # its objects are not usable without it
    return wrong


def choose(
    found: list[Entry], *, unused_for: float | None = None, keep: int | None = None, other_versions: bool = False
) -> list[Entry]:
    """Choose the entries to remove, of entries that are sorted least recently used first.

    Chosen are damaged records, entries unused for `unused_for` seconds, entries that this version cannot use
    (`other_versions`), and of the rest the least recently used until at most `keep` bytes are left.
    """
    now = time.time()
    chosen = [
        entry for entry in found
        if entry.kind == "damaged"
        or (unused_for is not None and now - entry.used > unused_for)
        or (other_versions and not entry.usable)
    ]  # fmt: skip
    keys = {entry.key for entry in chosen}
    rest = [entry for entry in found if entry.key not in keys]
    left = sum(entry.bytes for entry in rest) + sum(images_of(rest).values())
    users = Counter(uri for entry in rest for uri in entry.embedded)
    for entry in rest:
        if keep is None or left <= keep:
            break
        chosen.append(entry)
        left -= entry.bytes + sum(size for uri, size in entry.embedded.items() if users[uri] == 1)
        users.subtract(entry.embedded.keys())
    return chosen


def prune(folder: Path, *, dry_run: bool, **wanted: Any) -> tuple[list[Entry], list[Path], int]:
    """Remove what `choose` chooses and what killed runs left; return both, and the bytes that this frees (or would)."""
    with nullcontext() if dry_run else _alone(folder):
        found = entries(folder)
        chosen, rest = choose(found, **wanted), left_over(folder, found)
        keys = {entry.key for entry in chosen}
        kept = images_of(entry for entry in found if entry.key not in keys)
        images = {uri: size for uri, size in images_of(chosen).items() if uri not in kept}
        freed = sum(entry.bytes for entry in chosen) + sum(images.values()) + sum(map(size_of, rest))
        if not dry_run:
            for entry in chosen:
                objects.remove(folder, entry.key)
            for path in (*(folder / uri for uri in images), *rest):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return chosen, rest, freed
