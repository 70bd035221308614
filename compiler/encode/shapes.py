"""Conversations as runs, and what the runs of all rows of one shape share.

1. `runs_of` joins rendered segments: neighbouring texts are one run, encoded as inference encodes them; a control
   token is a run by itself. A run ends at a control token and where generation begins.
2. A `Shape` is made of the runs of one conversation: control tokens, weights and owners as columns, and texts with
   slots for what differs between rows. Rows of one shape that ask for the same weights share it; a row whose shape is
   not proven has one of its own, without slots.
3. `Shape.fill` puts many rows into their shape at once. Runs that hold several weights or owners, and the replies that
   the weights policy looks into, are cut into pieces for each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compiler.conversation import Conversation, Role, Segment
from compiler.encode.weigh import Policy, Weighed, between, weigh_replies
from compiler.templates.skeleton import Field, Text, values_of
from compiler.tokenizer.tokenizer import Tokenizer

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""What control tokens that swallow white space swallow: Unicode's, which Python's `strip` adds \\x1c to \\x1f to."""

Owner = tuple[str, str]
"""(role, policy key): whose tokens these are; the role "template" is the template's own text."""

TEMPLATE: Owner = ("template", "")


class RunPart(NamedTuple):
    """Neighbouring characters of a run with one origin: a message's own text, or the template's (message -1)."""

    text: Text
    message: int
    generated: bool


@dataclass(slots=True)
class Run:
    """What is encoded at once: a text (control -1), or one control token, `repeat` times."""

    parts: list[RunPart]
    control: int = -1
    fresh: bool = False
    repeat: int = 1
    media: int = -1
    swallowed: str = ""
    """White space of a reply before this run that the control token before it swallows: it is not encoded."""

    @property
    def text(self) -> Text:
        """The text of the run, or the control token's own."""
        return tuple(piece for part in self.parts for piece in part.text)


class Piece(NamedTuple):
    """Neighbouring characters of a run with one weight and one owner."""

    length: int
    weight: float
    owner: Owner
    message: int
    generated: bool


@dataclass(slots=True)
class Rendered:
    """One sequence before it is encoded: a conversation and its shape, and what `Shape.fill` makes of them."""

    shape: Shape
    conversation: Conversation
    texts: list[str] = field(default_factory=list)
    """The texts to encode, in order: those of the runs that are texts."""
    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    """By number, the runs of this row that hold several weights or owners, or other ones than the shape says."""

    @classmethod
    def of(cls, conversation: Conversation, segments: list[Segment], tokenizer: Tokenizer, policy: Policy) -> Rendered:
        """A conversation in a shape of its own, made of its rendered segments."""
        runs = runs_of([(segment, (segment.text,)) for segment in segments], tokenizer)
        return cls(Shape(runs, conversation, policy), conversation)


@dataclass(slots=True)
class _Reply:
    """A reply that the policy looks into: its message and its runs, of which the last is its stop."""

    message: int
    runs: list[int]


