"""The row-level types: what every source format is lifted to and every template renders.

A row becomes one or more conversations; a conversation becomes segments; segments become token columns.
Nothing here knows a source format, a chat template or a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import Any

import orjson
import xxhash


class Role(StrEnum):
    """Who a message is from."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    """A tool's *result*; the call itself belongs to the assistant message that makes it."""
    DOCUMENT = "document"
    """A text for pretraining: one message, no turns, no template."""


SYSTEM, USER, ASSISTANT, TOOL = Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL
"""The roles for code that runs for every message: to find a member of an enum takes longer than to compare it."""


class Kind(StrEnum):
    """How the rows of a set are trained; one kind per set (decision 25)."""

    SFT = "sft"
    PREFERENCE = "preference"
    KTO = "kto"
    PRETRAIN = "pretrain"


@dataclass(slots=True)
class Call:
    """One tool call. `arguments` is the parsed JSON object; `id` ties a result to it where a source has one."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """Facts about a file: its digest, its size in pixels as the model's processor will see it, frames of a video."""

    sha256: str
    width: int
    height: int
    num_frames: int = 1
    fps: float | None = None


class Embedded(dict[str, Any]):
    """A file that a row of a table holds: {bytes, path}, as JSON shows it, and beside that the bytes themselves.

    Under `bytes` stands a text that names them. Nothing that a row says in text becomes one of these.
    """

    __slots__ = ("data", "sha256")

    def __init__(self, data: bytes, path: str | None) -> None:
        self.data, self.sha256 = data, hashlib.sha256(data).hexdigest()
        super().__init__({"bytes": f"sha256:{self.sha256} ({len(data):,} bytes)"} | ({"path": path} if path else {}))


@dataclass(slots=True)
class Media:
    """An image or a video by reference. `at` is where it stands in its message's content, in characters.

    `uri` is as the row has it, relative to the dataset's media folder; for a video given as `frames` it is the JSON
    list of theirs. An image that the row holds itself, `embedded` or as a data URL, gets the uri of the file that it
    becomes. `pointer` leads to the reference in the raw row.
    """

    kind: str
    uri: str
    at: int = 0
    frames: tuple[str, ...] = ()
    pointer: str = ""
    facts: MediaFacts | None = None
    num_tokens: int = 0
    """The number of the model's tokens that it stands for."""
    embedded: Embedded | None = None


@dataclass(frozen=True, slots=True)
class Objects:
    """What takes the place of `<ref-object>` and `<bbox>` in the texts of a row, in order."""

    refs: list[str]
    boxes: list[list[float]]
    """Each is [x1, y1, x2, y2], or a point [x, y]."""
    relative: bool
    """Whether they are shares of the image (0 to 1) instead of its pixels."""
    images: list[int]
    """The number of the image that each box is in."""
    pointer: str


@dataclass(slots=True)
class Message:
    """One role's utterance.

    `weight` is None where the role decides (assistant 1, others 0), else what the source row asked for:
    0.0 = context, 1.0 = trained, other = emphasised. `reasoning` is what a reply thinks before it speaks, where the
    source or the chat template keeps that apart; None = nothing is said of it.
    """

    role: Role
    content: str
    calls: list[Call] = field(default_factory=list)
    name: str | None = None
    call_id: str | None = None
    weight: float | None = None
    media: list[Media] = field(default_factory=list)
    reasoning: str | None = None

    def changed(self, change: Callable[[str], str]) -> tuple[str, list[int]]:
        """The content with another text for each text between its media, and where each of the media stands then."""
        ends = [0, *(media.at for media in self.media), len(self.content)]
        pieces = [change(self.content[start:end]) for start, end in pairwise(ends)]
        return "".join(pieces), list(accumulate(map(len, pieces[:-1])))


