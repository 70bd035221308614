"""Runs in pieces: how many tokens each piece has, and what they weigh.

Where a token stands follows from the bytes that the vocabulary's entries stand for, if the tokenizer reads the text as
it is and they sum up to it; all such runs of a batch are done at once. Of the others the tokenizer itself is asked, for
characters.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compiler.tokenizer.tokenizer import Tokenizer


class Cut(NamedTuple):
    """A run in several pieces: its number in the batch, its text, and the lengths of the pieces in characters."""

    run: int
    text: str
    fresh: bool
    lengths: list[int]


def weigh_cuts(
    cuts: list[Cut],
    given: npt.NDArray[np.float32],
    ends: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    tokenizer: Tokenizer,
) -> npt.NDArray[np.int64]:
    """Fill in the weights of the tokens of cuts; return how many tokens each of their P pieces has, int64[P].

    `given` float32[P] is what the pieces weigh, `ends` int64[R + 1] where the runs of the batch begin and end in ids.
    """
    lengths = np.fromiter(chain.from_iterable(cut.lengths for cut in cuts), np.int64)
    counts = np.array([len(cut.lengths) for cut in cuts])
    runs = np.array([cut.run for cut in cuts])
    low, high = ends[runs], ends[runs + 1]
    widths = _widths(cuts, lengths, counts, tokenizer)
    sizes = None
    if tokenizer.byte_lengths is not None:
        sizes = tokenizer.byte_lengths[
            np.concatenate([ids[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)])
        ]
    tell = np.zeros(len(cuts), np.bool_)
    if sizes is not None and sizes.all():
        tell = np.array([tokenizer.reads_as_is(cut.text) for cut in cuts])
        tell &= _sums(sizes, high - low) == _sums(widths, counts)
    tokens = np.zeros(len(lengths), np.int64)
    some, last = np.repeat(tell, counts), np.cumsum(counts)
    if sizes is not None and tell.any():
        found, tokens[some] = by_bytes(given[some], widths[some], sizes[np.repeat(tell, high - low)])
        at = 0
        for a, b in zip(low[tell].tolist(), high[tell].tolist(), strict=True):
            weights[a:b], at = found[at : at + b - a], at + b - a
    for number in np.flatnonzero(~tell).tolist():
        cut, mine = cuts[number], slice(last[number] - counts[number], last[number])
        _, offsets = tokenizer.encode_with_offsets(cut.text, fresh=cut.fresh)
        found, owner = by_place(given[mine], offsets[:, 0], offsets[:, 1], cut.lengths)
        weights[low[number] : high[number]], tokens[mine] = found, np.bincount(owner, minlength=len(cut.lengths))
    return tokens


def _sums(values: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The sums of so many values each."""
    ends = np.concatenate([[0], np.cumsum(values)])[np.cumsum(counts)]
    return np.diff(ends, prepend=0)


def _widths(
    cuts: list[Cut], lengths: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], tokenizer: Tokenizer
) -> npt.NDArray[np.int64]:
    """The bytes of the pieces. A space that the tokenizer puts before the text is the first piece's."""
    text = "".join([cut.text for cut in cuts])
    if not text.isascii():
        data = np.frombuffer(text.encode(), np.int8)
        begins = np.append(np.flatnonzero(data >= -64), len(data))  # the further bytes of a character are below
        lengths = np.diff(begins[np.cumsum(lengths)], prepend=0)
    if tokenizer.has_prefix:
        lengths = lengths.copy()
        lengths[np.cumsum(counts) - counts] += [cut.fresh for cut in cuts]
    return lengths


def by_bytes(
    given: npt.NDArray[np.float32], widths: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The weights of tokens of these sizes in bytes, and how many tokens begin in each piece.

    A token takes the smallest weight among the bytes it covers. No token is empty.
    """
    ends, bounds = np.cumsum(sizes), np.cumsum(widths)
    first = np.searchsorted(ends - sizes, bounds)  # of the tokens that begin where a piece ends, or later
    tokens = np.diff(first, prepend=0)
    weights = np.repeat(given, tokens)
    crosses = np.flatnonzero((first > 0) & (ends[first - 1] > bounds))  # the token before covers more than the piece
    np.minimum.at(weights, first[crosses] - 1, given[crosses + 1])
    return weights, tokens


_Owned = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""(weight float32[T], index of the piece of the first character int64[T])."""


def by_place(
    given: npt.NDArray[np.float32], first: npt.NDArray[np.int64], last: npt.NDArray[np.int64], widths: list[int]
) -> _Owned:
    """The weights and owners of tokens at [first, last) of pieces with these weights and widths.

    A token takes the smallest weight among the characters it covers: one that covers any untrained character is
    untrained.
    """
    bounds = np.cumsum([0, *widths])
    last_piece = len(given) - 1
    total = int(bounds[-1])
    # A character that normalization joined to the one before it (a combining accent) or dropped has no offset of its
    # own: it belongs to the token before. A token of no width (a lone prefix space) counts for the character after it.
    following = np.append(first[1:], total)
    if len(first) and (first[1:] == first[:-1]).any():  # several tokens of one character
        after = np.append(first, total)[np.searchsorted(first, first, side="right")]
        following = np.where(last > first, after, following)
    last = np.maximum(last, following) - 1
    start = np.minimum(np.searchsorted(bounds, first, side="right") - 1, last_piece)
    end = np.searchsorted(bounds, np.maximum(last, first), side="right") - 1
    end = np.clip(end, start, last_piece)
    weight = np.minimum(given[start], given[end])
    for i in np.flatnonzero(end - start > 1):
        weight[i] = given[start[i] : end[i] + 1].min()
    return weight, start
