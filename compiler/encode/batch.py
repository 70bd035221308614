"""Encoded sequences as columns: a batch of them, and one of a batch. No loop over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compiler.encode.shapes import Origin, Owner
from schemas.arrow import IGNORED


class Stretch(NamedTuple):
    """Consecutive tokens of one owner and message; `message` is -1 for the template's own text."""

    owner: Owner
    length: int
    message: int
    generated: bool


@dataclass(slots=True)
class Placed:
    """Where an image or a video of the conversation stands, in tokens: [start, end) with its frame, `position` the
    first of its `count` placeholders, which stand for `num_tokens` of the model's."""

    media: int
    start: int
    position: int
    count: int
    end: int
    num_tokens: int


@dataclass
class Batch:
    """N sequences, one after the other, as columns.

    ids int32[T]; weights float32[T], > 0 = trained; edges int64[N + 1] says where each sequence begins. The P parts
    tell whose the tokens are: numbers of origins int64[P], and of tokens int64[P]; part_edges int64[N + 1].
    """

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    edges: npt.NDArray[np.int64]
    origins: list[Origin]
    part_origins: npt.NDArray[np.int64]
    part_lengths: npt.NDArray[np.int64]
    part_edges: npt.NDArray[np.int64]
    placed: dict[int, list[Placed]] = field(default_factory=dict)
    """The images and videos of the sequences that have any."""

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens the model sees, by sequence: a placeholder that stands for many counts as many."""
        lengths: list[int] = np.diff(self.edges).tolist()
        for number, placed in self.placed.items():
            lengths[number] += sum(one.num_tokens - one.count for one in placed)
        return lengths

    @cached_property
    def trained_runs(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Which tokens are trained, as run lengths int32[R], and how many runs each sequence has, int64[N]."""
        return trained_runs(self.weights > 0, self.edges)

    @cached_property
    def num_trained(self) -> list[int]:
        """The numbers of trained tokens, by sequence."""
        runs, counts = self.trained_runs
        edges = np.concatenate([[0], np.cumsum(counts)])
        is_trained = (np.arange(len(runs)) - np.repeat(edges[:-1], counts)) % 2
        found: list[int] = np.diff(np.concatenate([[0], np.cumsum(runs * is_trained)])[edges]).tolist()
        return found

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32[T]: the id where it is trained, else -100; unshifted."""
        return np.where(self.weights > 0, self.ids, np.int32(IGNORED))

    def spans(self, owners: dict[Owner, int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Numbers of owners and of tokens by turns, int32[S, 2], and where those of each sequence begin, int64[N + 1].

        `owners` numbers the owners; new ones are added to it as they are met.
        """
        row = np.repeat(np.arange(len(self.edges) - 1), np.diff(self.part_edges))
        met: dict[Owner, int] = {}
        numbers = np.array([met.setdefault(origin.owner, len(met)) for origin in self.origins], np.int64)
        filled = self.part_lengths > 0
        row, owner, lengths = row[filled], numbers[self.part_origins[filled]], self.part_lengths[filled]
        begins = np.flatnonzero((np.diff(row, prepend=-1) > 0) | (np.diff(owner, prepend=-1) != 0))
        row, owner = row[begins], owner[begins]
        named = list(met)
        is_of = [owner == number for number in range(len(named))]
        for number in sorted((n for n, some in enumerate(is_of) if some.any()), key=lambda n: int(is_of[n].argmax())):
            owners.setdefault(named[number], len(owners))
        numbers = np.array([owners.get(name, -1) for name in named], np.int64)
        lengths = np.add.reduceat(lengths, begins) if len(begins) else lengths
        values = np.stack([numbers[owner], lengths], axis=1, dtype=np.int32, casting="unsafe")
        return values, np.searchsorted(row, np.arange(len(self.edges)))

    def rows(self, first: int, stop: int) -> Batch:
        """The sequences [first, stop)."""
        if (first, stop) == (0, len(self.edges) - 1):
            return self
        low, high = self.edges[first], self.edges[stop]
        start, end = self.part_edges[first], self.part_edges[stop]
        placed = {n - first: self.placed[n] for n in range(first, stop) if n in self.placed} if self.placed else {}
        return Batch(
            self.ids[low:high], self.weights[low:high], self.edges[first : stop + 1] - low,
            self.origins, self.part_origins[start:end], self.part_lengths[start:end],
            self.part_edges[first : stop + 1] - start, placed,
        )  # fmt: skip