class Shape:
    """What rows share: R runs as columns.

    control int32[R], -1 = a text; repeat int64[R]; fresh bool[R]; weight float32[R]; owners, messages and generated
    have R entries. Of a run that is in pieces, weight and owner are those of its first part.
    """

    def __init__(
        self, runs: list[Run], conversation: Conversation, policy: Policy, fields: Sequence[Field] = ()
    ) -> None:
        """Weigh the runs as the messages of `conversation` ask; rows that are filled in ask for the same."""
        self.fields = fields
        self.policies = [part for part in policy.parts if part.looks]
        self.control = np.array([run.control for run in runs], np.int32)
        self.repeat = np.array([run.repeat for run in runs], np.int64)
        self.fresh = np.array([run.fresh for run in runs], np.bool_)
        media = [run.media for run in runs]
        self.media = media if any(number >= 0 for number in media) else []
        """The number of the image or video that a control token belongs to, -1 = none; [] where there are no media."""
        self.texts = [_prepared(run.text) for run in runs if run.control < 0]
        numbers = iter(range(len(self.texts)))
        self.text_number = [next(numbers) if run.control < 0 else -1 for run in runs]
        self.swallowed = [run.swallowed for run in runs]
        self.names = ["".join(map(str, run.text)) if run.control >= 0 else "" for run in runs]
        self.mixed: dict[int, list[tuple[Text, Piece]]] = {}
        """The runs of several weights or owners, whatever the policy; lengths of their pieces are those of each row."""
        speakers = []
        for number, run in enumerate(runs):
            pieces = [_piece(part, run, conversation) for part in run.parts]
            speaker = _speaker(pieces)
            if speaker is None:
                self.mixed[number] = list(zip([part.text for part in run.parts], pieces, strict=True))
            speakers.append(speaker or pieces[0])
        self.weight = np.array([piece.weight for piece in speakers], np.float32)
        self.owners = [piece.owner for piece in speakers]
        self.messages = [piece.message for piece in speakers]
        self.generated = [piece.generated for piece in speakers]
        self.replies: list[_Reply] = []
        for number in range(len(runs)) if self.policies else ():
            message = self.messages[number]
            if self.generated[number] and conversation.messages[message].weight is None:
                if not (number and self.generated[number - 1] and self.messages[number - 1] == message):
                    self.replies.append(_Reply(message, []))
                self.replies[-1].runs.append(number)

    @cached_property
    def spans(self) -> tuple[list[Owner], npt.NDArray[np.int64]]:
        """The owners in turn, and the run at which each begins, int64[S]."""
        starts = [i for i, owner in enumerate(self.owners) if not i or owner != self.owners[i - 1]]
        return [self.owners[i] for i in starts], np.array(starts, np.int64)

    def fill(self, rows: list[Rendered]) -> None:
        """Give rows of this shape their texts and pieces."""
        values = values_of(self.fields, [row.conversation for row in rows])
        texts = [_filled(text, values, len(rows)) for text in self.texts]
        for row, row_texts in zip(rows, zip(*texts, strict=True) if texts else [()] * len(rows), strict=True):
            row.texts, row.pieces = list(row_texts), {}
        for number, parts in self.mixed.items():
            lengths = [map(len, _filled(_prepared(text), values, len(rows))) for text, _ in parts]
            for row, row_lengths in zip(rows, zip(*lengths, strict=True), strict=True):
                row.pieces[number] = [
                    piece._replace(length=length) for (_, piece), length in zip(parts, row_lengths, strict=True)
                ]
        for reply in self.replies:
            self._weigh(reply, rows)

    def _weigh(self, reply: _Reply, rows: list[Rendered]) -> None:
        """Cut the runs of a reply where the policies change its weight or key."""
        *body, stop = reply.runs
        if len(body) == 1 and not self.swallowed[body[0]]:
            texts = [self._text(body[0], row) for row in rows]
        else:
            texts = ["".join([self.swallowed[i] + self._text(i, row) for i in body]) for row in rows]
        found = weigh_replies(self.policies, texts, [row.conversation for row in rows], reply.message)
        for row, text, (weighed, stop_weight) in zip(rows, texts, found, strict=True):
            if len(weighed) > 1 or weighed[0] != (len(text), 1.0, ""):
                at = 0
                for number in body:
                    at += len(self.swallowed[number])
                    length = len(self._text(number, row))
                    some = between(weighed, at, at + length) if len(body) > 1 else weighed
                    if self.text_number[number] < 0:
                        some = [self._of_control(number, some)]
                    self._put(row, number, reply, some)
                    at += length
            if stop_weight != 1:
                self._put(row, stop, reply, [(len(self.names[stop]), stop_weight, "")])

    def _of_control(self, number: int, weighed: list[Weighed]) -> Weighed:
        """One token weighs the smallest weight of its characters; the placeholder of an image or video weighs 0."""
        least = 0.0 if self.media and self.media[number] >= 0 else min(weight for _, weight, _ in weighed)
        return len(self.names[number]), least, next((key for _, _, key in weighed if key), "")

    def _put(self, row: Rendered, number: int, reply: _Reply, weighed: list[Weighed]) -> None:
        if weighed and (len(weighed) > 1 or weighed[0][1:] != (float(self.weight[number]), "")):
            role = self.owners[number][0]
            row.pieces[number] = [
                Piece(length, weight, (role, key), reply.message, True) for length, weight, key in weighed
            ]

    def _text(self, number: int, row: Rendered) -> str:
        """The text of a run in a row; a control token's own text for one."""
        text = self.text_number[number]
        return row.texts[text] if text >= 0 else self.names[number]


