"""What is trained, and how much: weights on segments, from the row's own flags and a policy.

A policy is data (`registry/weights/*.json`). It looks at the text of a reply as the model would produce it (tool
calls rendered, the stop left out) and gives stretches of it a weight and a key; everything else in the reply weighs 1.
Weights never change ids: they are applied to characters, and a token takes the smallest weight it covers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from compiler.conversation import Conversation, Message, Role, Segment

KEYWORD = "keyword"
"""The key of a policy's own marker words ("Action:" itself, not what follows it)."""

Interval = tuple[int, int, float, str]
"""(start, end, weight, key) in characters of a reply; intervals are in order and do not overlap."""


@dataclass(frozen=True)
class Policy:
    """A weights policy, compiled: keywords at the start of a line, or patterns anywhere."""

    name: str
    keywords: dict[str, tuple[float, float]]
    patterns: tuple[tuple[str, re.Pattern[str], float], ...]
    queries: tuple[tuple[str, float], ...] = ()
    only_last: bool = False
    """Whether only the last reply is trained."""
    then: tuple[Policy, ...] = ()
    """Policies whose weights multiply into this one's."""

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Policy:
        """Return the policy a card describes (`schemas/weights.schema.json`)."""
        keywords = {key: (w["keyword"], w["content"]) for key, w in card.get("keywords", {}).items()}
        patterns = tuple(
            (key, re.compile(w["pattern"], re.DOTALL), w["weight"]) for key, w in card.get("patterns", {}).items()
        )
        queries, then = tuple(card.get("queries", {}).items()), tuple(map(cls.from_card, card.get("then", ())))
        return cls(card["name"], keywords, patterns, queries, card.get("replies") == "last", then)

    @property
    def last_round(self) -> bool:
        """Whether only the last reply is trained, by this policy or one after it."""
        return any(part.only_last for part in self.parts)

    @property
    def parts(self) -> tuple[Policy, ...]:
        """The policies that are applied one after the other."""
        return (self, *self.then)

    @property
    def looks(self) -> bool:
        """Whether it looks into replies, or at what they reply to."""
        return bool(self.keywords or self.patterns or self.queries)

    def asked(self, query: str) -> float | None:
        """Return the weight of a whole reply to this user message, or None where the policy looks at the reply."""
        return next((weight for text, weight in self.queries if text in query), None)

    @property
    def keys(self) -> list[str]:
        """The keys that tokens can carry under this policy."""
        own = [*self.keywords, *(key for key, _, _ in self.patterns)] + ([KEYWORD] if self.keywords else [])
        return own + [key for policy in self.then for key in policy.keys]

    @cached_property
    def _keyword(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.keywords, key=len, reverse=True))))

    @cached_property
    def _keyword_line(self) -> re.Pattern[str]:
        return re.compile(f"\n({self._keyword.pattern})")  # begins with a literal, which is searched for quickly

    def intervals(self, reply: str, begin: int = 0) -> list[Interval]:
        """Return the weighted stretches of a reply; the message's own text, which begins a line, is at `begin`.

        Keywords are a state machine anchored at line starts: a keyword holds until the next one; the same words in
        the middle of a line are text. A pattern sees the reply from there too, but for what the template itself has
        it begin with (an empty think block).
        """
        found: list[Interval] = []
        if self.keywords:
            first = self._keyword.match(reply, begin)
            lines = self._keyword_line.finditer(reply, first.end() if first else begin)
            marks = [*([(first.start(), first[0])] if first else []), *((line.start(1), line[1]) for line in lines)]
            ends = [*(at for at, _ in marks[1:]), len(reply)]
            for (at, word), end in zip(marks, ends, strict=False):  # no keyword, no stretch
                keyword, content = self.keywords[word]
                after = at + len(word)
                found.append((at, after, keyword, KEYWORD))
                if end > after:
                    found.append((after, end, content, word))
        if not self.patterns:
            return found
        start = 0 if reply[:begin].strip() else begin
        for key, pattern, weight in self.patterns:
            matches = pattern.finditer(reply[start:])
            found += [(start + match.start(), start + match.end(), weight, key) for match in matches]
        return _apart(found)


def _apart(intervals: list[Interval]) -> list[Interval]:
    """Return the stretches in order and without overlap: where two overlap, the one that begins first has it."""
    apart: list[Interval] = []
    done = 0
    for start, end, weight, key in sorted(intervals):
        if end > max(start, done):
            apart.append((max(start, done), end, weight, key))
            done = end
    return apart


