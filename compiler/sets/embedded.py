"""Images that rows held themselves: those of a set's rows, linked from the cache into the set's own folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from compiler.sets.link import PlannedSplit
from compiler.sets.rows import CompiledRows
from schemas.arrow import is_embedded, sha256_of
from schemas.errors import IntegrityError
from schemas.manifest import EmbeddedEntry

_AT_ONCE = 4
"""Files that are read and hashed at the same time."""


def link_embedded(
    folder: Path, splits: dict[str, PlannedSplit], rows: CompiledRows, cache: Path
) -> EmbeddedEntry | None:
    """Put the images of the chosen rows into the set; return their number and bytes, or None where there are none."""
    sizes: dict[str, int] = {}
    for part in rows.parts:
        sizes |= part.object.info["embedded"]
    if not sizes:
        return None
    chosen = np.unique(np.concatenate([split.rows for split in splits.values()]))
    used = sorted(uris_of(rows.small.column("images").take(pa.array(chosen))) & sizes.keys())
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(partial(_link, cache, folder), used):
            pass
    return {"files": len(used), "bytes": sum(sizes[uri] for uri in used)}


def uris_of(images: pa.ListArray) -> set[str]:
    """The uris of the images in a column that rows held themselves."""
    flat = images.flatten()
    pairs: Iterable[tuple[str, str]] = zip(*(flat.field(name).to_pylist() for name in ("uri", "sha256")), strict=True)
    return {uri for uri, sha256 in pairs if is_embedded(uri, sha256)}


def _link(cache: Path, folder: Path, uri: str) -> None:
    """Link a file of the cache into the set, or copy it where that cannot be. Its bytes are compared with its name."""
    kept, target = cache / uri, folder / uri
    data = kept.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256_of(uri):
        kept.unlink()  # so that it is taken out of its row again
        raise IntegrityError(str(kept), "an image in the cache was damaged, and removed", "Run again; check the disk.")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(kept, target)
    except OSError:  # another file system, or one without links
        target.write_bytes(data)
