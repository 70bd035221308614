"""Near duplicates: rows whose sets of shingles (compiler/rows/shingles.py) have a Jaccard similarity of --dedup near:T.

1. Rows that repeat another exactly are left out first; they need no comparing.
2. The rest is gone through dataset by dataset in the order of the mix, and within a dataset in a seeded order. A row
   stays unless a row that stays already is as similar. So every row that goes has a row in its place that it is
   similar to. (Connected components, as in Lee et al. 2022, drop a whole chain for a row that only its first link is
   like.)
3. Rows are compared if they share a band of their signatures (locality-sensitive hashing: Leskovec, Rajaraman and
   Ullman, Mining of Massive Datasets, 3.4). The bands are the longest with which 99% of the pairs at the threshold
   share one. Similarity is estimated by the signatures, and where the estimate is near the threshold or above, computed
   from the shingles themselves, which are read from the cache.

Held in memory is for each row its signature, 256 bytes, and while bands are compared 4 bytes for each band.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compiler.options import MixOptions, Request, parse_dedup
from compiler.rows.shingles import PERMUTATIONS, Shingles
from compiler.sets.mix import Examples, repeated
from compiler.sets.rows import CompiledRows
from schemas.arrow import SHINGLES, SPLITS
from schemas.order import Ints, hashes, mix64

FOUND = 0.99
"""The probability with which a pair at the threshold is compared."""
_ERRORS = 3
"""Standard errors below the threshold from which an estimate is not checked: 1 pair of 700 at it is missed."""
_KEPT = 4096
"""Rows whose shingles stay in memory."""


@dataclass(frozen=True)
class NearDuplicates:
    """The near duplicates among all examples, numbered dataset after dataset."""

    of: Ints
    """The example that stays in the place of each, -1 where there is none; int64[N]."""
    similarity: npt.NDArray[np.float32]


def find_near(
    requests: Sequence[Request], examples: Sequence[Examples], rows: CompiledRows, options: MixOptions
) -> NearDuplicates | None:
    """Find the near duplicates among the examples, and mark them there; None unless that was asked for."""
    threshold = None if options.dedup is None else parse_dedup(options.dedup)[1]
    if threshold is None:
        return None
    sizes = [len(one.tokens) for one in examples]
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    exact = np.concatenate(repeated(requests, examples))
    split = np.repeat([SPLITS.index(request.split) for request in requests], sizes)
    dataset = np.repeat(np.arange(len(sizes)), sizes)
    keys = np.concatenate(
        [
            hashes(options.seed, f"near:{request.name}", np.arange(size))
            for request, size in zip(requests, sizes, strict=True)
        ]
    )
    order = np.lexsort((keys, dataset))
    found = NearDuplicates(np.full(len(exact), -1, np.int64), np.zeros(len(exact), np.float32))

    def read(row: int) -> Shingles:
        return rows.lists(np.array([row]), [SHINGLES])[SHINGLES][1].view(np.uint32)

    kept = [signatures_in(part.object.small.column("signature")) for part in rows.parts]
    comparison = Comparison(kept, read, threshold)
    for number in range(len(SPLITS)):
        mine = order[(split[order] == number) & ~exact[order]]
        for row, other, similarity in comparison.run(mine):
            found.of[row], found.similarity[row] = other, similarity
    for one, low, high in zip(examples, first[:-1], first[1:], strict=True):
        one.near = found.of[low:high] >= 0
    return found


def band_length(threshold: float) -> int:
    """The permutations of a band: as many as let a pair at the threshold share a band with the probability `FOUND`."""
    for length in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - threshold**length) ** (PERMUTATIONS // length) >= FOUND:
            return length
    return 1


class Comparison:
    """The signatures and shingles of rows, compared."""

    def __init__(
        self, signatures: list[npt.NDArray[np.uint16]], read: Callable[[int], Shingles], threshold: float
    ) -> None:
        """Take the signatures of all rows, one piece after the other, and what reads the shingles of a row."""
        self._all, self.threshold = signatures, threshold
        self._starts = np.concatenate([[0], np.cumsum([len(one) for one in signatures])]).astype(np.int64)
        self._least = threshold - _ERRORS * sqrt(threshold * (1 - threshold) / PERMUTATIONS)
        self._shingles = lru_cache(maxsize=_KEPT)(read)

    def run(self, rows: Ints) -> Iterator[tuple[int, int, float]]:
        """Yield each of the rows, which are in order, that goes, the one that stays in its place, their similarity."""
        buckets = self._buckets(rows)
        shared = np.flatnonzero((buckets >= 0).any(axis=0))
        rows, buckets = rows[shared], buckets[:, shared]
        signatures = self._signatures_of(rows)
        stays: list[dict[int, list[int]]] = [{} for _ in buckets]
        for at, row in enumerate(rows.tolist()):
            mine = [(band, bucket) for band, bucket in zip(stays, buckets[:, at].tolist(), strict=True) if bucket >= 0]
            others = sorted({one for band, bucket in mine for one in band.get(bucket, ())})
            alike = (signatures[others] == signatures[at]).mean(axis=1)
            like = self._like(row, rows[others], alike)
            if like is not None:
                yield row, *like
                continue
            for band, bucket in mine:
                band.setdefault(bucket, []).append(at)

    def _buckets(self, rows: Ints) -> npt.NDArray[np.int32]:
        """For each band and row the number of the bucket that it shares with others, -1 where it has one by itself."""
        length = band_length(self.threshold)
        found = np.empty((PERMUTATIONS // length, len(rows)), np.int32)
        for band in range(len(found)):
            columns = slice(band * length, (band + 1) * length)
            keys = np.concatenate([_hashed(one[:, columns]) for one in self._all])[rows]
            _, bucket, counts = np.unique(keys, return_inverse=True, return_counts=True)
            found[band] = np.where(counts[bucket] > 1, bucket, -1)
        return found

    def _signatures_of(self, rows: Ints) -> npt.NDArray[np.uint16]:
        """The signatures of rows, uint16[N, PERMUTATIONS]."""
        found = np.empty((len(rows), PERMUTATIONS), np.uint16)
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(part_of).tolist():
            at = np.flatnonzero(part_of == part)
            found[at] = self._all[part][rows[at] - int(self._starts[part])]
        return found

    def _like(self, row: int, others: Ints, alike: npt.NDArray[np.float64]) -> tuple[int, float] | None:
        """The most similar of the others, if it is similar enough; of equally similar ones the first."""
        best: tuple[int, float] | None = None
        for at in np.argsort(-alike, kind="stable").tolist():
            if alike[at] < self._least:
                break
            other = int(others[at])
            similarity = jaccard(self._shingles(row), self._shingles(other))
            if similarity >= self.threshold and (best is None or similarity > best[1]):
                best = other, similarity
        return best


def jaccard(one: Shingles, other: Shingles) -> float:
    """The size of the intersection of two sets by that of their union. Both are in order."""
    at = np.searchsorted(one, other)
    both = int((one[np.minimum(at, len(one) - 1)] == other).sum())
    return both / (len(one) + len(other) - both)


def signatures_in(column: pa.ChunkedArray) -> npt.NDArray[np.uint16]:
    """A column of signatures as uint16[N, PERMUTATIONS]."""
    if not len(column):
        return np.empty((0, PERMUTATIONS), np.uint16)
    rows = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies
    first, count = rows.offset * 2 * PERMUTATIONS, len(rows) * PERMUTATIONS  # all are equally long
    return np.frombuffer(rows.buffers()[2], "<u2", count, first).reshape(-1, PERMUTATIONS)


def _hashed(band: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint64]:
    """A hash of each row of a band."""
    total = np.zeros(len(band), np.uint64)
    for column in band.T:
        total = mix64(total ^ column.astype(np.uint64))
    return total
