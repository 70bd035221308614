"""Near duplicates in files or in a set: how many rows --dedup near would drop, and how many stay in their place.

Files are compiled, and their rows compared as a compile with that option compares them, dataset by dataset. Of a set
there are only the tokens: the text is theirs, and the rows of a split are compared with each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from compiler.inspect.vocabulary import TokenBytes
from compiler.options import MixOptions
from compiler.questions.said import batches_of, texts_of
from compiler.questions.table import Cells, share, table
from compiler.rows.shingles import Shingles, shingles_of_text, signatures
from compiler.sets.near import Comparison, find_near, signatures_in
from compiler.sets.rows import examples_of, rows_of
from compiler.units.compiled import CompiledDataset
from schemas.arrow import SPLITS
from schemas.order import Ints
from schemas.reader import CompiledSet


def of_files(found: CompiledDataset, mixing: MixOptions, threshold: float) -> dict[str, Any]:
    """The near duplicates of a dataset that was compiled for it."""
    examples = [examples_of(found)]
    near = find_near([found.request], examples, rows_of([found]), mixing)
    assert near is not None
    prints = examples[0].fingerprints
    _, first, same = np.unique(prints, return_index=True, return_inverse=True)
    place = first[same]
    place = np.where(near.of[place] < 0, place, near.of[place])
    return _entry(place, np.arange(len(place)), threshold)


def _entry(place: Ints, rows: Ints, threshold: float) -> dict[str, Any]:
    """What is said of rows, by the numbers of those that stay in their places."""
    gone = place != rows
    return {
        "threshold": threshold,
        "rows": len(rows),
        "repeated": int(gone.sum()),
        "groups": len(np.unique(place[gone])),
        "share": round(float(gone.mean()), 6) if len(rows) else 0.0,
    }


def of_set(opened: CompiledSet, threshold: float) -> dict[str, Any]:
    """The near duplicates of each dataset of a set; repeats that the mix made are not counted."""
    names = [entry["name"] for entry in opened.manifest["datasets"]]
    vocabulary, kept = TokenBytes(opened), []
    sizes: list[Ints] = []
    parts: list[tuple[Ints, Ints]] = []
    with TemporaryFile() as file:
        for split in SPLITS:
            for batch in batches_of(opened, split):
                sets = list(_shingles(batch, vocabulary))
                kept.append(signatures_in(pa.chunked_array([pa.array(signatures(sets), pa.binary())])))
                sizes.append(np.array([len(one) for one in sets], np.int64))
                file.writelines(one.tobytes() for one in sets)
                dataset = np.array([names.index(name) for name in batch.column("dataset").to_pylist()], np.int64)
                dataset[batch.column("repeat").to_numpy() > 0] = -1
                parts.append((np.full(len(dataset), SPLITS.index(split)), dataset))
        file.flush()
        ends = np.concatenate([[0], np.cumsum(np.concatenate(sizes or [np.zeros(0, np.int64)]))]) * 4

        def read(row: int) -> Shingles:
            return np.frombuffer(os.pread(file.fileno(), int(ends[row + 1] - ends[row]), int(ends[row])), np.uint32)

        of_split, dataset = (np.concatenate(column) for column in zip(*parts, strict=True))
        place, comparison = np.arange(len(dataset)), Comparison(kept, read, threshold)
        for number in range(len(SPLITS)):
            mine = np.flatnonzero((of_split == number) & (dataset >= 0))
            for row, other, _ in comparison.run(mine[np.argsort(dataset[mine], kind="stable")]):
                place[row] = other
    rows = {name: np.flatnonzero(dataset == number) for number, name in enumerate(names)}
    return {name: _entry(place[mine], mine, threshold) for name, mine in rows.items()}


def _shingles(batch: pa.RecordBatch, vocabulary: TokenBytes) -> Iterator[Shingles]:
    """The shingles of each row; rows that differ in what no text shows have none in common."""
    media = [batch.column(name).to_pylist() for name in ("images", "videos")]
    desirable = batch.column("desirable").to_pylist() if "desirable" in batch.schema.names else [None] * batch.num_rows
    more = zip(batch.column("part").to_pylist(), desirable, *media, strict=True)
    for text, (part, label, *shown) in zip(texts_of(batch, vocabulary), more, strict=True):
        seen = [one["sha256"] for some in shown for one in some]
        yield shingles_of_text(text, orjson.dumps([part, label, seen]) if part or seen or label is not None else b"")


def said(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The near duplicates of datasets as lines of text."""
    rows: list[Cells] = [["near duplicates", "rows", "repeat another", "share", "groups"]]
    rows += [
        [name, f"{one['rows']:,}", f"{one['repeated']:,}", share(one["repeated"], one["rows"]), f"{one['groups']:,}"]
        for name, one in found.items()
    ]
    yield from table(rows)
