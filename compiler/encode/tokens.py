"""Rendered conversations to token columns, a batch at a time.

1. All texts of the batch are encoded in one call.
2. Control tokens are put between them by id; labels and weights are made from lengths. No loop over tokens.
3. Runs in pieces also need to know where each token stands: the bytes of the vocabulary's entries tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compiler.encode.shapes import Owner, Piece, Rendered
from compiler.tokenizer.encoders import REFERENCE
from compiler.tokenizer.tokenizer import Tokenizer
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


@dataclass(slots=True)
class Encoded:
    """One sequence. ids int32[T]; weights float32[T], > 0 = trained.

    `owned` says whose the tokens are, in order and covering all T: stretches, or the row they are worked out from when
    they are asked for, with the numbers of tokens of its runs, int64[R], and of the pieces of runs in pieces.
    """

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    owned: list[Stretch] | tuple[Rendered, npt.NDArray[np.int64], dict[int, list[int]]]
    placed: list[Placed] = field(default_factory=list)

    @property
    def stretches(self) -> list[Stretch]:
        """Consecutive tokens of one owner and message, in order."""
        merged: list[Stretch] = []
        for stretch in self._pieces():
            last = merged[-1] if merged else None
            if last and last._replace(length=stretch.length) == stretch:
                merged[-1] = last._replace(length=last.length + stretch.length)
            elif stretch.length:
                merged.append(stretch)
        return merged

    def spans(self) -> tuple[list[Owner], npt.NDArray[np.int64]]:
        """Whose the tokens are in turn, and how many, int64[S]; rows of one shape share the list where they can."""
        if isinstance(self.owned, tuple):
            row, lengths, _ = self.owned
            if not row.pieces and lengths.all():  # most rows
                owners, starts = row.shape.spans
                return owners, np.add.reduceat(lengths, starts)
        found: list[Owner] = []
        counts: list[int] = []
        for owner, length, _, _ in self._pieces():
            if found and found[-1] == owner:
                counts[-1] += length
            elif length:
                found.append(owner)
                counts.append(length)
        return found, np.array(counts, np.int64)

    def _pieces(self) -> list[Stretch]:
        """The tokens run by run, and piece by piece where a run is in pieces; neighbours may be alike."""
        if isinstance(self.owned, list):
            return self.owned
        row, lengths, shares = self.owned
        shape, found = row.shape, list[Stretch]()
        for number, length in enumerate(lengths.tolist()):
            if number in shares:
                pieces = zip(row.pieces[number], shares[number], strict=True)
                found += [Stretch(piece.owner, count, piece.message, piece.generated) for piece, count in pieces]
            else:
                found.append(Stretch(shape.owners[number], length, shape.messages[number], shape.generated[number]))
        return found

    @property
    def length(self) -> int:
        """Tokens the model sees: a placeholder that stands for many counts as many."""
        return len(self.ids) + sum(placed.num_tokens - placed.count for placed in self.placed)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32[T]: the id where it is trained, else -100; unshifted."""
        return labels_of(self.ids, self.weights)

    def between(self, start: int, end: int, placed: list[Placed]) -> Encoded:
        """The tokens [start, end), with the images and videos that stand there."""
        stretches, position = [], 0
        for stretch in self.stretches:
            low, high = max(start, position), min(end, position + stretch.length)
            if high > low:
                stretches.append(stretch._replace(length=high - low))
            position += stretch.length
        return Encoded(self.ids[start:end], self.weights[start:end].copy(), stretches, placed)


