"""Finding rows in a split: by number, by source row, by dataset, by text."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from compiler.inspect.rows import SplitExamples, rejects
from compiler.inspect.vocabulary import TokenBytes
from schemas.arrow import SPLITS
from schemas.errors import UsageError, nearest
from schemas.manifest import DatasetEntry
from schemas.order import Ints


def by_row(split: SplitExamples, given: str, limit: int) -> tuple[list[int], str]:
    """The row of that number, or all rows made from FILE:ROW."""
    if re.fullmatch(r"-?\d+", given):
        if not 0 <= int(given) < split.num_rows:
            raise UsageError(f"--row {given}", f"{split.name} has rows 0 to {split.num_rows - 1}")
        return [int(given)], ""
    label, _, number = given.rpartition(":")
    if not label or not number.isdecimal():
        raise UsageError(f"--row {given}", "expected a row of the split, or FILE:ROW", "--row 0, --row chats.jsonl:4")
    file, rows = _file(split, label, f"--row {given}")
    if int(number) >= rows:
        raise UsageError(f"--row {given}", f"{file} has rows 0 to {rows - 1}")
    found = _of_source(split, file, int(number))
    if not found:
        raise UsageError(f"--row {given}", f"it is not in {split.name}", _whereabouts(split, file, int(number)))
    note = f"{file}:{number} is used {len(found)} times in {split.name}" if len(found) > 1 else ""
    return found[:limit], note + (f"; the first {limit} are shown" if len(found) > limit else "")


def _file(split: SplitExamples, label: str, where: str) -> tuple[str, int]:
    """The file with that label and its number of rows. The end of a label is enough if only one file has it."""
    entries = split.opened.manifest["datasets"]
    files = {file["file"]: file["rows"] for entry in entries for file in entry["files"]}
    found = [file for file in files if file == label] or [file for file in files if file.endswith(f"/{label}")]
    if len(found) != 1:
        what = "the names of several files end like this" if found else "no such file in the set"
        raise UsageError(where, what, nearest(label, found or files))
    return found[0], files[found[0]]


def _of_source(split: SplitExamples, file: str, row: int) -> list[int]:
    found: list[int] = []
    for start, batch in split.scan():
        same = pc.and_(pc.equal(batch.column("file"), file), pc.equal(batch.column("row"), row))
        found += (start + np.flatnonzero(same)).tolist()
    return found


def _whereabouts(split: SplitExamples, file: str, row: int) -> str:
    for name in SPLITS:
        if name != split.name and _of_source(SplitExamples(split.opened, name), file, row):
            return f"It is in {name}: add --split {name}."
    for reject in rejects(split.opened):
        if (reject["file"], reject["row"]) == (file, row):
            return f"It was rejected ({reject['reason']}: {reject['message']}); see --rejected."
    return "It was sampled out, or dropped as a duplicate."


def first_of_each(split: SplitExamples) -> list[int]:
    """The first row of each dataset, in the manifest's order. Reading stops when all are found."""
    names = [entry["name"] for entry in split.opened.manifest["datasets"] if _num_rows(entry, split.name)]
    found: dict[str, int] = {}
    for start, batch in split.scan():
        for name in [name for name in names if name not in found]:
            at = pc.index(batch.column("dataset"), name).as_py()
            if at >= 0:
                found[name] = start + at
        if len(found) == len(names):
            break
    return [found[name] for name in names if name in found]


def _num_rows(dataset: DatasetEntry, split: str) -> int:
    rows, val_rows = dataset["realized"]["rows"], dataset["realized"]["val_rows"]
    return val_rows if split == "val" else rows - val_rows


def matching(split: SplitExamples, dataset: str | None, text: str | None, vocabulary: TokenBytes) -> Ints:
    """The numbers of all rows of the dataset that contain the text, int64[N]; None matches every row."""
    if dataset is None and text is None:
        return np.arange(split.num_rows)
    found: list[Ints] = []
    for start, batch in split.scan():
        keep = np.ones(batch.num_rows, dtype=bool)
        if dataset is not None:
            keep &= np.asarray(pc.equal(batch.column("dataset"), dataset))
        if text is not None and keep.any():
            sides = [name for name in ("input_ids", "rejected_input_ids") if name in batch.schema.names]
            keep &= np.any([_contains(batch.column(name), text, vocabulary) for name in sides], axis=0)
        found.append(start + np.flatnonzero(keep))
    return np.concatenate(found)


def _contains(ids: pa.ListArray, text: str, vocabulary: TokenBytes) -> npt.NDArray[np.bool_]:
    """Which rows contain the text, as bytes: bool[N]. One search runs over all rows; the loop is over matches."""
    pieces = vocabulary.pieces(ids.values)
    _, offsets, data = pieces.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[ids.offsets.to_numpy()]
    found = np.zeros(len(ids), dtype=bool)
    needle, hay = text.encode("utf-8", "surrogateescape"), data.to_pybytes() if data else b""
    at = hay.find(needle)
    while at >= 0:
        row = int(np.searchsorted(ends, at, side="right")) - 1
        inside = at + len(needle) <= ends[row + 1]
        found[row] |= inside
        at = hay.find(needle, int(ends[row + 1]) if inside else at + 1)
    return found
