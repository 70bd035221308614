"""One shard: an Arrow IPC file of record batches, hashed while it is written.

Each batch has a fast digest, so that a reader can check what it is about to use, and the whole file a sha256, which is
its identity.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from schemas.manifest import BatchEntry, ShardEntry

_LARGE = 1 << 16
"""Bytes of a piece that is hashed and written where it is, rather than joined with others."""


class _HashedFile(io.RawIOBase):
    """A file that is written and hashed batch by batch.

    Arrow writes a batch in dozens of pieces, most of them small. If each were hashed and written by itself, this thread
    would wait for Python's lock each time, which the thread that copies rows holds.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb", buffering=0)
        self.sha256 = hashlib.sha256()
        self.size = 0
        self._pieces: list[memoryview] = []

    def writable(self) -> bool:
        """True; pyarrow asks."""
        return True

    def write(self, data: Any) -> int:
        """Take the next bytes of the batch."""
        self._pieces.append(memoryview(data))
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        """How many bytes were written."""
        return self.size

    def batch(self) -> str:
        """Write what came since the last call; return its digest, xxh3."""
        digest = xxhash.xxh3_128()
        pieces: list[Any] = []
        for is_large, run in groupby(self._pieces, lambda piece: len(piece) >= _LARGE):
            some = list(run)
            pieces += some if is_large else [b"".join(some)]
        self._pieces.clear()
        for piece in pieces:
            digest.update(piece)
            self.sha256.update(piece)
            _write_all(self.file, piece)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        super().close()


def _write_all(file: io.FileIO, data: Any) -> None:
    """Write all bytes; a system call may take fewer."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


class ShardWriter:
    """A shard that is being written, batch by batch."""

    def __init__(self, path: Path, schema: pa.Schema, is_packed: bool) -> None:
        self.path, self.is_packed = path, is_packed
        self.file = _HashedFile(path)
        self.writer = pa.ipc.new_file(pa.PythonFile(self.file), schema)
        self.batches: list[BatchEntry] = []
        self.trained = 0

    def write(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Write the next rows."""
        for batch in batches:
            start = self.file.tell()
            self.writer.write_batch(batch)
            length = self.file.tell() - start
            entry: BatchEntry = {
                "offset": start, "length": length, "rows": batch.num_rows, "xxh3": self.file.batch(),
            }  # fmt: skip
            if self.is_packed:
                entry["sequences"] = len(batch.column("seq_lens").flatten())
            self.batches.append(entry)
            self.trained += int(np.sum(batch.column("num_trained").to_numpy(), dtype=np.int64))

    def close(self, name: str, tokens: int) -> ShardEntry:
        """Write the file's index; return the entry of the shard, which the set knows by this name."""
        self.writer.close()
        self.file.batch()  # the index
        self.file.close()
        # The writer puts the file's magic and schema before the first batch when that is written: not part of it.
        with self.path.open("rb") as file:
            header = 16 + int.from_bytes(file.read(16)[12:16], "little")
            file.seek(header)
            first = file.read(self.batches[0]["length"] - header)
        self.batches[0]["offset"], self.batches[0]["length"] = header, len(first)
        self.batches[0]["xxh3"] = xxhash.xxh3_128_hexdigest(first)
        entry: ShardEntry = {
            "file": name,
            "rows": sum(batch["rows"] for batch in self.batches),
            "tokens": tokens,
            "trained_tokens": self.trained,
            "bytes": self.file.size,
            "sha256": self.file.sha256.hexdigest(),
            "batches": self.batches,
        }
        if self.is_packed:
            entry["sequences"] = sum(batch["sequences"] for batch in self.batches)
        return entry