@dataclass(slots=True)
class Conversation:
    """The source of one example. `tools` is parsed JSON in its own key order, most often a list; None = none given."""

    messages: list[Message]
    tools: Any = None
    places: list[int] | None = None
    """Where each message stands in the row's own list, for pointers; None where they are one to one."""
    repairs: list[str] = field(default_factory=list)
    """Names of the repairs and merges applied to the row, for the counts and for `inspect`."""
    notes: list[str] = field(default_factory=list)
    """What the user is told of the row: each is counted under its name."""
    rejected: Message | None = None
    """Preference: the reply that is not to be preferred to the last one."""
    desirable: bool | None = None
    """KTO: whether the last reply is to be learned or unlearned."""
    group: bytes | None = None
    """16 bytes: examples of one group never stand on both sides of the validation split."""
    context: int = 0
    """Replies before this message are history: rendered as it is at inference, not trained."""
    merged: str = ""
    """The system text that was put before the first user message, for templates that take none."""
    plain: bool = False
    """Whether it is no ReAct text, so that weights for ReAct text do not apply to it."""
    loose: list[Media] = field(default_factory=list)
    """Media that the row lists and no text places."""
    objects: Objects | None = None
    """What is put into the texts once the images are measured."""

    @property
    def said(self) -> list[Message]:
        """The messages, and after them the other reply of a pair."""
        return self.messages if self.rejected is None else [*self.messages, self.rejected]

    def is_history(self, i: int) -> bool:
        """Whether message i is a reply that is history: what a template leaves out of it, it leaves out at
        inference too."""
        return i < self.context and self.messages[i].role is Role.ASSISTANT

    @property
    def has_trained(self) -> bool:
        """Whether any message is to be trained, by its weight."""
        return any(
            m.weight != 0 and not self.is_history(i) if m.role is Role.ASSISTANT else m.weight
            for i, m in enumerate(self.messages)
        )

    def media(self) -> list[Media]:
        """The media of all messages, in the order in which they stand."""
        return [media for message in self.messages for media in message.media]

    def fingerprint(self) -> bytes:
        """16 bytes, equal for equal conversations (text, roles, calls, tools, media; not weights)."""
        parts = [
            _said(m) if m.media or m.calls else (m.role._value_, m.content, _NONE, m.name, m.reasoning, _NONE)
            for m in self.said
        ]
        more = [self.tools, self.rejected is not None, self.desirable, self.context]
        try:
            text = orjson.dumps([parts, more])
        except TypeError:  # integers beyond 64 bits, more than 254 levels: orjson cannot write what rows may hold
            text = json.dumps([parts, more]).encode()
        return xxhash.xxh3_128_digest(text)


_NONE: tuple[()] = ()


def _said(message: Message) -> list[Any]:
    media = [[m.kind, m.at, m.facts.sha256 if m.facts else m.uri] for m in message.media]
    calls = [[call.name, call.arguments] for call in message.calls]
    return [message.role, message.content, calls, message.name, message.reasoning, media]


@dataclass(slots=True)
class Segment:
    """A piece of the rendered conversation: text, or one control token placed by its id.

    `message` is the index of the message whose text this is (-1 = the template's own text);
    `generated` is True for what the model must produce in a reply, its stop included;
    `boundary` is True where generation starts, so that nothing is merged across it; `fresh` makes what follows a
    boundary a text of its own to the tokenizer, leading space and all;
    `repeat` is how often a control token stands there (the placeholders of an image); `media` is the number of the
    image or video in its conversation that the token belongs to (-1 = none).
    """

    text: str
    control: int = -1
    message: int = -1
    generated: bool = False
    boundary: bool = False
    fresh: bool = False
    repeat: int = 1
    media: int = -1

    def piece(self, text: str) -> Segment:
        """A segment like this one with another text. A row has dozens, and `replace` takes four times as long."""
        return Segment(
            text, self.control, self.message, self.generated, self.boundary, self.fresh, self.repeat, self.media
        )


def to_json(value: Any, **options: Any) -> str:
    """JSON text exactly as the `tojson` filter of `transformers` writes it: spaces, no escapes."""
    return json.dumps(value, ensure_ascii=False, **options)
