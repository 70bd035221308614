"""Which rows of a split are shown, which rejects, and the sentence on how many there are beside them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from compiler.inspect.rows import Split, read_file
from compiler.inspect.vocabulary import Vocabulary
from compiler.mix import Ints
from compiler.shards import ShardSet
from schemas.arrow import SPLITS
from schemas.errors import UsageError, nearest

LIMIT = 5
"""Rows, rejects and violations shown where nobody asked for more."""


@dataclass(frozen=True)
class Query:
    """Which rows of a split to show. `row` is a number or FILE:ROW; nothing at all = the first row of each dataset."""

    split: str = "train"
    row: str | None = None
    find: str | None = None
    dataset: str | None = None
    sample: int | None = None
    seed: int = 0
    limit: int | None = None

    @property
    def asks(self) -> bool:
        """True where certain rows are asked for."""
        return (self.row, self.find, self.dataset, self.sample) != (None, None, None, None)


def choose(split: Split, query: Query, vocabulary: Vocabulary) -> tuple[list[int], str]:
    """Return the numbers of the rows to show, and a sentence on how many there are beside them (or "")."""
    manifest = split.opened.manifest
    _check_dataset(manifest, query.dataset)
    if query.find == "":
        raise UsageError("--find", "expected a text to look for, found an empty one")
    if not split.num_rows:
        others = [name for name in SPLITS if manifest["splits"][name]["rows"]]
        raise UsageError(f"--split {split.name}", "the set has no rows there", f"known: {', '.join(others)}")
    if query.row is not None:
        return _by_row(split, query.row, query.limit or LIMIT)
    if not query.asks:
        return _first_of_each(split), ""
    found = _matching(split, query, vocabulary)
    where = f"{query.dataset} in {split.name}" if query.dataset else split.name
    if not len(found):
        raise _nothing(split, query, where)
    what = f"{_count(len(found), 'row')} of {where}"
    what += f" with {json.dumps(query.find, ensure_ascii=False)}" if query.find is not None else ""
    if query.sample is not None:
        generator = np.random.Generator(np.random.PCG64(query.seed))
        drawn = generator.choice(found, min(query.sample, len(found)), replace=False)
        return sorted(drawn.tolist()), f"{len(drawn):,} of {what}, drawn with --seed {query.seed}"
    limit = query.limit or (LIMIT if query.find is not None else 1)
    return found[:limit].tolist(), f"{min(limit, len(found)):,} of {what}{_more(limit, len(found))}"


def choose_rejects(opened: ShardSet, query: Query) -> tuple[list[dict[str, Any]], str]:
    """Return the rejects to show, and a sentence on how many there are."""
    _check_dataset(opened.manifest, query.dataset)
    found = [entry for entry in _rejects(opened) if query.dataset in (None, entry["dataset"])]
    limit, whose = query.limit or LIMIT, f" of {query.dataset}" if query.dataset else ""
    if not found:
        return [], f"no row{whose} was rejected"
    shown = f"{min(limit, len(found))} of {_count(len(found), 'rejected row')}{whose}"
    return found[:limit], shown + _more(limit, len(found))


def _rejects(opened: ShardSet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_file(opened, "rejects.jsonl").splitlines()]


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)


def _more(limit: int, count: int) -> str:
    return f"; --limit {count} shows all" if count > limit else ""


def _check_dataset(manifest: dict[str, Any], name: str | None) -> None:
    names = [entry["name"] for entry in manifest["datasets"]]
    if name is not None and name not in names:
        raise UsageError(f"--dataset {name}", "no such dataset in the set", nearest(name, names))


def _nothing(split: Split, query: Query, where: str) -> UsageError:
    if query.find is None:
        return UsageError(f"--dataset {query.dataset}", f"no row of it is in {split.name}", "See --split.")
    hint = f"{_count(split.num_rows, 'row')} of {split.name} were searched; upper and lower case differ."
    return UsageError(f"--find {query.find}", f"no row of {where} contains it", hint)


# -- one row --


def _by_row(split: Split, given: str, limit: int) -> tuple[list[int], str]:
    """Return the row of that number, or every row that was made from FILE:ROW."""
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


def _file(split: Split, label: str, where: str) -> tuple[str, int]:
    """Return the file of that label and its rows; the end of a label will do where it names one file."""
    entries = split.opened.manifest["datasets"]
    files = {file["file"]: file["rows"] for entry in entries for file in entry["files"]}
    found = [file for file in files if file == label] or [file for file in files if file.endswith(f"/{label}")]
    if len(found) != 1:
        what = "several files end so" if found else "no such file in the set"
        raise UsageError(where, what, nearest(label, found or files))
    return found[0], files[found[0]]


def _of_source(split: Split, file: str, row: int) -> list[int]:
    found: list[int] = []
    for start, batch in split.scan():
        same = pc.and_(pc.equal(batch.column("file"), file), pc.equal(batch.column("row"), row))
        found += (start + np.flatnonzero(same)).tolist()
    return found


def _whereabouts(split: Split, file: str, row: int) -> str:
    for name in SPLITS:
        if name != split.name and _of_source(Split(split.opened, name), file, row):
            return f"It is in {name}: add --split {name}."
    for reject in _rejects(split.opened):
        if (reject["file"], reject["row"]) == (file, row):
            return f"It was rejected ({reject['reason']}: {reject['message']}); see --rejected."
    return "It was sampled out, or dropped as a duplicate."


# -- many rows --


def _first_of_each(split: Split) -> list[int]:
    """Return the first row of each dataset, in the manifest's order; stops reading when all are found."""
    names = [entry["name"] for entry in split.opened.manifest["datasets"] if _num_rows(entry, split.name)]
    found: dict[str, int] = {}
    for start, batch in split.scan():
        for name in set(names) - set(found):
            at = pc.index(batch.column("dataset"), name).as_py()
            if at >= 0:
                found[name] = start + at
        if len(found) == len(names):
            break
    return [found[name] for name in names if name in found]


def _num_rows(dataset: dict[str, Any], split: str) -> int:
    rows, val_rows = dataset["realized"]["rows"], dataset["realized"]["val_rows"]
    return val_rows if split == "val" else rows - val_rows


def _matching(split: Split, query: Query, vocabulary: Vocabulary) -> Ints:
    """Return the numbers of all rows of the dataset that contain the text."""
    if query.dataset is None and query.find is None:
        return np.arange(split.num_rows)
    found: list[Ints] = []
    for start, batch in split.scan():
        keep = np.ones(batch.num_rows, dtype=bool)
        if query.dataset is not None:
            keep &= np.asarray(pc.equal(batch.column("dataset"), query.dataset))
        if query.find is not None and keep.any():
            keep &= _contains(batch.column("input_ids"), query.find, vocabulary)
        found.append(start + np.flatnonzero(keep))
    return np.concatenate(found)


def _contains(ids: pa.ListArray, text: str, vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
    """Return bool[N]: which rows' bytes contain the text's. One search over all rows; the loop is over matches."""
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
