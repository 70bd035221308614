"""What the runs of all rows of one shape share.

1. A `Shape` is made of the runs of one conversation: control tokens, weights and owners as columns, and texts with
   slots for what differs between rows. Rows of one shape that ask for the same weights share it; a row whose shape is
   not proven has one of its own, without slots.
2. `Shape.fill` puts many rows into their shape at once. Runs that hold several weights or owners, and the replies that
   the weights policy looks into, are cut into pieces for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compiler.conversation import Conversation, Role, Segment
from compiler.encode.runs import Run, RunPart, runs_of
from compiler.encode.weigh import Kind, Policy, Weighed, weigh_replies
from compiler.templates.skeleton import Field, Text, values_of
from compiler.tokenizer.tokenizer import Tokenizer

Owner = tuple[str, str]
"""(role, policy key): whose tokens these are; the role "template" is the template's own text."""

TEMPLATE: Owner = ("template", "")


class Origin(NamedTuple):
    """What some characters weigh, and whose they are."""

    weight: float
    owner: Owner
    message: int
    generated: bool


Pieces = tuple[list[int], list[int]]
"""The lengths of the pieces of a run, in characters, and the numbers of their origins in the shape."""


@dataclass(slots=True)
class Rendered:
    """One sequence before it is encoded: a conversation and its shape, and what `Shape.fill` makes of them."""

    shape: Shape
    conversation: Conversation
    texts: list[str] = field(init=False)
    """The texts to encode, in order: those of the runs that are texts."""
    pieces: dict[int, Pieces] = field(init=False)
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

    control int32[R], -1 = a text; repeat int64[R]; fresh bool[R]; weight float32[R]. The first R origins are those of
    the runs, of a run in pieces that of its first part; the origins of pieces follow as rows need them.
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
        self.varies = np.array([run.control < 0 and not (fields and _is_literal(run.text)) for run in runs], np.bool_)
        """bool[R]: which runs are texts that are encoded for each row. A shape of one row has no others."""
        self.varying = [number for number, varies in zip(self.text_number, self.varies, strict=True) if varies]
        """The numbers of their texts."""
        self._encoded: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]] = {}
        self.swallowed = [run.swallowed for run in runs]
        self.names = ["".join(map(str, run.text)) if run.control >= 0 else "" for run in runs]
        self._mixed: dict[int, tuple[list[Text], list[int]]] = {}
        """The runs of several weights or owners, whatever the policy: the texts of their pieces, and the origins."""
        self._numbers: dict[Origin, int] = {}
        of_parts = [[_origin(part, run, conversation) for part in run.parts] for run in runs]
        speakers = [_speaker(origins) for origins in of_parts]
        self.origins = [speaker or origins[0] for speaker, origins in zip(speakers, of_parts, strict=True)]
        for number, (run, origins) in enumerate(zip(runs, of_parts, strict=True)):
            if speakers[number] is None:
                self._mixed[number] = [part.text for part in run.parts], list(map(self._number_of, origins))
        self.weight = np.array([origin.weight for origin in self.origins[: len(runs)]], np.float32)
        self.replies: list[_Reply] = []
        before = None
        for number, (_, _, message, generated) in enumerate(self.origins[: len(runs)] if self.policies else ()):
            if generated and conversation.messages[message].weight is None:
                if before != message:
                    self.replies.append(_Reply(message, []))
                self.replies[-1].runs.append(number)
            before = message if generated else None

    def _number_of(self, origin: Origin) -> int:
        """The number of an origin of pieces, a new one where it was not met before."""
        if (number := self._numbers.get(origin)) is None:
            number = self._numbers[origin] = len(self.origins)
            self.origins.append(origin)
        return number

    def fill(self, rows: list[Rendered]) -> None:
        """Give rows of this shape their texts and pieces."""
        values = values_of(self.fields, [row.conversation for row in rows])
        texts = [_filled(text, values, len(rows)) for text in self.texts]
        for row, row_texts in zip(rows, zip(*texts, strict=True) if texts else [()] * len(rows), strict=True):
            row.texts, row.pieces = list(row_texts), {}
        for number, (parts, origins) in self._mixed.items():
            lengths = [map(len, _filled(_prepared(text), values, len(rows))) for text in parts]
            for row, row_lengths in zip(rows, zip(*lengths, strict=True), strict=True):
                row.pieces[number] = list(row_lengths), origins
        for reply in self.replies:
            self._weigh(reply, rows)

    def constants(self, tokenizer: Tokenizer, encoder: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """What is the same in every row: the numbers of tokens of the runs, int64[R], 0 where they vary; their ids."""
        if encoder not in self._encoded:
            lengths = np.where(self.varies, 0, self.repeat)
            ids = []
            for number, control in enumerate(self.control.tolist()):
                if control >= 0:
                    ids.append(np.full(lengths[number], control, np.int32))
                elif not self.varies[number]:
                    [text] = _filled(self.texts[self.text_number[number]], [], 1)
                    found, _ = tokenizer.encode([text], fresh=bool(self.fresh[number]), encoder=encoder)
                    lengths[number] = len(found)
                    ids.append(found)
            self._encoded[encoder] = lengths, np.concatenate([np.empty(0, np.int32), *ids])
        return self._encoded[encoder]

    def _weigh(self, reply: _Reply, rows: list[Rendered]) -> None:
        """Cut the runs of a reply where the policies change its weight or key."""
        *body, stop = reply.runs
        is_one = len(body) == 1 and not self.swallowed[body[0]]
        if is_one:
            texts = [self._text(body[0], row) for row in rows]
        else:
            texts = ["".join([self.swallowed[i] + self._text(i, row) for i in body]) for row in rows]
        found = weigh_replies(self.policies, texts, [row.conversation for row in rows], reply.message)
        numbers = _OriginNumbers(self, reply)
        for row, (weighed, stop_weight) in zip(rows, found, strict=True):
            if weighed is not None:
                if is_one and self.text_number[body[0]] >= 0:
                    row.pieces[body[0]] = weighed.lengths, list(map(numbers.__getitem__, weighed.kinds))
                else:
                    self._weigh_runs(body, row, weighed, numbers)
            if stop_weight != 1:
                row.pieces[stop] = [len(self.names[stop])], [numbers[stop_weight, ""]]

    def _weigh_runs(self, body: list[int], row: Rendered, weighed: Weighed, numbers: _OriginNumbers) -> None:
        """Cut a reply of several runs."""
        at = 0
        for number in body:
            at += len(self.swallowed[number])
            length = len(self._text(number, row))
            some = weighed.between(at, at + length)
            at += length
            if self.text_number[number] < 0:
                some = self._of_control(number, some)
            if some.lengths:
                row.pieces[number] = some.lengths, [numbers[kind] for kind in some.kinds]

    def _of_control(self, number: int, weighed: Weighed) -> Weighed:
        """One token weighs the smallest weight of its characters; the placeholder of an image or video weighs 0."""
        least = 0.0 if self.media and self.media[number] >= 0 else min(weight for weight, _ in weighed.kinds)
        return Weighed([len(self.names[number])], [(least, next((key for _, key in weighed.kinds if key), ""))])

    def _text(self, number: int, row: Rendered) -> str:
        """The text of a run in a row; a control token's own text for one."""
        text = self.text_number[number]
        return row.texts[text] if text >= 0 else self.names[number]


class _OriginNumbers(dict[Kind, int]):
    """The numbers of the origins of a reply's pieces, by weight and key."""

    def __init__(self, shape: Shape, reply: _Reply) -> None:
        super().__init__()
        self._shape, self._message = shape, reply.message
        self._role = shape.origins[reply.runs[0]].owner[0]

    def __missing__(self, kind: Kind) -> int:
        weight, key = kind
        self[kind] = self._shape._number_of(Origin(weight, (self._role, key), self._message, True))
        return self[kind]


def _origin(part: RunPart, run: Run, conversation: Conversation) -> Origin:
    """Weigh a part as its message asks, policies apart.

    1. A reply weighs 1, or what its message asks for; `loss: false` makes it context, stop included.
    2. A message of another role weighs 0, or what it asks for, on its own text only: headers stay context.
    3. The placeholders of images and videos weigh 0: they are never what a model says.
    """
    _, number, generated = part
    if number < 0:
        return Origin(0.0, TEMPLATE, -1, generated)
    message = conversation.messages[number]
    key = ""
    if run.media >= 0:
        weight, key = 0.0, "" if generated else conversation.media()[run.media].kind
    elif generated:
        weight = 1.0 if message.weight is None else message.weight
    else:
        weight = 0.0 if message.role is Role.ASSISTANT else message.weight or 0.0
    return Origin(weight, (str(message.role), key), number, generated)


def _speaker(origins: list[Origin]) -> Origin | None:
    """The origin that stands for a whole run: one weight, one owner and template text beside it; else None."""
    first = speaker = origins[0]
    for origin in origins[1:]:
        if (origin.weight, origin.generated, origin.owner[1]) != (first.weight, first.generated, first.owner[1]):
            return None
        if speaker.message < 0:
            speaker = origin
        elif origin.message not in (-1, speaker.message):
            return None
    return speaker


def _is_literal(text: Text) -> bool:
    return all(isinstance(piece, str) for piece in text)


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
        if before == after == "":
            return values[text[1]]
        return [f"{before}{value}{after}" for value in values[text[1]]]
    if len(text) == 1 and isinstance(text[0], str):
        return [text[0]] * rows
    columns: list[list[str]] = [values[piece] if isinstance(piece, int) else [piece] * rows for piece in text]
    return ["".join(pieces) for pieces in zip(*columns, strict=True)] if columns else [""] * rows
