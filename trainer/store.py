"""Where the bytes of shards come from: a folder, memory-mapped; or an object store, through a bounded local cache."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from schemas.arrow import MANIFEST
from schemas.errors import InputError, IntegrityError
from schemas.manifest import parse_manifest, read_manifest

CACHE_BYTES = 32 * 2**30
"""The most that is kept of a set from an object store, for each process."""


class Store(Protocol):
    """Reads parts of a set's files."""

    def manifest(self) -> dict[str, Any]:
        """Return the manifest, checked."""

    def read(self, shard: dict[str, Any], offset: int, length: int, *, again: bool = False) -> pa.Buffer:
        """Return bytes of a shard, given by its entry in the manifest; `again`: not those that a cache has."""


def open_store(where: str) -> Store:
    """Return the store of a folder, or of a URL that pyarrow has a file system for, such as s3://bucket/set."""
    return _Remote(where) if "://" in where else _Folder(Path(where))


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder)

    @functools.cache  # noqa: B019  # one mapping a shard, for as long as the run
    def _map(self, file: str, size: int) -> pa.Buffer:
        path = self.folder / file
        try:
            data = pa.memory_map(str(path), "r").read_buffer()
        except OSError as error:
            raise InputError(
                str(path), f"cannot be read: {error.strerror or error}", "Is the set whole? See cli verify."
            ) from error
        if data.size != size:
            raise IntegrityError(str(path), f"expected {size} bytes, found {data.size}", "Copy the set again, whole.")
        return data

    def read(self, shard: dict[str, Any], offset: int, length: int, *, again: bool = False) -> pa.Buffer:  # noqa: ARG002
        return self._map(shard["file"], shard["bytes"]).slice(offset, length)


class _Remote:
    """Batches are fetched one by one and kept in files named by their digests, the oldest removed beyond a limit."""

    def __init__(self, where: str, limit: int = CACHE_BYTES) -> None:
        import platformdirs
        from pyarrow import fs

        self.where, self.limit = where, limit
        try:
            self.system, self.path = fs.FileSystem.from_uri(where)
        except (OSError, ValueError) as error:
            raise InputError(where, f"no such object store: {error}") from error
        own = hashlib.sha256(where.encode()).hexdigest()[:16]
        self.cache = Path(platformdirs.user_cache_dir("finetune-data-compiler")) / "shards" / own

    def manifest(self) -> dict[str, Any]:
        where = f"{self.where}/{MANIFEST}"
        try:
            with self.system.open_input_stream(f"{self.path}/{MANIFEST}") as file:
                data = file.read()
        except FileNotFoundError:
            what = "there is no manifest.json: the set is not complete, or not one"
            raise InputError(where, what, "Compile it with cli compile ... -o URL.") from None
        except OSError as error:
            raise InputError(where, f"cannot be read: {error}") from error
        return parse_manifest(data, where)

    def read(self, shard: dict[str, Any], offset: int, length: int, *, again: bool = False) -> pa.Buffer:
        kept = self.cache / f"{shard['sha256']}-{offset}"
        if again or not kept.is_file() or kept.stat().st_size != length:
            self._fetch(shard["file"], offset, length, kept)
        os.utime(kept)
        return pa.memory_map(str(kept), "r").read_buffer()

    def _fetch(self, file: str, offset: int, length: int, kept: Path) -> None:
        try:
            with self.system.open_input_file(f"{self.path}/{file}") as source:
                data = source.read_at(length, offset)
        except OSError as error:
            raise InputError(f"{self.where}/{file}", f"cannot be read: {error}") from error
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
