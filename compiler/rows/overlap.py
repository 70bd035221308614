"""Decontamination: conversations that share runs of words with the rows of benchmark files.

All texts of a benchmark's row count, at any depth, each by itself: a question is found without its answer. What the
words of a text are, shingles.py says. Two methods:

13  A conversation goes if it shares one run of 13 words with a text (Brown et al. 2020, appendix C).
8   It goes if more than half of the words of a text are in runs of 8 that it shares (Lambert et al. 2024, Tülu 3).

Both papers say it of a prompt or a document; here the whole conversation is compared, the system text included.
A text of fewer words than a run is found by neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.conversation import Conversation
from compiler.options import UnitOptions
from compiler.read import numbered, open_source
from compiler.rows.shingles import Hashes, grams, joined, said_in, words
from schemas.errors import InputError, IntegrityError, Reason, Reject, UsageError
from schemas.order import Ints
from schemas.places import spell
from schemas.stores import AnyPath, path_of

NGRAMS = {8: 0.5, 13: 0.0}
"""Words of a run -> the part of a text beyond which it is shared."""


_MOST_BITS = 1 << 25
"""The most bytes of the table of last bits."""
Check = Callable[[Conversation | Reject], Conversation | Reject]


@dataclass(frozen=True)
class BenchmarkText:
    """A text of a benchmark: where it is first, and the hashes of its runs in order."""

    place: str
    runs: Hashes

    def covered(self, mine: Hashes, size: int) -> float:
        """The part of its words that are in shared runs."""
        word = np.zeros(len(self.runs) + size, np.int64)
        shared = np.flatnonzero(np.isin(self.runs, mine))
        word[shared] += 1
        np.subtract.at(word, shared + size, 1)
        return float((np.cumsum(word)[:-1] > 0).mean())


@dataclass
class Benchmarks:
    """The runs of words of benchmark files."""

    size: int
    threshold: float
    rows: int = 0
    short: int = 0
    """Rows of which no text has so many words."""
    texts: list[BenchmarkText] = field(default_factory=list)
    _runs: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    _owner: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    _some: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1, np.bool_))
    """Whether any run has these last bits: most runs of a row are in no benchmark, and this says so at once."""

    def add(self, label: str, path: AnyPath, seen: set[str]) -> None:
        """Read a file; InputError where a row of it cannot be read."""
        for number, line, row in numbered(open_source(path)):
            place = spell(label, number, line)
            if row.reject is not None:
                raise InputError(place, row.reject.message, "Repair the benchmark file, or leave the row out of it.")
            self.rows += 1
            self.short += not self._add_row(place, row.value, seen)

    def _add_row(self, place: str, value: Any, seen: set[str]) -> bool:
        """Add the texts of a row; whether any is long enough."""
        found = False
        for text in strings(value):
            runs = grams(words(text), self.size)
            if not len(runs):
                continue
            found = True
            if text not in seen:
                seen.add(text)
                self.texts.append(BenchmarkText(place, runs))
        return found

    def close(self) -> None:
        """Sort the runs, once all files are there."""
        each = [np.unique(text.runs) for text in self.texts]
        runs = np.concatenate(each or [np.empty(0, np.uint64)])
        owner = np.repeat(np.arange(len(each), dtype=np.int32), [len(one) for one in each])
        order = np.argsort(runs, kind="stable")
        self._runs, self._owner = runs[order], owner[order]
        self._some = np.zeros(min(1 << (32 * len(runs)).bit_length(), _MOST_BITS), np.bool_)
        self._some[self._last_bits(runs)] = True

    def _last_bits(self, runs: Hashes) -> Hashes:
        return runs & np.uint64(len(self._some) - 1)

    def checked(self, one: Conversation | Reject) -> Conversation | Reject:
        """The conversation, or the reject that says which text it shares."""
        if isinstance(one, Reject):
            return one
        found = words(said_in(one.said))
        in_order = grams(found, self.size)
        mine = np.unique(in_order[self._some[self._last_bits(in_order)]])
        low, high = (np.searchsorted(self._runs, mine, side) for side in ("left", "right"))
        if not (high > low).any():
            return one
        text, share = self._most_shared(mine, low, high)
        if text is None:
            return one
        at = int(np.flatnonzero(np.isin(in_order, text.runs))[0])
        run = joined(found[at : at + self.size])
        what = f"{share:.0%} of the words of a text of {text.place} are in it, in runs of {self.size} such as {run!r}"
        return Reject(Reason.CONTAMINATED, what)

    def _most_shared(self, mine: Hashes, low: Ints, high: Ints) -> tuple[BenchmarkText | None, float]:
        """The text of which most is shared, if that is enough; of equal ones the first."""
        hits = np.concatenate([self._owner[a:b] for a, b in zip(low, high, strict=True) if a < b])
        owners, shared = np.unique(hits, return_counts=True)
        best, most = None, self.threshold
        for owner, count in zip(owners.tolist(), shared.tolist(), strict=True):
            text = self.texts[owner]
            if count * self.size <= most * (len(text.runs) + self.size - 1):
                continue  # cannot be more
            share = text.covered(mine, self.size)
            if share > most:
                best, most = text, share
        return best, most


def strings(value: Any) -> Iterator[str]:
    """The texts in a value, at any depth; keys are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from strings(one)


def digest_of(label: str) -> str:
    """The sha256 of a benchmark file; InputError where it cannot be read."""
    try:
        return hashlib.sha256(path_of(label).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(label, f"cannot be read: {error.strerror}", "Check --decontaminate.") from error


def check_with(options: UnitOptions, paths: tuple[str, ...]) -> Check:
    """What puts a reject in the place of a conversation that a benchmark has. The benchmarks are at these paths."""
    return _asked(options, paths).checked if options.decontaminate else lambda one: one


def benchmarks_note(options: UnitOptions, paths: tuple[str, ...]) -> str:
    """A line on what can be found; UsageError where nothing can."""
    found = _asked(options, paths)
    short = f"; {found.short:,} rows have no text of {found.size} words, and cannot be found" if found.short else ""
    return f"--decontaminate: {found.rows:,} benchmark rows, {len(found.texts):,} different texts{short}"


def _asked(options: UnitOptions, paths: tuple[str, ...]) -> Benchmarks:
    return benchmarks(options.decontaminate, paths, options.decontaminate_ngram, options.decontaminate_threshold)


@lru_cache(maxsize=1)
def benchmarks(
    files: tuple[tuple[str, str], ...], paths: tuple[str, ...], size: int, threshold: float | None
) -> Benchmarks:
    """The benchmarks in files, (name, sha256) each, that are at these paths; read once in each process."""
    found, seen = Benchmarks(size, NGRAMS[size] if threshold is None else threshold), set[str]()
    for (label, digest), path in zip(files, paths, strict=True):
        if digest_of(path) != digest:
            raise IntegrityError(label, "the benchmark file is not the one that the run was planned with", "Run again.")
        found.add(label, path_of(path), seen)
    found.close()
    if not found.texts:
        what = f"no text of its rows has {size} words, so nothing could be found"
        raise UsageError(f"--decontaminate {', '.join(label for label, _ in files)}", what, "Name benchmark files.")
    return found
