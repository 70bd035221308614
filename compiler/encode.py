"""Segments to token columns, a batch of conversations at a time.

1. Neighbouring texts are one *run*: literals of the template merge with the contents beside them, as they do at
   inference. A run ends at a control token and at a generation boundary.
2. All runs of the batch are encoded in one call. Runs in which weights or speakers change also need to know where
   each token stands: the bytes of the vocabulary's entries tell.
3. Control tokens are put between them by id; labels and weights are made from lengths. No loop over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from compiler.bpe import REFERENCE
from compiler.conversation import Conversation, Segment
from compiler.tokenizer import Tokenizer

IGNORED = -100

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""What control tokens that swallow white space swallow: Unicode's, which Python's `strip` adds \\x1c to \\x1f to."""

Who = tuple[str, str]
"""(role, key): whose tokens these are; role "template" is the template's own text."""

TEMPLATE: Who = ("template", "")


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
class Encoded:
    """One sequence. ids int32[T]; weights float32[T], > 0 = trained; stretches cover all T tokens in order."""

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    stretches: list[Stretch]
    placed: list[Placed] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens the model sees: a placeholder that stands for many counts as many."""
        return len(self.ids) + sum(placed.num_tokens - placed.count for placed in self.placed)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32[T]: the id where it is trained, else -100; unshifted."""
        return np.where(self.weights > 0, self.ids, np.int32(IGNORED))


@dataclass(slots=True)
class Run:
    """Texts to be encoded as one; `control` >= 0 makes it that token instead."""

    control: int
    segments: list[Segment]
    fresh: bool

    @property
    def text(self) -> str:
        """The text to be encoded."""
        return "".join(segment.text for segment in self.segments)

    def speaker(self) -> Segment | None:
        """Return the segment that stands for the whole run: one weight, one speaker (and template text); else None."""
        first = self.segments[0]
        speaker = first
        for segment in self.segments[1:]:
            if (segment.weight, segment.generated, segment.key) != (first.weight, first.generated, first.key):
                return None
            if speaker.message < 0:
                speaker = segment
            elif segment.message not in (-1, speaker.message):
                return None
        return speaker


def encode(
    batch: list[tuple[Conversation, list[Segment]]], tokenizer: Tokenizer, engine: str = REFERENCE
) -> list[Encoded]:
    """Return the token columns of each weighed conversation."""
    rows = [make_runs(segments, tokenizer) for _, segments in batch]
    runs = [run for row in rows for run in row]
    lengths, ids = _encode_runs(runs, tokenizer, engine)
    speakers = [run.speaker() for run in runs]
    weights = np.repeat(np.array([0.0 if s is None else s.weight for s in speakers], np.float32), lengths)
    starts: list[int] = [0, *np.cumsum(lengths).tolist()]
    encoded = []
    first = 0
    for row, (conversation, _) in zip(rows, batch, strict=True):
        stretches: list[Stretch] = []
        last = first + len(row)
        for run, speaker, low, high in zip(
            row, speakers[first:last], starts[first:last], starts[first + 1 : last + 1], strict=True
        ):
            if speaker is not None:
                _extend(stretches, speaker, high - low, conversation)
                continue
            weights[low:high], owner = _of_several(run, ids[low:high], tokenizer)
            changes = np.flatnonzero(np.diff(owner, prepend=-1, append=-1)).tolist()
            for a, b in pairwise(changes):
                _extend(stretches, run.segments[owner[a]], b - a, conversation)
        low, high = starts[first], starts[last]
        placed = _placed(row, [start - low for start in starts[first : last + 1]], conversation)
        encoded.append(Encoded(ids[low:high], weights[low:high], stretches, placed))
        first = last
    return encoded


