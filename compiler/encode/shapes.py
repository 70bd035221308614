"""A conversation to its weighed runs: by the outline of its shape where that is proven, else segment by segment.

The outline of a shape is worked out once, on the first row of the shape, by the very code that works segment by
segment; a later row only has its texts joined. What a weights policy makes of a reply is worked out reply by reply all
the same, since it depends on what the reply says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from compiler.conversation import Conversation, Segment
from compiler.encode.runs import Outline, Pieces, Runs, make_runs, outline_of, pieces_of, runs_of
from compiler.encode.weigh import Policy, cut, stretches, weigh, weigh_reply
from compiler.templates.program import Program
from compiler.templates.skeleton import Fill, Skeleton, value_of
from compiler.tokenizer.tokenizer import Tokenizer

_EVEN = Policy("none", {}, ())
MOST_OUTLINES = 16
"""Of one skeleton: rows may ask for weights of their own, each set of which is another outline, and so is that of
policies which look into replies."""


_Text = tuple[str, int | list[str | int], str]
"""A text to fill in: before, number of the value, after; or all of it in parts, literals and numbers of values."""


@dataclass(slots=True)
class _Reply:
    """A reply of a shape: the segments it is made of, the first of its runs, and the text of that.

    `text` is its number among the row's texts where the reply is one segment of text and its stop; else -1.
    """

    segments: list[int]
    first_run: int
    text: int = -1


@dataclass(slots=True)
class _Shared:
    """What the rows of one shape that ask for the same weights share."""

    outline: Outline
    fills: list[int | Fill]
    """What differs from row to row; a number is the content of that message."""
    texts: list[_Text]
    """Of each run that is a text."""
    runs: list[list[int]]
    """Of each run: the segments that it is made of."""
    segments: list[Segment]
    """Weighed evenly."""
    parts: list[list[str | int]]
    """Of each segment: its text, literals and numbers of fills."""
    replies: list[_Reply] = field(default_factory=list)
    """The replies that the policy may look into."""
    mixed: list[int] = field(default_factory=list)
    """The runs of several speakers."""

    def filled(self, numbers: list[int], values: list[str]) -> list[Segment]:
        """Return some of the segments with a row's texts."""
        return [
            self.segments[i].piece("".join([part if isinstance(part, str) else values[part] for part in self.parts[i]]))
            for i in numbers
        ]