def weigh(conversation: Conversation, segments: list[Segment], policy: Policy) -> list[Segment]:
    """Return the segments with weights and keys.

    1. A reply weighs 1, or what its message asks for; `loss: false` makes it context, stop included.
    2. A message of another role weighs 0, or what it asks for, on its own text only: headers stay context.
    3. The policy multiplies into replies that did not ask for a weight of their own.
    """
    if policy.last_round:
        conversation = last_round(conversation)
    weighed: list[Segment] = []
    reply: list[Segment] = []
    for segment in segments:
        if reply and not (segment.generated and segment.message == reply[0].message):
            weighed += weigh_reply(conversation, reply, policy)
            reply = []
        if segment.generated:
            reply.append(segment)
            continue
        if segment.media >= 0:
            segment.key = conversation.media()[segment.media].kind  # a placeholder is never what a model says
        elif segment.message >= 0:
            message = conversation.messages[segment.message]
            segment.weight = (message.weight or 0.0) if message.role is not Role.ASSISTANT else 0.0
        weighed.append(segment)
    return weighed + (weigh_reply(conversation, reply, policy) if reply else [])


def weigh_reply(conversation: Conversation, reply: list[Segment], policy: Policy) -> list[Segment]:
    """Return a reply's segments weighed; its last segment is the stop, which weighs as the message does."""
    asked = conversation.messages[reply[0].message].weight
    for segment in reply:
        segment.weight = 0.0 if segment.media >= 0 else 1.0 if asked is None else asked
    if asked is not None:
        return reply
    for part in policy.parts:
        if part.looks:
            reply = _with_policy(conversation, reply, part)
    return reply


def _with_policy(conversation: Conversation, reply: list[Segment], policy: Policy) -> list[Segment]:
    *body, stop = reply
    before = conversation.messages[: stop.message]
    query = next((message.content for message in reversed(before) if message.role is Role.USER), "")
    whole = policy.asked(query)
    if whole is not None:
        for segment in reply:
            segment.weight *= whole
        return reply
    text = "".join(segment.text for segment in body)
    return [*_apply(body, stretches(text, conversation.messages[stop.message], policy)), stop]


def stretches(reply: str, message: Message, policy: Policy) -> list[Interval]:
    """Return the weighted stretches of a message's reply as the model would produce it, stop left out."""
    return policy.intervals(reply, _begin(reply, message))


def _begin(reply: str, message: Message) -> int:
    """Return where a message's own text begins in its reply: what it thinks comes first, and may hold the same words.

    A template may put a space before the text (Mistral, Llama 2), or strip it.
    """
    thought = (message.reasoning or "").strip()
    after = max(reply.find(thought), 0) + len(thought) if thought else 0
    places = (reply.find(text, after) for text in (message.content, message.content.strip()))
    return next((place for place in places if place >= 0), after)


def cut(text: str, intervals: list[Interval]) -> list[tuple[str, float, str]]:
    """Return a text in pieces, each with its weight and key."""
    pieces: list[tuple[str, float, str]] = []
    at = 0
    for start, stop, weight, key in intervals:
        if start > at:
            pieces.append((text[at:start], 1.0, ""))
        pieces.append((text[start:stop], weight, key))
        at = stop
    if at < len(text):
        pieces.append((text[at:], 1.0, ""))
    return pieces


def last_round(conversation: Conversation) -> Conversation:
    """Return the conversation with every reply but the last as context."""
    messages = conversation.messages
    last = max((i for i, message in enumerate(messages) if message.role is Role.ASSISTANT), default=0)
    return replace(conversation, messages=[*map(as_context, messages[:last]), *messages[last:]])


def as_context(message: Message) -> Message:
    """Return a reply as context; other messages as they are."""
    return replace(message, weight=0.0) if message.role is Role.ASSISTANT else message


def _apply(body: list[Segment], intervals: list[Interval]) -> list[Segment]:
    weighed: list[Segment] = []
    position = 0
    for segment in body:
        end = position + len(segment.text)
        inside = [(max(a, position), min(b, end), w, key) for a, b, w, key in intervals if a < end and b > position]
        if segment.control >= 0 or not inside:
            if inside:
                # A control token is one token: it takes the smallest weight it covers, as any other.
                covered = sum(b - a for a, b, _, _ in inside)
                rest = [1.0] if covered < len(segment.text) else []
                segment.weight *= min([w for _, _, w, _ in inside] + rest)
                segment.key = inside[0][3]
            weighed.append(segment)
        else:
            weighed += _pieces(segment, [(a - position, b - position, w, key) for a, b, w, key in inside])
        position = end
    return weighed


def _pieces(segment: Segment, inside: list[Interval]) -> list[Segment]:
    pieces: list[Segment] = []
    for text, weight, key in cut(segment.text, inside):
        piece = segment.piece(text)
        piece.weight, piece.key = segment.weight * weight, key or segment.key
        pieces.append(piece)
    for piece in pieces[1:]:
        piece.boundary = False
    return pieces
