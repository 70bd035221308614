"""Where the bytes of shards come from: a folder, memory-mapped; or an object store, through a bounded local cache."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from schemas.errors import InputError, IntegrityError
from schemas.manifest import files_of
from schemas.stores import AnyPath, StorePath, in_words

CACHE_BYTES = 32 * 2**30
"""The most that is kept of a set from an object store, for each process."""


class Store(Protocol):
    """Reads parts of a set's files."""

    def read(self, shard: dict[str, Any], offset: int, length: int, *, again: bool = False) -> pa.Buffer:
        """Return bytes of a shard, given by its entry in the manifest; `again`: not those that a cache has."""


def store_of(where: AnyPath, manifest: dict[str, Any]) -> Store:
    """Return what reads the shards of the set at `where`."""
    folder = files_of(where, manifest)
    return _Remote(folder) if isinstance(folder, StorePath) else _Folder(folder)


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cache  # noqa: B019  # one mapping a shard, for as long as the run
    def _map(self, file: str, size: int) -> pa.Buffer:
        path = self.folder / file
        try:
            data = pa.memory_map(str(path), "r").read_buffer()
        except OSError as error:
            what = f"cannot be read: {error.strerror or error}"
            raise InputError(str(path), what, "Is the set whole? See cli verify.") from error
        if data.size != size:
            raise IntegrityError(str(path), f"expected {size} bytes, found {data.size}", "Copy the set again, whole.")
        return data

    def read(self, shard: dict[str, Any], offset: int, length: int, *, again: bool = False) -> pa.Buffer:  # noqa: ARG002
        return self._map(shard["file"], shard["bytes"]).slice(offset, length)


class _Remote:
    """Batches are fetched one by one and kept in files named by their digests, the oldest removed beyond a limit."""

    def __init__(self, folder: StorePath, limit: int = CACHE_BYTES) -> None:
        import platformdirs

        self.folder, self.limit = folder, limit
        self.system, self.path = folder.filesystem()
        own = hashlib.sha256(folder.uri.encode()).hexdigest()[:16]
        self.cache = Path(platformdirs.user_cache_dir("finetune-data-compiler")) / "shards" / own

    def read(self, shard: dict[str, Any], offset: int, length: int, *, again: bool = False) -> pa.Buffer:
        kept = self.cache / f"{shard['sha256']}-{offset}"
        if again or not kept.is_file() or kept.stat().st_size != length:
            self._fetch(shard["file"], offset, length, kept)
        os.utime(kept)
        return pa.memory_map(str(kept), "r").read_buffer()

    def _fetch(self, file: str, offset: int, length: int, kept: Path) -> None:
        try:
            with in_words(self.folder / file), self.system.open_input_file(f"{self.path}/{file}") as source:
                data = source.read_at(length, offset)
        except FileNotFoundError:
            raise InputError(str(self.folder / file), "no such file", "Is the set whole? See cli verify.") from None
        kept.parent.mkdir(parents=True, exist_ok=True)
        self._make_room(length)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        partial.write_bytes(data)
        partial.rename(kept)

    def _make_room(self, length: int) -> None:
        """Remove what was used longest ago; a file that is mapped stays readable until it is let go."""
        files = [(path, path.stat()) for path in self.cache.iterdir() if path.is_file()]
        total = sum(stat.st_size for _, stat in files) + length
        for path, stat in sorted(files, key=lambda one: one[1].st_mtime):
            if total <= self.limit:
                return
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                path.unlink()
            total -= stat.st_size