@dataclass
class Lowering:
    """Lowers the conversations of one dataset: one template, tokenizer and weights policy."""

    program: Program
    tokenizer: Tokenizer
    policy: Policy

    def __post_init__(self) -> None:
        """Find out whether outlines serve: not where control tokens swallow text, or texts become control tokens."""
        self._outlines = not self.tokenizer.swallows and self.program.rendering.special_text != "allow"
        looks = [part for part in self.policy.parts if part.looks]
        self._looks = bool(looks)
        self._one = looks[0] if len(looks) == 1 and not looks[0].queries else None
        """The only policy that looks into replies, if it looks at nothing else."""

    def runs(self, conversation: Conversation) -> Runs:
        """Return the conversation's runs, weighed; RowError where the template refuses it."""
        found = self.program.skeleton_or_segments(conversation)
        if not isinstance(found, Skeleton):
            return self.of_segments(conversation, found)
        if not self._outlines:
            return self.of_segments(conversation, found.fill(conversation))
        asked = (self._looks, *[message.weight for message in conversation.messages])
        shared = found.outlines.get(asked)
        if shared is None:
            if len(found.outlines) >= MOST_OUTLINES:
                found.outlines.clear()
            shared = found.outlines[asked] = self._shared(found, conversation)
        return self._filled(shared, conversation)

    def of_segments(self, conversation: Conversation, segments: list[Segment]) -> Runs:
        """Return the runs of the conversation's segments, weighed."""
        return runs_of(conversation, weigh(conversation, segments, self.policy), self.tokenizer)

    def _shared(self, skeleton: Skeleton, conversation: Conversation) -> _Shared:
        segments = skeleton.fill(conversation)
        number = {id(segment): i for i, segment in enumerate(segments)}
        runs = make_runs(weigh(conversation, segments, _EVEN), self.tokenizer)
        of_runs = [[number[id(segment)] for segment in run.segments] for run in runs]
        fills: list[int | Fill] = []
        parts = [_opened((piece.fill or piece.segment.text for piece in group), fills) for group in skeleton.groups]
        texts = [
            _around(_opened((p.fill or p.segment.text for i in numbers for p in skeleton.groups[i]), fills))
            for run, numbers in zip(runs, of_runs, strict=True)
            if run.control < 0
        ]
        shared = _Shared(outline_of(runs, conversation), fills, texts, of_runs, segments, parts)
        shared.mixed = [i for i, run in enumerate(runs) if run.speaker() is None]
        if not self._looks:
            return shared
        before = -1
        for i, run in enumerate(runs):
            first = run.segments[0]
            if first.generated and conversation.messages[first.message].weight is None:
                if first.message != before:
                    shared.replies.append(_Reply([], i))
                shared.replies[-1].segments += shared.runs[i]
                before = first.message
        for reply in shared.replies:
            i = reply.first_run
            if runs[i].control < 0 and len(reply.segments) == 2 and shared.runs[i] == reply.segments[:1]:
                reply.text = sum(run.control < 0 for run in runs[:i])
        return shared

    def _filled(self, shared: _Shared, conversation: Conversation) -> Runs:
        contents = [message.content for message in conversation.messages]
        values = [contents[fill] if isinstance(fill, int) else value_of(conversation, fill) for fill in shared.fills]
        texts = []
        for before, value, after in shared.texts:
            if isinstance(value, int):
                texts.append(before + values[value] + after)
            else:
                texts.append("".join([part if isinstance(part, str) else values[part] for part in value]))
        outline = shared.outline
        runs = Runs(outline, texts, conversation)
        for i in shared.mixed:
            runs.mixed[i] = pieces_of(shared.filled(shared.runs[i], values), conversation)
        for reply in shared.replies:
            if self._one is not None and reply.text >= 0:
                self._look_into(runs, reply, self._one)
                continue
            weighed = weigh_reply(conversation, shared.filled(reply.segments, values), self.policy)
            for i, run in enumerate(make_runs(weighed, self.tokenizer), start=reply.first_run):
                pieces = pieces_of(run.segments, conversation)
                if set(pieces.weight) != {1.0} or any(key for _, key in pieces.who):
                    runs.mixed[i] = pieces
        return runs

    def _look_into(self, runs: Runs, reply: _Reply, policy: Policy) -> None:
        """Put a reply that is one text in pieces as the policy has it. Most rows that one looks into are such."""
        i = reply.first_run
        number = runs.outline.message[i]
        message, text = runs.conversation.messages[number], runs.texts[reply.text]
        intervals = stretches(text, message, policy)
        if intervals:
            texts, weight, keys = map(list, zip(*cut(text, intervals), strict=True))
            role, n = str(message.role), len(texts)
            runs.mixed[i] = Pieces(texts, weight, [(role, key) for key in keys], [number] * n, [True] * n)


def _opened(parts: Iterable[str | Fill], fills: list[int | Fill]) -> list[str | int]:
    """Return literals and numbers of fills, neighbouring literals as one; fills that are new are added."""
    opened: list[str | int] = []
    for part in parts:
        if isinstance(part, str):
            if opened and isinstance(opened[-1], str):
                opened[-1] += part
            else:
                opened.append(part)
            continue
        what = part[1] if part[0] == "content" else part
        if what not in fills:
            fills.append(what)
        opened.append(fills.index(what))
    return opened


def _around(parts: list[str | int]) -> _Text:
    """Return a text as what stands before and after its one value, where it has just one."""
    values = [part for part in parts if isinstance(part, int)]
    if len(values) != 1:
        return "", parts, ""
    at = parts.index(values[0])
    before, after = "".join(map(str, parts[:at])), "".join(map(str, parts[at + 1 :]))
    return before, values[0], after
