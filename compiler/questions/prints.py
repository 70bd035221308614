"""The examples of a set as numbers: who each is, and hashes of its text, its mask and its weights.

Everything is arithmetic on the columns of a batch; what is kept of an example is about fifty bytes. A text is hashed
as a polynomial of its ids modulo 2**64: all texts of a batch are multiplied by the powers of one number in one go, and
the sum of each is divided by the power of its start. It finds edits; it withstands nobody who builds texts against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from schemas.arrow import SPLITS
from schemas.order import Ints, mix64
from schemas.packs import MEDIA_COLUMNS, unpacked
from schemas.reader import CompiledSet

Hashes = npt.NDArray[np.uint64]
_TOKENS = 1 << 16
"""Tokens that are hashed at once."""
Files = dict[tuple[str, str], int]
"""A number for each (dataset, file)."""


@dataclass(frozen=True)
class Prints:
    """The examples of a set, in the order of its splits. All arrays have an element for each."""

    key: Hashes
    """The identity: dataset, file, row, part and repeat."""
    text: Hashes
    mask: Hashes
    weights: Hashes
    file: Ints
    row: Ints
    part: Ints
    repeat: Ints
    split: Ints
    """The number of its split in `SPLITS`."""
    place: Ints
    """Its number in the split."""

    def __len__(self) -> int:
        return len(self.key)


def prints_of(opened: CompiledSet, files: Files) -> Prints:
    """Read the set once, batch by batch; `files` has every file of its manifest."""
    powers = _Powers()
    found: list[list[npt.NDArray[Any]]] = []
    for number, name in enumerate(SPLITS):
        start = 0
        for batch in opened.split(name).batches():
            rows = unpacked(batch, opened.kind) if opened.is_packed else batch
            try:
                columns = _of_batch(rows, files, powers)
            except KeyError as error:
                raise opened.damage(f"{name}: a row is of {error}, which the manifest does not have") from error
            found.append([*columns, *_placed(number, start, rows.num_rows)])
            start += rows.num_rows
    if not found:
        none: list[npt.NDArray[Any]] = [np.zeros(0, np.uint64)] * 4
        return Prints(*none, *[np.zeros(0, np.int64)] * 6)
    return Prints(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _placed(split: int, start: int, rows: int) -> tuple[Ints, Ints]:
    return np.full(rows, split, np.int64), np.arange(start, start + rows)


class _Powers:
    """The powers of an odd number modulo 2**64, and those of its inverse: as many as were ever asked for."""

    BASE = 0x9E3779B97F4A7C15 | 1

    def __init__(self) -> None:
        self._up, self._down = np.ones(1, np.uint64), np.ones(1, np.uint64)

    def sums(self, values: npt.NDArray[Any], lengths: Ints) -> Hashes:
        """The hash of each list of values: the sum of each value times the power of its place.

        So many lists are taken at once that the arrays stay in the processor's cache.
        """
        total = np.zeros(len(lengths), np.uint64)
        ends = np.cumsum(lengths)
        last = int(ends[-1]) if len(ends) else 0
        cuts = np.unique(np.searchsorted(ends, np.arange(_TOKENS, last, _TOKENS)) + 1)
        for begin, end in pairwise([0, *(cut for cut in cuts.tolist() if cut < len(ends)), len(ends)]):
            first = int(ends[begin] - lengths[begin]) if last else 0
            piece = values[first : int(ends[end - 1])].astype(np.uint64) if last else values[:0]
            if not len(piece):
                continue
            self._extend(len(piece))
            some = lengths[begin:end] > 0
            starts = (ends[begin:end] - lengths[begin:end] - first)[some]
            np.multiply(piece, self._up[: len(piece)], out=piece)
            total[begin:end][some] = np.add.reduceat(piece, starts) * self._down[starts]
        return total

    def _extend(self, count: int) -> None:
        while len(self._up) < count:
            self._up, self._down = (
                np.concatenate([known, known * np.uint64(pow(base, len(known), 1 << 64))])
                for known, base in ((self._up, self.BASE), (self._down, pow(self.BASE, -1, 1 << 64)))
            )


def _of_batch(batch: pa.RecordBatch, files: Files, powers: _Powers) -> tuple[npt.NDArray[Any], ...]:
    text, mask, weights = _words(batch, powers)
    file = _file_numbers(batch, files)
    row, part, repeat = (batch.column(name).to_numpy().astype(np.int64) for name in ("row", "part", "repeat"))
    key = np.zeros(batch.num_rows, np.uint64)
    for column in (file, row, part, repeat):
        key = mix64(key ^ column.astype(np.uint64))
    return key, text, mask, weights, file, row, part, repeat


def _words(batch: pa.RecordBatch, powers: _Powers) -> tuple[Hashes, Hashes, Hashes]:
    """The hashes of the text, the labels and the weights of each example."""
    text, mask, weights = (np.zeros(batch.num_rows, np.uint64) for _ in range(3))
    for side in ("", "rejected_") if "rejected_input_ids" in batch.schema.names else ("",):
        ids, labels, factors = (batch.column(f"{side}{name}") for name in ("input_ids", "labels", "loss_weights"))
        lengths = _lengths(ids)
        text = mix64(text ^ powers.sums(ids.flatten().to_numpy(), lengths))
        text = mix64(text ^ lengths.astype(np.uint64))
        mask = mix64(mask ^ powers.sums(labels.flatten().to_numpy(), lengths))
        bits = factors.flatten().to_numpy().view(np.uint32)
        weights = mix64(weights ^ powers.sums(bits, _lengths(factors)))
    for name in MEDIA_COLUMNS:
        text = _with_media(text, batch.column(name), powers)
    if "desirable" in batch.schema.names:  # which way the reply is trained
        mask = mix64(mask ^ batch.column("desirable").to_numpy(zero_copy_only=False).astype(np.uint64))
    return text, mask, weights


def _lengths(column: pa.ListArray) -> Ints:
    return np.asarray(column.value_lengths().fill_null(0), np.int64)


def _with_media(text: Hashes, media: pa.ListArray, powers: _Powers) -> Hashes:
    """The hashes of texts with those of their images or videos."""
    lengths = _lengths(media)
    if not lengths.any():
        return text
    values = media.flatten()
    digests = pl.Series(values.field("sha256")).hash(seed=0).to_numpy()
    for name in ("position", "num_tokens"):
        digests = mix64(digests ^ values.field(name).to_numpy(zero_copy_only=False).astype(np.uint64))
    return mix64(text ^ powers.sums(digests, lengths))


def _file_numbers(batch: pa.RecordBatch, files: Files) -> Ints:
    """The number of each example's file."""
    dataset, file = (batch.column(name).dictionary_encode() for name in ("dataset", "file"))
    codes = dataset.indices.to_numpy().astype(np.int64) * len(file.dictionary) + file.indices.to_numpy()
    pairs, inverse = np.unique(codes, return_inverse=True)
    names = [
        (dataset.dictionary[pair // len(file.dictionary)].as_py(), file.dictionary[pair % len(file.dictionary)].as_py())
        for pair in pairs.tolist()
    ]
    return np.array([files[name] for name in names], np.int64)[inverse]
