"""Segments to token columns, a batch of conversations at a time.

1. Neighbouring texts are one *run*: literals of the template merge with the contents beside them, as they do at
   inference. A run ends at a control token and at a generation boundary.
2. All runs of the batch are encoded in one call. Runs in which weights or speakers change also need character offsets.
3. Control tokens are put between them by id; labels and weights are made from lengths. No loop over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

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


def encode(batch: list[tuple[Conversation, list[Segment]]], tokenizer: Tokenizer) -> list[Encoded]:
    """Return the token columns of each weighed conversation."""
    runs = [make_runs(segments, tokenizer) for _, segments in batch]
    ids = _encode_runs([run for row in runs for run in row if run.control < 0], tokenizer)
    return [_assemble(row, ids, conversation) for row, (conversation, _) in zip(runs, batch, strict=True)]


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


_Tokens = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64] | Segment]
"""Ids, and whose they are: the one speaker of the run, or character offsets int64[T, 2] where it has several."""


def _encode_runs(runs: list[Run], tokenizer: Tokenizer) -> dict[int, _Tokens]:
    """Return the tokens of each run, by its id()."""
    done: dict[int, _Tokens] = {}
    plain: dict[bool, list[tuple[Run, Segment]]] = {True: [], False: []}
    for run in runs:
        speaker = run.speaker()
        if speaker is not None:
            plain[run.fresh].append((run, speaker))
        else:
            done[id(run)] = tokenizer.encode_with_offsets(run.text, fresh=run.fresh)
    for fresh, group in plain.items():
        if group:
            ids, lengths = tokenizer.encode([run.text for run, _ in group], fresh=fresh)
            for (run, speaker), part in zip(group, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
                done[id(run)] = (part, speaker)
    return done


def _assemble(runs: list[Run], tokens: dict[int, _Tokens], conversation: Conversation) -> Encoded:
    ids: list[npt.NDArray[np.int32]] = []
    weights: list[npt.NDArray[np.float32]] = []
    stretches: list[Stretch] = []
    for run in runs:
        first = run.segments[0]
        part, whose = (_controls(first), first) if run.control >= 0 else tokens[id(run)]
        ids.append(part)
        if isinstance(whose, Segment):
            weights.append(np.full(len(part), whose.weight, dtype=np.float32))
            counts = [(whose, len(part))]
        else:
            weight, owner = _from_offsets(run.segments, whose)
            weights.append(weight)
            edges = np.flatnonzero(np.diff(owner, prepend=-1, append=-1))
            counts = [(run.segments[owner[a]], int(b - a)) for a, b in pairwise(edges)]
        for segment, count in counts:
            _extend(stretches, segment, count, conversation)
    return Encoded(np.concatenate(ids), np.concatenate(weights), stretches, _placed(runs, ids, conversation))


def _controls(segment: Segment) -> npt.NDArray[np.int32]:
    return np.full(segment.repeat, segment.control, dtype=np.int32)


def _placed(runs: list[Run], parts: list[npt.NDArray[np.int32]], conversation: Conversation) -> list[Placed]:
    """Return where the media stand: each is three runs, its placeholders between two marks."""
    if not any(run.segments[0].media >= 0 for run in runs):
        return []
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).tolist()
    media = conversation.media()
    placed: dict[int, Placed] = {}
    for i, run in enumerate(runs):
        number = run.segments[0].media
        if number < 0:
            continue
        if number not in placed:
            placed[number] = Placed(number, starts[i], starts[i + 1], 0, starts[i + 1], media[number].num_tokens)
        elif not placed[number].count:
            placed[number].count = len(parts[i])
        placed[number].end = starts[i + 1]
    return list(placed.values())


def _from_offsets(
    segments: list[Segment], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return (weight float32[T], index of the segment of the first character int64[T]).

    A token takes the smallest weight among the characters it covers: one that covers any untrained character is
    untrained.
    """
    bounds = np.cumsum([0] + [len(segment.text) for segment in segments])
    values = np.array([segment.weight for segment in segments], dtype=np.float32)
    last_segment = len(segments) - 1
    first, total = offsets[:, 0], int(bounds[-1])
    # What normalization joined to a character before it (a combining accent) or left out has no offset of its own:
    # it belongs to the token before it. A token of no width (a lone prefix space) counts for the character after it.
    last = np.maximum(offsets[:, 1], np.append(first[1:], total)) - 1
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
