"""The rows and rejects to show, and the sentence that says how many there are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.inspect.find import by_row, first_of_each, matching
from compiler.inspect.rows import SplitExamples, rejects
from compiler.inspect.vocabulary import TokenBytes
from schemas.errors import UsageError, nearest
from schemas.manifest import Manifest
from schemas.reader import CompiledSet

LIMIT = 5
"""The number of rows, rejects and violations shown without `--limit`."""


@dataclass(frozen=True)
class Query:
    """The rows of a split to show: by default the first row of each dataset. `row` is a number or a place."""

    split: str = "train"
    row: str | None = None
    find: str | None = None
    dataset: str | None = None
    sample: int | None = None
    seed: int = 0
    limit: int | None = None

    @property
    def asks(self) -> bool:
        """True if the query names rows."""
        return (self.row, self.find, self.dataset, self.sample) != (None, None, None, None)


def choose(split: SplitExamples, query: Query, vocabulary: TokenBytes) -> tuple[list[int], str]:
    """The numbers of the rows to show, and a sentence that says how many there are, or ""."""
    manifest = split.opened.manifest
    _check_dataset(manifest, query.dataset)
    if query.find == "":
        raise UsageError("--find", "expected a text to look for, found an empty one")
    if not split.num_rows:
        others = [name for name, split in manifest["splits"].items() if split["rows"]]
        raise UsageError(f"--split {split.name}", "the set has no rows there", f"known: {', '.join(others)}")
    if query.row is not None:
        return by_row(split, query.row, query.limit or LIMIT)
    if not query.asks and query.limit is None:
        return first_of_each(split), ""
    found = matching(split, query.dataset, query.find, vocabulary)
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


def choose_rejects(opened: CompiledSet, query: Query) -> tuple[list[dict[str, Any]], str]:
    """The rejects to show, and a sentence that says how many there are."""
    _check_dataset(opened.manifest, query.dataset)
    found = [entry for entry in rejects(opened) if query.dataset in (None, entry["dataset"])]
    limit, whose = query.limit or LIMIT, f" of {query.dataset}" if query.dataset else ""
    if not found:
        return [], f"no row{whose} was rejected"
    shown = f"{min(limit, len(found))} of {_count(len(found), 'rejected row')}{whose}"
    return found[:limit], shown + _more(limit, len(found))


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)


def _more(limit: int, count: int) -> str:
    return f"; --limit {count} shows all" if count > limit else ""


def _check_dataset(manifest: Manifest, name: str | None) -> None:
    names = [entry["name"] for entry in manifest["datasets"]]
    if name is not None and name not in names:
        raise UsageError(f"--dataset {name}", "no such dataset in the set", nearest(name, names))


def _nothing(split: SplitExamples, query: Query, where: str) -> UsageError:
    if query.find is None:
        return UsageError(f"--dataset {query.dataset}", f"{split.name} has no row of it", "See --split.")
    hint = f"{_count(split.num_rows, 'row')} of {split.name} were searched; upper and lower case differ."
    return UsageError(f"--find {query.find}", f"no row of {where} contains it", hint)
