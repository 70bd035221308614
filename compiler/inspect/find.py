"""Finding rows in a split: by number, by source row, by dataset, by text."""

from __future__ import annotations

import re
from functools import reduce

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from compiler.inspect.rows import SplitExamples, rejects
from compiler.inspect.vocabulary import TokenBytes
from schemas.arrow import SPLITS, TEST, VAL
from schemas.errors import UsageError, nearest
from schemas.manifest import DatasetEntry, FileEntry
from schemas.order import Ints
from schemas.places import Place, parse, spell
from schemas.reader import CompiledSet

_OF_SOURCE = ("dataset", "file", "row")
_NUMBER = re.compile(r"/(0|[1-9][0-9]*)(?=/|$)")


Source = tuple[str, str, int]
"""A row of a source file: dataset, file, number."""


def by_row(split: SplitExamples, given: str, limit: int) -> tuple[list[int], str]:
    """The row of that number, or all rows made from the source row at a place."""
    where = f"--row {given}"
    if re.fullmatch(r"-?\d+", given):
        if not 0 <= int(given) < split.num_rows:
            raise UsageError(where, f"{split.name} has rows 0 to {split.num_rows - 1}")
        return [int(given)], ""
    sources = sources_at(split.opened, given, where)
    found = sorted(number for source in sources for number in _of_source(split, source))
    if not found:
        raise UsageError(where, f"it is not in {split.name}", _whereabouts(split, sources))
    place = split.opened.places.place(*sources[0])
    notes = [f"{len(sources)} rows begin at {place}"] if len(sources) > 1 else []
    notes += [f"{place} is used {len(found)} times in {split.name}"] if len(found) > len(sources) else []
    notes += [f"the first {limit} are shown"] if len(found) > limit else []
    return found[:limit], "; ".join(notes)


def sources_at(opened: CompiledSet, given: str, where: str) -> list[Source]:
    """The source rows at a place: one, but for objects that begin on one line, or one name of two datasets' files.

    `where` is the place as the command line has it: with its option, where it has one.
    """
    readings = parse(given)
    if not readings:
        hint = "--row 0, --row chats.jsonl:4, --row data.json#/3"
        raise UsageError(where, "expected a row of the split, FILE:LINE or FILE#/ROW", hint)
    files = [(entry["name"], file) for entry in opened.manifest["datasets"] for file in entry["files"]]
    names = {file["file"] for _, file in files}
    place, found = next(((one, some) for one in readings if (some := _named(one.file, names))), (readings[-1], set()))
    if len(found) != 1:
        what = "the names of several files end like this" if found else "no such file in the set"
        raise UsageError(where, what, nearest(place.file, found or names))
    having = [(dataset, file) for dataset, file in files if file["file"] in found]
    sources = [source for dataset, file in having for source in _at(opened, dataset, file, place)]
    if not sources:
        raise _no_row(opened, *having[0], place, where, where.removesuffix(given))
    return sources


def _named(label: str, names: set[str]) -> set[str]:
    """The name, or all names that end like it."""
    return {label} & names or {name for name in names if name.endswith(f"/{label}")}


def _at(opened: CompiledSet, dataset: str, file: FileEntry, place: Place) -> list[Source]:
    """The rows of one file at a place. The pointer into a row does not matter."""
    name, lines = file["file"], opened.places.lines(dataset, file["file"])
    if place.line is None:
        number = _NUMBER.match(place.pointer)
        return [(dataset, name, int(number[1]))] if number and int(number[1]) < file["rows"] else []
    if lines is None:
        return []
    rows = lines.on(place.line)
    if lines.session:  # these are its items
        rows = [0] if rows else []
    return [(dataset, name, row) for row in rows]


def _no_row(opened: CompiledSet, dataset: str, file: FileEntry, place: Place, where: str, option: str) -> UsageError:
    """The error for a place at which no row of the file begins: where rows are."""
    name, last = file["file"], file["rows"] - 1
    lines = opened.places.lines(dataset, name)
    if place.line is None:
        return UsageError(where, f"{name} has the rows {spell(name, 0, None)} to {spell(name, last, None)}")
    if lines is None:
        what = f"{name} is an array or a table, whose rows are counted from 0, not by lines"
        if not opened.places.known:
            what = "an earlier version compiled the set, without the lines of its rows"
        return UsageError(
            where, what, f"Name the row by its number: {option}{spell(name, min(place.line, last), None)}"
        )
    near = lines.around(place.line)
    what = "no row begins on this line" if place.line else "lines are counted from 1"
    limit = opened.manifest["options"].get("limit")
    if limit is not None and near[-1] < place.line:  # behind what was read
        what += f", of those that --limit {limit} read"
    return UsageError(where, what, f"The nearest: {' and '.join(f'{option}{spell(name, 0, line)}' for line in near)}")


def _of_source(split: SplitExamples, source: Source) -> list[int]:
    found: list[int] = []
    for start, batch in split.scan():
        same = [pc.equal(batch.column(name), value) for name, value in zip(_OF_SOURCE, source, strict=True)]
        found += (start + np.flatnonzero(reduce(pc.and_, same))).tolist()
    return found


def _whereabouts(split: SplitExamples, sources: list[Source]) -> str:
    for name in SPLITS:
        if name != split.name and any(_of_source(SplitExamples(split.opened, name), source) for source in sources):
            return f"It is in {name}: add --split {name}."
    for reject in rejects(split.opened):
        if tuple(reject[name] for name in _OF_SOURCE) in sources:
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
    realized = dataset["realized"]
    others = {VAL: realized["val_rows"], TEST: realized.get("test_rows", 0)}
    return others.get(split, realized["rows"] - sum(others.values()))


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
            keep &= np.any([contains(batch.column(name), text, vocabulary) for name in sides], axis=0)
        found.append(start + np.flatnonzero(keep))
    return np.concatenate(found)


def contains(ids: pa.ListArray, text: str, vocabulary: TokenBytes) -> npt.NDArray[np.bool_]:
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