def runs_of(segments: Iterable[tuple[Segment, Text]], tokenizer: Tokenizer) -> list[Run]:
    """Join segments, given with their texts, to runs."""
    runs: list[Run] = []
    swallowed = ""
    for segment, text in segments:
        is_swallowed = runs and runs[-1].control in tokenizer.swallows and not segment.boundary
        if is_swallowed and segment.control < 0:
            whole = "".join(map(str, text))  # there are no slots where control tokens swallow text
            text = (whole.lstrip(WHITE_SPACE),)
            swallowed += whole[: len(whole) - len(text[0])] if segment.generated else ""
        part = RunPart(text, segment.message, segment.generated)
        if segment.control >= 0:
            runs.append(Run([part], segment.control, False, segment.repeat, segment.media, swallowed))
            swallowed = ""
        elif not any(piece != "" for piece in text):
            continue
        elif runs and runs[-1].control < 0 and not segment.boundary:
            runs[-1].parts.append(part)
        else:
            fresh = not runs or tokenizer.prefix_every_section
            if segment.boundary and runs and runs[-1].control < 0:
                fresh = segment.fresh
            runs.append(Run([part], fresh=fresh, swallowed=swallowed))
            swallowed = ""
    return runs


def _piece(part: RunPart, run: Run, conversation: Conversation) -> Piece:
    """Weigh a part as its message asks, policies apart.

    1. A reply weighs 1, or what its message asks for; `loss: false` makes it context, stop included.
    2. A message of another role weighs 0, or what it asks for, on its own text only: headers stay context.
    3. The placeholders of images and videos weigh 0: they are never what a model says.
    """
    _, number, generated = part
    if number < 0:
        return Piece(0, 0.0, TEMPLATE, -1, generated)
    message = conversation.messages[number]
    key = ""
    if run.media >= 0:
        weight, key = 0.0, "" if generated else conversation.media()[run.media].kind
    elif generated:
        weight = 1.0 if message.weight is None else message.weight
    else:
        weight = 0.0 if message.role is Role.ASSISTANT else message.weight or 0.0
    return Piece(0, weight, (str(message.role), key), number, generated)


def _speaker(pieces: list[Piece]) -> Piece | None:
    """The piece that stands for a whole run: one weight, one owner and template text beside it; else None."""
    first = speaker = pieces[0]
    for piece in pieces[1:]:
        if (piece.weight, piece.generated, piece.owner[1]) != (first.weight, first.generated, first.owner[1]):
            return None
        if speaker.message < 0:
            speaker = piece
        elif piece.message not in (-1, speaker.message):
            return None
    return speaker


def _prepared(text: Text) -> Text:
    """Join neighbouring literals; a text with one slot becomes (before, number, after), which is filled fastest."""
    joined: list[str | int] = []
    for piece in text:
        if joined and isinstance(piece, str) and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    numbers = [piece for piece in joined if isinstance(piece, int)]
    if len(numbers) == 1:
        at = joined.index(numbers[0])
        return "".join(map(str, joined[:at])), numbers[0], "".join(map(str, joined[at + 1 :]))
    return tuple(joined)


def _filled(text: Text, values: list[list[str]], rows: int) -> list[str]:
    """Fill a text with the values of each row."""
    if len(text) == 3 and isinstance(text[1], int):
        before, after = text[0], text[2]
        return [f"{before}{value}{after}" for value in values[text[1]]]
    if all(isinstance(piece, str) for piece in text):
        return ["".join(map(str, text))] * rows
    columns: list[list[str]] = [values[piece] if isinstance(piece, int) else [piece] * rows for piece in text]
    return ["".join(pieces) for pieces in zip(*columns, strict=True)]