def _encode_runs(
    runs: list[Run], tokenizer: Tokenizer, engine: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return (lengths int64[R], ids int32[T]) of all runs: control tokens placed by id, texts encoded in one call."""
    lengths = np.array([run.segments[0].repeat for run in runs], np.int64)
    encoded = []
    for fresh in (True, False):
        mine = np.array([run.control < 0 and run.fresh is fresh for run in runs], bool)
        if mine.any():
            texts = [run.text for run, is_mine in zip(runs, mine.tolist(), strict=True) if is_mine]
            part, lengths[mine] = tokenizer.encode(texts, fresh=fresh, engine=engine)
            encoded.append((mine, part))
    ids = np.repeat(np.array([run.control for run in runs], np.int32), lengths)
    for mine, part in encoded:
        ids[np.repeat(mine, lengths)] = part
    return lengths, ids


def make_runs(segments: list[Segment], tokenizer: Tokenizer) -> list[Run]:
    """Return the runs of one conversation, each to be encoded as one text or placed as one control token."""
    runs: list[Run] = []
    for segment in segments:
        if runs and runs[-1].control in tokenizer.swallows and not segment.boundary:
            segment = replace(segment, text=segment.text.lstrip(WHITE_SPACE))
        if segment.control >= 0:
            runs.append(Run(segment.control, [segment], fresh=False))
        elif not segment.text:
            continue
        elif runs and runs[-1].control < 0 and not segment.boundary:
            runs[-1].segments.append(segment)
        else:
            fresh = not runs or tokenizer.prefix_every_section
            if segment.boundary and runs and runs[-1].control < 0:
                fresh = segment.fresh
            runs.append(Run(-1, [segment], fresh))
    return runs


def _placed(runs: list[Run], starts: list[int], conversation: Conversation) -> list[Placed]:
    """Return where the media stand: each is three runs, its placeholders between two marks."""
    if not any(run.segments[0].media >= 0 for run in runs):
        return []
    media = conversation.media()
    placed: dict[int, Placed] = {}
    for run, start, end in zip(runs, starts, starts[1:], strict=False):
        number = run.segments[0].media
        if number < 0:
            continue
        if number not in placed:
            placed[number] = Placed(number, start, end, 0, end, media[number].num_tokens)
        elif not placed[number].count:
            placed[number].count = end - start
        placed[number].end = end
    return list(placed.values())


_Owned = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""(weight float32[T], index of the segment of the first character int64[T])."""


def _of_several(run: Run, ids: npt.NDArray[np.int32], tokenizer: Tokenizer) -> _Owned:
    """Return the weights and owners of a run of several speakers.

    Where a token stands follows from the bytes that the vocabulary's entries stand for, if the tokenizer reads the text
    as it is and they sum up to it; else the tokenizer itself is asked, for characters.
    """
    text, sizes = run.text, tokenizer.byte_lengths
    if sizes is not None and tokenizer.reads_as_is(text):
        widths = [len(segment.text.encode()) for segment in run.segments]
        ends = np.cumsum(sizes[ids]) - (tokenizer.has_prefix and run.fresh)
        if len(ids) and ends[-1] == sum(widths):
            starts = np.concatenate([[0], ends[:-1]]).clip(0)
            return _by_place(run.segments, starts, ends, widths)
    _, offsets = tokenizer.encode_with_offsets(text, fresh=run.fresh)
    return _by_place(run.segments, offsets[:, 0], offsets[:, 1], [len(segment.text) for segment in run.segments])


def _by_place(
    segments: list[Segment], first: npt.NDArray[np.int64], last: npt.NDArray[np.int64], widths: list[int]
) -> _Owned:
    """Return the weights and owners of tokens at [first, last), in the unit of the segments' widths.

    A token takes the smallest weight among the characters it covers: one that covers any untrained character is
    untrained.
    """
    bounds = np.cumsum([0, *widths])
    values = np.array([segment.weight for segment in segments], dtype=np.float32)
    last_segment = len(segments) - 1
    total = int(bounds[-1])
    # What normalization joined to a character before it (a combining accent) or left out has no offset of its own:
    # it belongs to the token before it. A token of no width (a lone prefix space) counts for the character after it.
    last = np.maximum(last, np.append(first[1:], total)) - 1
    start = np.minimum(np.searchsorted(bounds, first, side="right") - 1, last_segment)
    end = np.searchsorted(bounds, np.maximum(last, first), side="right") - 1
    end = np.clip(end, start, last_segment)
    weight = np.minimum(values[start], values[end])
    for i in np.flatnonzero(end - start > 1):
        weight[i] = values[start[i] : end[i] + 1].min()
    return weight, start


def _extend(stretches: list[Stretch], segment: Segment, count: int, conversation: Conversation) -> None:
    if not count:
        return
    role = str(conversation.messages[segment.message].role) if segment.message >= 0 else ""
    who = (role, segment.key) if role else TEMPLATE
    last = stretches[-1] if stretches else None
    if last and (last.who, last.message, last.generated) == (who, segment.message, segment.generated):
        last.length += count
    else:
        stretches.append(Stretch(who, count, segment.message, segment.generated))
