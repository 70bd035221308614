"""A bounded cache on disk for the batches of a set in an object store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from pathlib import Path

import pyarrow as pa

from schemas import disk
from schemas.manifest import ShardEntry
from schemas.reader import StoredShards
from schemas.stores import StorePath

GIB = 2**30
CACHE_BYTES = 32 * GIB
"""The most that is kept of a set."""
_SLACK = 64
"""Room is made for this part of the limit at once: it takes a look at every file."""


class CachedShards(StoredShards):
    """Shards whose batches are fetched once and kept in files named by shard digest; beyond a limit the oldest go.

    Processes share the files: one that another process has just removed is fetched again.
    """

    def __init__(self, folder: StorePath, limit: int = CACHE_BYTES) -> None:
        import platformdirs

        super().__init__(folder)
        self.limit = limit
        own = hashlib.sha256(folder.uri.encode()).hexdigest()[:16]
        self._lock, self._room = threading.Lock(), 0
        self.cache = Path(platformdirs.user_cache_dir("finetune-data-compiler")) / "shards" / own

    def read(self, shard: ShardEntry, offset: int, length: int, *, again: bool = False) -> pa.Buffer:
        """Map the kept file of a batch; fetch and keep it if there is none."""
        kept = self.cache / f"{shard['sha256']}-{offset}"
        if not again and (mapped := _mapped(kept, length)) is not None:
            return mapped
        data = super().read(shard, offset, length)
        self._keep(data, kept)
        mapped = _mapped(kept, length)
        return data if mapped is None else mapped

    def _keep(self, data: pa.Buffer, kept: Path) -> None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:  # what another thread writes counts when room is made
            if self._room < data.size:
                self._room = max(data.size, self.limit // _SLACK)
                self._make_room(self._room)
            self._room -= data.size
            partial = kept.with_name(f"{kept.name}.{os.getpid()}")
            disk.write(partial, data)
            with contextlib.suppress(FileNotFoundError):
                partial.rename(kept)

    def _make_room(self, length: int) -> None:
        """Remove the least recently used files; a mapped file stays readable until it is released."""
        files = []
        for entry in os.scandir(self.cache):
            with contextlib.suppress(FileNotFoundError):
                files.append((entry, entry.stat()))
        total = sum(stat.st_size for _, stat in files) + length
        for entry, stat in sorted(files, key=lambda one: one[1].st_mtime):
            if total <= self.limit:
                return
            with contextlib.suppress(FileNotFoundError):
                Path(entry).unlink()
            total -= stat.st_size


def _mapped(path: Path, length: int) -> pa.Buffer | None:
    """The bytes of a file of this length, mapped; None if there is none."""
    try:
        if path.stat().st_size != length:
            return None
        os.utime(path)
        return pa.memory_map(str(path), "r").read_buffer()
    except FileNotFoundError:
        return None