def labels_of(ids: npt.NDArray[np.int32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """The labels int32[T] of tokens: the id where it is trained, else -100."""
    return np.where(weights > 0, ids, np.int32(IGNORED))


def encode(rows: list[Rendered], tokenizer: Tokenizer, encoder: str = REFERENCE) -> list[Encoded]:
    """Fill rows into their shapes and encode them; the sequences come in the order of the rows."""
    if not rows:
        return []
    by_shape: dict[int, list[Rendered]] = {}
    for row in rows:
        by_shape.setdefault(id(row.shape), []).append(row)
    for some in by_shape.values():
        some[0].shape.fill(some)
    lengths, ids = _ids(rows, tokenizer, encoder)
    weights = np.repeat(np.concatenate([row.shape.weight for row in rows]), lengths)
    edges = [0, *accumulate(len(row.shape.owners) for row in rows)]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    starts = ends[edges].tolist()
    shares = _weigh_pieces(rows, edges, ends.tolist(), ids, weights, tokenizer)
    encoded = []
    for row, first, last, low, high, share in zip(rows, edges, edges[1:], starts, starts[1:], shares, strict=False):
        placed = _placed(row, (ends[first : last + 1] - low).tolist()) if row.shape.media else []
        encoded.append(Encoded(ids[low:high], weights[low:high], (row, lengths[first:last], share), placed))
    return encoded


def _ids(
    rows: list[Rendered], tokenizer: Tokenizer, encoder: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """(lengths int64[R], ids int32[T]) of all runs: control tokens placed by id, texts encoded in one call."""
    control = np.concatenate([row.shape.control for row in rows])
    lengths = np.concatenate([row.shape.repeat for row in rows])
    is_text = control < 0
    texts = [text for row in rows for text in row.texts]
    encoded = []
    if not tokenizer.has_prefix:
        part, lengths[is_text] = tokenizer.encode(texts, fresh=True, encoder=encoder)
        encoded.append((is_text, part))
    else:
        is_fresh = np.concatenate([row.shape.fresh for row in rows])[is_text]
        for fresh in (True, False):
            some = is_fresh if fresh else ~is_fresh
            mine = is_text.copy()
            mine[is_text] = some
            chosen = [text for text, is_mine in zip(texts, some.tolist(), strict=True) if is_mine]
            part, lengths[mine] = tokenizer.encode(chosen, fresh=fresh, encoder=encoder)
            encoded.append((mine, part))
    ids = np.repeat(control, lengths)
    for mine, part in encoded:
        ids[np.repeat(mine, lengths)] = part
    return lengths, ids


def _weigh_pieces(
    rows: list[Rendered],
    edges: list[int],
    ends: list[int],
    ids: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    tokenizer: Tokenizer,
) -> list[dict[int, list[int]]]:
    """Fill in the weights of runs in pieces; say for each row how many tokens each of their pieces has, by run.

    Where a token stands follows from the bytes that the vocabulary's entries stand for, if the tokenizer reads the text
    as it is and they sum up to it; all such runs are done at once. Of the others the tokenizer itself is asked, for
    characters.
    """
    shares: list[dict[int, list[int]]] = [{} for _ in rows]
    cut: list[tuple[dict[int, list[int]], int, list[Piece], int, int, str, bool]] = []
    for row, first, share in zip(rows, edges, shares, strict=False):
        for number, pieces in row.pieces.items():
            low, high = ends[first + number], ends[first + number + 1]
            if len(pieces) == 1:
                weights[low:high] = pieces[0].weight
                share[number] = [high - low]
            else:
                text, fresh = row.texts[row.shape.text_number[number]], bool(row.shape.fresh[number])
                cut.append((share, number, pieces, low, high, text, fresh))
    by_bytes: list[tuple[dict[int, list[int]], int, list[Piece], int, int, list[int]]] = []
    as_is = [tokenizer.reads_as_is(text) for *_, text, _ in cut]
    for (share, number, pieces, low, high, text, fresh), is_read_as_is in zip(cut, as_is, strict=True):
        widths = _widths(text, pieces, ids[low:high], tokenizer, fresh=fresh) if is_read_as_is else []
        if widths:
            by_bytes.append((share, number, pieces, low, high, widths))
            continue
        _, offsets = tokenizer.encode_with_offsets(text, fresh=fresh)
        given, widths = [piece.weight for piece in pieces], [piece.length for piece in pieces]
        weights[low:high], owner = by_place(given, offsets[:, 0], offsets[:, 1], widths)
        share[number] = np.bincount(owner, minlength=len(widths)).tolist()
    if by_bytes:
        assert tokenizer.byte_lengths is not None
        where = np.concatenate([np.arange(low, high) for *_, low, high, _ in by_bytes])
        last = np.cumsum(tokenizer.byte_lengths[ids[where]])
        given = [piece.weight for _, _, pieces, *_ in by_bytes for piece in pieces]
        widths = [width for *_, some in by_bytes for width in some]
        weights[where], owner = by_place(given, np.concatenate([[0], last[:-1]]), last, widths)
        counts = np.bincount(owner, minlength=len(widths)).tolist()
        at = 0
        for share, number, *_, some in by_bytes:
            share[number] = counts[at : at + len(some)]
            at += len(some)
    return shares


def _widths(
    text: str, pieces: list[Piece], ids: npt.NDArray[np.int32], tokenizer: Tokenizer, *, fresh: bool
) -> list[int]:
    """The bytes of each piece of a run's text, [] where the bytes of the tokens do not tell where they stand.

    A prefix space that the tokenizer puts before the text is the first piece's.
    """
    sizes = tokenizer.byte_lengths
    if sizes is None or not len(ids):
        return []
    widths = [piece.length for piece in pieces]
    if not text.isascii():
        edges = [0, *accumulate(widths)]
        widths = [len(text[start:end].encode()) for start, end in pairwise(edges)]
    widths[0] += tokenizer.has_prefix and fresh
    return widths if int(sizes[ids].sum()) == sum(widths) else []


def _placed(row: Rendered, starts: list[int]) -> list[Placed]:
    """Where the media stand: each is a run of placeholders, between two marks or none."""
    media = row.conversation.media()
    found: dict[int, list[tuple[int, int]]] = {}
    for number, start, end in zip(row.shape.media, starts, starts[1:], strict=False):
        if number >= 0:
            found.setdefault(number, []).append((start, end))
    placed = []
    for number, runs in found.items():
        first, last = runs[len(runs) // 2]
        placed.append(Placed(number, runs[0][0], first, last - first, runs[-1][1], media[number].num_tokens))
    return placed


_Owned = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""(weight float32[T], index of the piece of the first character int64[T])."""


def by_place(
    given: list[float], first: npt.NDArray[np.int64], last: npt.NDArray[np.int64], widths: list[int]
) -> _Owned:
    """The weights and owners of tokens at [first, last) of pieces with these weights and widths.

    A token takes the smallest weight among the characters it covers: one that covers any untrained character is
    untrained.
    """
    bounds = np.cumsum([0, *widths])
    values = np.array(given, dtype=np.float32)
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
    weight = np.minimum(values[start], values[end])
    for i in np.flatnonzero(end - start > 1):
        weight[i] = values[start[i] : end[i] + 1].min()
    return weight, start