@dataclass(slots=True)
class Encoded:
    """One sequence of a batch."""

    batch: Batch
    number: int

    @classmethod
    def of(
        cls, ids: npt.NDArray[np.int32], weights: npt.NDArray[np.float32], stretches: list[Stretch],
        placed: Sequence[Placed] = (),
    ) -> Encoded:  # fmt: skip
        """A sequence in a batch of its own."""
        origins = [Origin(0.0, owner, message, generated) for owner, _, message, generated in stretches]
        lengths = np.array([stretch.length for stretch in stretches], np.int64)
        edges, part_edges = np.array([0, len(ids)]), np.array([0, len(stretches)])
        parts = np.arange(len(stretches))
        return cls(Batch(ids, weights, edges, origins, parts, lengths, part_edges, {0: [*placed]}), 0)

    @property
    def _tokens(self) -> slice:
        return slice(*self.batch.edges[self.number : self.number + 2].tolist())

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """int32[T]."""
        return self.batch.ids[self._tokens]

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """float32[T], > 0 = trained."""
        return self.batch.weights[self._tokens]

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32[T]: the id where it is trained, else -100; unshifted."""
        return self.batch.labels[self._tokens]

    @property
    def placed(self) -> Sequence[Placed]:
        """The images and videos, in order."""
        return self.batch.placed.get(self.number, ())

    @property
    def length(self) -> int:
        """Tokens the model sees."""
        return self.batch.lengths[self.number]

    @property
    def num_trained(self) -> int:
        """The number of trained tokens."""
        return self.batch.num_trained[self.number]

    @property
    def stretches(self) -> list[Stretch]:
        """Whose the tokens are, in order and covering all T."""
        merged: list[Stretch] = []
        parts = slice(*self.batch.part_edges[self.number : self.number + 2].tolist())
        lengths = self.batch.part_lengths[parts].tolist()
        for number, length in zip(self.batch.part_origins[parts].tolist(), lengths, strict=True):
            _, owner, message, generated = self.batch.origins[number]
            last = merged[-1] if merged else None
            if last and (last.owner, last.message, last.generated) == (owner, message, generated):
                merged[-1] = last._replace(length=last.length + length)
            elif length:
                merged.append(Stretch(owner, length, message, generated))
        return merged

    def between(self, start: int, end: int, placed: list[Placed]) -> Encoded:
        """The tokens [start, end), with the images and videos that stand there."""
        stretches, position = [], 0
        for stretch in self.stretches:
            low, high = max(start, position), min(end, position + stretch.length)
            if high > low:
                stretches.append(stretch._replace(length=high - low))
            position += stretch.length
        return Encoded.of(self.ids[start:end], self.weights[start:end].copy(), stretches, placed)


def joined(sequences: Sequence[Encoded]) -> Batch:
    """The sequences in one batch. Those that follow each other in theirs are taken from it at once."""
    taken: list[tuple[Batch, int, int]] = []
    batch, first, stop = None, 0, 0
    for one in sequences:
        if one.batch is batch and one.number == stop:
            stop += 1
            continue
        if batch is not None:
            taken.append((batch, first, stop))
        batch, first, stop = one.batch, one.number, one.number + 1
    if batch is not None:
        taken.append((batch, first, stop))
    parts = [batch.rows(first, stop) for batch, first, stop in taken]
    if len(parts) == 1:
        return parts[0]
    origins: list[Origin] = []
    begin: dict[int, int] = {}
    for batch, _, _ in taken:
        if id(batch) not in begin:
            begin[id(batch)] = len(origins)
            origins += batch.origins
    placed, count = dict[int, list[Placed]](), 0
    for part in parts:
        placed |= {count + number: some for number, some in part.placed.items()}
        count += len(part.edges) - 1
    none = np.empty(0, np.int64)
    return Batch(
        np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)]),
        np.concatenate([np.empty(0, np.float32), *(part.weights for part in parts)]),
        np.cumsum(np.concatenate([[0], *(np.diff(part.edges) for part in parts)])),
        origins,
        np.concatenate(
            [none, *(part.part_origins + begin[id(one)] for part, (one, _, _) in zip(parts, taken, strict=True))]
        ),
        np.concatenate([none, *(part.part_lengths for part in parts)]),
        np.cumsum(np.concatenate([[0], *(np.diff(part.part_edges) for part in parts)])),
        placed,
    )


def trained_runs(
    trained: npt.NDArray[np.bool_], edges: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Which tokens are trained, bool[T], as run lengths int32[R], and how many runs each row has, int64[N].

    The runs of a row begin with one that is not trained, of length 0 where the first token is.
    """
    begins = np.zeros(len(trained) + 1, np.bool_)
    np.not_equal(trained[1:], trained[:-1], out=begins[1:-1])
    begins[edges] = True
    places = np.flatnonzero(begins)
    numbers = np.searchsorted(places, edges)
    first = np.append(trained, False)[edges[:-1]] & (np.diff(edges) > 0)
    runs = np.insert(np.diff(places), numbers[:-1][first], 0)
    return runs.astype(np.int32), np.diff(numbers) + first
