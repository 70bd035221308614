"""What is encoded at once: neighbouring texts as one run, control tokens apart, and what rows of a shape share.

Literals of the template merge with the contents beside them, as they do at inference. A run ends at a control token
and at a generation boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from compiler.conversation import Conversation, Segment
from compiler.tokenizer.tokenizer import Tokenizer

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""What control tokens that swallow white space swallow: Unicode's, which Python's `strip` adds \\x1c to \\x1f to."""

Who = tuple[str, str]
"""(role, key): whose tokens these are; role "template" is the template's own text."""

TEMPLATE: Who = ("template", "")


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


@dataclass(slots=True)
class Pieces:
    """A run of several speakers in pieces, as columns: their texts, weights, and what `Outline` has of runs."""

    texts: list[str]
    weight: list[float]
    who: list[Who]
    message: list[int]
    generated: list[bool]


@dataclass
class Outline:
    """What the runs of a row are, as columns: of one row, or of all rows of one shape.

    control int32[R], -1 = a text; repeat int64[R]; fresh bool[R]; weight float32[R]; who, message and
    generated have R entries. Of a run of several speakers weight and the rest say nothing: `Runs.mixed` does.
    """

    control: npt.NDArray[np.int32]
    repeat: npt.NDArray[np.int64]
    fresh: npt.NDArray[np.bool_]
    weight: npt.NDArray[np.float32]
    who: list[Who]
    message: list[int]
    generated: list[bool]
    media: list[int]
    """The numbers of the images and videos that control tokens belong to, -1 = none; [] where there are no media."""

    @cached_property
    def spans(self) -> tuple[list[Who], npt.NDArray[np.int64]]:
        """Who speaks in turn, and the run at which each begins to, int64[S]."""
        starts = [i for i, who in enumerate(self.who) if not i or who != self.who[i - 1]]
        return [self.who[i] for i in starts], np.array(starts, np.int64)


@dataclass(slots=True)
class Runs:
    """One row's runs: an outline, its texts, and by number those runs that are not as the outline says, in pieces."""

    outline: Outline
    texts: Sequence[str]
    conversation: Conversation
    mixed: dict[int, Pieces] = field(default_factory=dict)


def runs_of(conversation: Conversation, segments: list[Segment], tokenizer: Tokenizer) -> Runs:
    """Return the runs of a weighed conversation."""
    runs = make_runs(segments, tokenizer)
    mixed = {i: pieces_of(run.segments, conversation) for i, run in enumerate(runs) if run.speaker() is None}
    return Runs(outline_of(runs, conversation), [run.text for run in runs if run.control < 0], conversation, mixed)


def outline_of(runs: list[Run], conversation: Conversation) -> Outline:
    """Return the runs' outline."""
    speakers = [run.speaker() or run.segments[0] for run in runs]
    media = [run.segments[0].media for run in runs]
    return Outline(
        control=np.array([run.control for run in runs], np.int32),
        repeat=np.array([run.segments[0].repeat for run in runs], np.int64),
        fresh=np.array([run.fresh for run in runs], np.bool_),
        weight=np.array([speaker.weight for speaker in speakers], np.float32),
        who=[who_of(speaker, conversation) for speaker in speakers],
        message=[speaker.message for speaker in speakers],
        generated=[speaker.generated for speaker in speakers],
        media=media if any(number >= 0 for number in media) else [],
    )


def pieces_of(segments: list[Segment], conversation: Conversation) -> Pieces:
    """Return the segments of a run as its pieces."""
    return Pieces(
        [segment.text for segment in segments],
        [segment.weight for segment in segments],
        [who_of(segment, conversation) for segment in segments],
        [segment.message for segment in segments],
        [segment.generated for segment in segments],
    )


def who_of(segment: Segment, conversation: Conversation) -> Who:
    """Return whose tokens those of a segment are."""
    return (str(conversation.messages[segment.message].role), segment.key) if segment.message >= 0 else TEMPLATE


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
