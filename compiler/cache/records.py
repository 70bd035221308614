"""Records of the cache: what was found out about some inputs, as JSON under a name that is a digest of all of them.

This module imports little, since a process that is in a hurry asks it before it imports the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import xxhash

from compiler.cache.halves import write

ROOT = Path(__file__).parents[2]
DECIDES_BYTES = (
    *(f"compiler/{room}/**/*.py" for room in ("read", "formats", "rows", "media")),
    *(f"compiler/{room}/**/*.py" for room in ("templates", "tokenizer", "encode", "proof")),
    "compiler/conversation.py",
    "compiler/options.py",
    "compiler/cache/halves.py",
    "compiler/cache/layout.py",
    "compiler/cache/objects.py",
    "compiler/cache/records.py",
    "compiler/cache/small.py",
    "compiler/units/task.py",
    "compiler/units/unit.py",
    "registry/*.py",
    "schemas/*.py",
    "schemas/*.json",
)
"""The source files that what is kept in the cache depends on. A change of others leaves the cache as good as it was.

The data of the registry is not here: names of objects hold the digests of what they use of it.
"""


@cache
def code_digest() -> str:
    """A digest of the source that decides bytes: a version with another one never reads our objects."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in DECIDES_BYTES for path in ROOT.glob(pattern)}):
        total.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return total.hexdigest()


@cache
def library_versions() -> dict[str, str]:
    """The versions of the libraries that decide bytes."""
    names = ("tokenizers", "pyarrow", "jinja2", "numpy", "orjson", "python-calamine")
    return {name: importlib.metadata.version(name) for name in names}


@cache
def maker() -> dict[str, str]:
    """What a record was made by: digest of the code, version of the package, versions of the libraries."""
    return {"code": code_digest()[:16], "version": own_version()} | library_versions()


def own_version() -> str:
    """The version of this package."""
    try:
        return importlib.metadata.version("finetune-data-compiler")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a folder on PYTHONPATH


def key_of(*parts: Any) -> str:
    """The name of the object that depends on these inputs."""
    text = orjson.dumps([code_digest(), library_versions(), *parts], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:40]


def paths_of(cache_dir: Path, key: str) -> tuple[Path, Path]:
    """Where the rows of an object are, and the record of that name."""
    folder = cache_dir / "objects" / key[:2]
    return folder / f"{key}.arrow", folder / f"{key}.json"


def has(cache_dir: Path, key: str) -> bool:
    """Whether there is an object or a record of this name; its bytes are not looked at."""
    return paths_of(cache_dir, key)[1].exists()


def load_record(cache_dir: Path, key: str) -> dict[str, Any] | None:
    """Load a record; None if there is none or it is damaged. Its time of change is set: it was used now."""
    path = paths_of(cache_dir, key)[1]
    record = read_record(path)
    if record is not None:
        record.pop("made_by", None)
        with contextlib.suppress(OSError):  # a cache that this user may only read
            os.utime(path)
    return record


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a record with what it was made by; None if there is none or it is damaged."""
    try:
        checksum, data = path.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    if checksum != xxhash.xxh3_128_hexdigest(data).encode():
        return None
    record = orjson.loads(data)
    # The key is inside too: a whole file under another object's name is not that object.
    return record if record.pop("key") == path.stem else None


def store_record(cache_dir: Path, key: str, record: dict[str, Any]) -> None:
    """Write a record: its checksum on the first line, then the JSON."""
    data = orjson.dumps({"key": key, "made_by": maker()} | record)
    write(cache_dir, paths_of(cache_dir, key)[1], xxhash.xxh3_128_hexdigest(data).encode() + b"\n" + data)
