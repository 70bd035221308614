"""Runs to token columns, a batch of rows at a time.

1. All texts of the batch are encoded in one call.
2. Control tokens are put between them by id; labels and weights are made from lengths. No loop over tokens.
3. Runs in which weights or speakers change also need to know where each token stands: the bytes of the vocabulary's
   entries tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from compiler.conversation import Conversation, Segment
from compiler.encode.runs import Pieces, Runs, Who, runs_of
from compiler.tokenizer.encoders import REFERENCE
from compiler.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")

IGNORED = -100


@dataclass(slots=True)
class Stretch:
    """Consecutive tokens of one speaker, policy key and message; `message` is -1 for the template's own text."""

    who: Who
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
class Spoken:
    """What a sequence's speakers are worked out from: its runs with their numbers of tokens, int64[R], and for those
    in pieces the number of tokens of each piece."""

    runs: Runs
    lengths: npt.NDArray[np.int64]
    shares: dict[int, list[int]]

    def whos(self) -> tuple[list[Who], list[int]]:
        """Return who speaks for how many tokens, run by run and piece by piece; neighbours may be alike."""
        pieces = {i: some.who for i, some in self.runs.mixed.items()}
        return _opened(self.runs.outline.who, pieces), _opened(self.lengths.tolist(), self.shares)

    def stretches(self) -> list[Stretch]:
        """Return who speaks, stretch by stretch."""
        mixed, outline = self.runs.mixed, self.runs.outline
        messages = _opened(outline.message, {i: some.message for i, some in mixed.items()})
        all_generated = _opened(outline.generated, {i: some.generated for i, some in mixed.items()})
        found: list[Stretch] = []
        for who, count, message, generated in zip(*self.whos(), messages, all_generated, strict=True):
            last = found[-1] if found else None
            if last and (last.who, last.message, last.generated) == (who, message, generated):
                last.length += count
            elif count:
                found.append(Stretch(who, count, message, generated))
        return found


def _opened(of_runs: list[T], of_pieces: dict[int, list[T]]) -> list[T]:
    """Return what each run has, or each of its pieces where it is in pieces."""
    opened = of_runs.copy()
    for i in sorted(of_pieces, reverse=True):
        opened[i : i + 1] = of_pieces[i]
    return opened


@dataclass(slots=True)
class Encoded:
    """One sequence. ids int32[T]; weights float32[T], > 0 = trained; stretches cover all T tokens in order."""

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    told: Spoken | list[Stretch]
    """The stretches, or what they are worked out from when they are asked for."""
    placed: list[Placed] = field(default_factory=list)

    @property
    def stretches(self) -> list[Stretch]:
        """Consecutive tokens of one speaker, policy key and message, in order."""
        if isinstance(self.told, Spoken):
            self.told = self.told.stretches()
        return self.told

    @property
    def spans(self) -> list[tuple[Who, int]]:
        """Who speaks in turn, and for how many tokens."""
        if isinstance(self.told, Spoken) and not self.told.runs.mixed and self.told.lengths.all():
            whos, starts = self.told.runs.outline.spans
            return list(zip(whos, np.add.reduceat(self.told.lengths, starts).tolist(), strict=True))
        if isinstance(self.told, Spoken):
            told, counts = self.told.whos()
        else:
            told, counts = [stretch.who for stretch in self.told], [stretch.length for stretch in self.told]
        merged: list[tuple[Who, int]] = []
        last, tokens = None, 0
        for who, count in zip(told, counts, strict=True):
            if who == last:
                tokens += count
            elif count:
                if last is not None:
                    merged.append((last, tokens))
                last, tokens = who, count
        return merged if last is None else [*merged, (last, tokens)]

    @property
    def length(self) -> int:
        """Tokens the model sees: a placeholder that stands for many counts as many."""
        return len(self.ids) + sum(placed.num_tokens - placed.count for placed in self.placed)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32[T]: the id where it is trained, else -100; unshifted."""
        return labels_of(self.ids, self.weights)


def labels_of(ids: npt.NDArray[np.int32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Return the labels int32[T] of tokens: the id where it is trained, else -100."""
    return np.where(weights > 0, ids, np.int32(IGNORED))


def encode(
    batch: list[tuple[Conversation, list[Segment]]], tokenizer: Tokenizer, encoder: str = REFERENCE
) -> list[Encoded]:
    """Return the token columns of each weighed conversation."""
    return encode_runs(
        [runs_of(conversation, segments, tokenizer) for conversation, segments in batch], tokenizer, encoder
    )


def encode_runs(rows: list[Runs], tokenizer: Tokenizer, encoder: str = REFERENCE) -> list[Encoded]:
    """Return the token columns of each row."""
    if not rows:
        return []
    outlines = [row.outline for row in rows]
    lengths, ids = _ids(rows, tokenizer, encoder)
    weights = np.repeat(np.concatenate([outline.weight for outline in outlines]), lengths)
    edges = np.cumsum([0, *(len(outline.control) for outline in outlines)]).tolist()
    ends = np.concatenate([[0], np.cumsum(lengths)])
    starts = ends[edges].tolist()
    shares = _look_into(rows, edges, ends.tolist(), ids, weights, tokenizer)
    encoded = []
    for n, (row, first, last, low, high) in enumerate(zip(rows, edges, edges[1:], starts, starts[1:], strict=False)):
        placed = _placed(row, (ends[first : last + 1] - low).tolist()) if row.outline.media else []
        spoken = Spoken(row, lengths[first:last], shares.get(n, {}))
        encoded.append(Encoded(ids[low:high], weights[low:high], spoken, placed))
    return encoded


