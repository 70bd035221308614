"""Every byte of a published set compared with its manifest: shards by sha256, and where that differs batch by batch.

Then the rows of whole shards are counted, and compared with what the manifest says of them.

Images that rows held themselves are listed in the shards, and named by their sha256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import xxhash

from compiler.sets.contents import Rows, wrong_counts
from compiler.sets.embedded import uris_of
from schemas.arrow import EMBEDDED, SPLITS, sha256_of
from schemas.disk import check_regular
from schemas.errors import IntegrityError
from schemas.manifest import ShardEntry, embedded_of
from schemas.reader import CompiledSet
from schemas.stores import AnyPath, StorePath


def find_damage(opened: CompiledSet, each: Callable[[list[ShardEntry]], Iterable[ShardEntry]] = iter) -> list[str]:
    """Name every damage by file and batch; an empty list means that every byte is as it was written.

    `each` may show progress over the shards.
    """
    problems = list(wrong_counts(opened.manifest))
    shards = [entry for split in SPLITS for entry in opened.shards(split)]
    rows, readers = Rows(opened), {split: opened.split(split) for split in SPLITS}
    first: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for entry in each(shards):
        split = entry["file"].split("/")[0]
        wrong = _verify_shard(opened.files / entry["file"], entry)
        numbers = range(first[split], first[split] + len(entry["batches"]))
        first[split] = numbers.stop
        if not wrong:
            try:
                wrong += rows.count(split, entry, map(readers[split].batch, numbers))
            except IntegrityError as error:
                wrong.append(error.what)
        problems += wrong
    if not problems:
        problems += rows.wrong_totals()
    if embedded_of(opened.manifest) and not problems:  # what damaged shards list is not known
        problems += _verify_embedded(opened)
    listed = {entry["file"] for entry in shards}
    for name, digest in opened.manifest["files"].items():
        problems += _verify_file(opened.files / name, name, digest)
    for split in opened.manifest["splits"]:
        found: list[AnyPath] = [*(opened.files / split).rglob("*")]
        for path in sorted(found, key=str):
            if f"{split}/{path.name}" not in listed:
                problems.append(f"{split}/{path.name}: not in the manifest")
    return problems


def _verify_embedded(opened: CompiledSet) -> list[str]:
    """Compare the images of the set with their names, and their names with those that the shards have."""
    batches = [batch.column("images") for split in SPLITS for batch in opened.split(split).batches()]
    listed = sorted(set[str]().union(*map(uris_of, batches)))
    problems = [problem for uri in listed for problem in _verify_file(opened.files / uri, uri, sha256_of(uri))]
    folder = opened.files / EMBEDDED
    found: list[AnyPath] = [path for path in folder.rglob("*") if isinstance(path, StorePath) or path.is_file()]
    names = {f"{EMBEDDED}{_place(path).removeprefix(_place(folder))}" for path in found}
    return problems + [f"{name}: no row has it" for name in sorted(names - set(listed))]


def _verify_shard(path: AnyPath, entry: ShardEntry) -> list[str]:
    name = entry["file"]
    try:
        size = path.info().size if isinstance(path, StorePath) else path.stat().st_size
        if isinstance(path, Path):
            check_regular(path)
        if size != entry["bytes"] and size is not None:
            return [f"{name}: expected {entry['bytes']} bytes, found {size}"]
        if isinstance(path, StorePath) or not size:  # no memory map is empty
            data = memoryview(path.read_bytes())
        else:
            data = memoryview(pa.memory_map(str(path), "r").read_buffer())
    except OSError as error:
        return [f"{name}: {error.strerror}"]
    if len(data) != entry["bytes"]:
        return [f"{name}: expected {entry['bytes']} bytes, found {len(data)}"]
    if hashlib.sha256(data).hexdigest() == entry["sha256"]:
        return []
    row, damaged = 0, []
    for number, batch in enumerate(entry["batches"]):
        part = data[batch["offset"] : batch["offset"] + batch["length"]]
        if xxhash.xxh3_128_hexdigest(part) != batch["xxh3"]:
            damaged.append(f"{name}: batch {number} (rows {row} to {row + batch['rows'] - 1}) is damaged")
        row += batch["rows"]
    return damaged or [f"{name}: the file's header or footer is damaged"]


def _place(path: AnyPath) -> str:
    return path.uri if isinstance(path, StorePath) else str(path)


def _verify_file(path: AnyPath, name: str, digest: str) -> list[str]:
    try:
        if isinstance(path, Path):
            check_regular(path)
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return [f"{name}: {error.strerror}"]
    return [] if found == digest else [f"{name}: is damaged or was edited"]