def _look_into(
    rows: list[Runs],
    edges: list[int],
    ends: list[int],
    ids: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    tokenizer: Tokenizer,
) -> dict[int, dict[int, list[int]]]:
    """Fill in the weights of runs that are in pieces; return how many tokens each piece has: row -> run -> counts.

    Where a token stands follows from the bytes that the vocabulary's entries stand for, if the tokenizer reads the text
    as it is and they sum up to it; all such runs are done at once. Of the others the tokenizer itself is asked, for
    characters.
    """
    shares: dict[int, dict[int, list[int]]] = {}
    by_bytes: list[tuple[int, int, Pieces, int, int, list[int]]] = []
    for n, row in enumerate(rows):
        for i, pieces in row.mixed.items():
            low, high = ends[edges[n] + i], ends[edges[n] + i + 1]
            if len(pieces.texts) == 1:
                weights[low:high] = pieces.weight[0]
                shares.setdefault(n, {})[i] = [high - low]
                continue
            text, fresh = "".join(pieces.texts), bool(row.outline.fresh[i])
            widths = _widths(text, pieces.texts, ids[low:high], tokenizer, fresh=fresh)
            if widths:
                by_bytes.append((n, i, pieces, low, high, widths))
                continue
            _, offsets = tokenizer.encode_with_offsets(text, fresh=fresh)
            widths = list(map(len, pieces.texts))
            weights[low:high], owner = _by_place(pieces.weight, offsets[:, 0], offsets[:, 1], widths)
            shares.setdefault(n, {})[i] = np.bincount(owner, minlength=len(widths)).tolist()
    if by_bytes:
        assert tokenizer.byte_lengths is not None
        where = np.concatenate([np.arange(low, high) for *_, low, high, _ in by_bytes])
        last = np.cumsum(tokenizer.byte_lengths[ids[where]])
        given = [weight for _, _, pieces, *_ in by_bytes for weight in pieces.weight]
        widths = [width for *_, some in by_bytes for width in some]
        weights[where], owner = _by_place(given, np.concatenate([[0], last[:-1]]), last, widths)
        counts = np.bincount(owner, minlength=len(widths)).tolist()
        at = 0
        for n, i, *_, some in by_bytes:
            shares.setdefault(n, {})[i] = counts[at : at + len(some)]
            at += len(some)
    return shares


def _widths(
    text: str, pieces: list[str], ids: npt.NDArray[np.int32], tokenizer: Tokenizer, *, fresh: bool
) -> list[int]:
    """Return the bytes of each piece of a run's text, [] where the bytes of the tokens do not tell where they stand.

    A prefix space that the tokenizer puts before the text is the first piece's.
    """
    sizes = tokenizer.byte_lengths
    if sizes is None or not len(ids) or not tokenizer.reads_as_is(text):
        return []
    widths = list(map(len, pieces if text.isascii() else map(str.encode, pieces)))
    widths[0] += tokenizer.has_prefix and fresh
    return widths if int(sizes[ids].sum()) == sum(widths) else []


def _ids(rows: list[Runs], tokenizer: Tokenizer, encoder: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return (lengths int64[R], ids int32[T]) of all runs: control tokens placed by id, texts encoded in one call."""
    control = np.concatenate([row.outline.control for row in rows])
    lengths = np.concatenate([row.outline.repeat for row in rows])
    is_text = control < 0
    texts = [text for row in rows for text in row.texts]
    encoded = []
    if not tokenizer.has_prefix:
        part, lengths[is_text] = tokenizer.encode(texts, fresh=True, encoder=encoder)
        encoded.append((is_text, part))
    else:
        is_fresh = np.concatenate([row.outline.fresh for row in rows])[is_text]
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


def _placed(row: Runs, starts: list[int]) -> list[Placed]:
    """Return where the media stand: each is three runs, its placeholders between two marks."""
    media = row.conversation.media()
    placed: dict[int, Placed] = {}
    for number, start, end in zip(row.outline.media, starts, starts[1:], strict=False):
        if number < 0:
            continue
        if number not in placed:
            placed[number] = Placed(number, start, end, 0, end, media[number].num_tokens)
        elif not placed[number].count:
            placed[number].count = end - start
        placed[number].end = end
    return list(placed.values())


_Owned = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""(weight float32[T], index of the piece of the first character int64[T])."""


def _by_place(
    given: list[float], first: npt.NDArray[np.int64], last: npt.NDArray[np.int64], widths: list[int]
) -> _Owned:
    """Return the weights and owners of tokens at [first, last) of pieces with these weights and widths.

    A token takes the smallest weight among the characters it covers: one that covers any untrained character is
    untrained.
    """
    bounds = np.cumsum([0, *widths])
    values = np.array(given, dtype=np.float32)
    last_piece = len(given) - 1
    total = int(bounds[-1])
    # What normalization joined to a character before it (a combining accent) or left out has no offset of its own:
    # it belongs to the token before it. A token of no width (a lone prefix space) counts for the character after it.
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
