"""Weights policies: which characters of a reply are trained, and how much.

A policy is data (`registry/weights/*.json`). It looks at the text of a reply as the model would produce it (tool calls
rendered, the stop left out) and gives intervals of it a weight and a key. Everything else in the reply weighs 1.
Weights never change ids: they belong to characters, and a token takes the smallest weight among those it covers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from compiler.conversation import Conversation, Message, Role

KEYWORD = "keyword"
"""The key of a policy's own marker words ("Action:" itself, not what follows it)."""

Interval = tuple[int, int, float, str]
"""(start, end, weight, key) in characters of a reply; intervals are in order and do not overlap."""

Weighed = tuple[int, float, str]
"""(number of characters, weight, key): neighbouring characters of a reply that weigh the same."""


@dataclass(frozen=True)
class Policy:
    """A weights policy, ready to use: keywords at the start of a line, or patterns anywhere."""

    name: str
    keywords: dict[str, tuple[float, float]]
    patterns: tuple[tuple[str, re.Pattern[str], float], ...]
    queries: tuple[tuple[str, float], ...] = ()
    only_last: bool = False
    """Whether only the last reply is trained."""
    only_react: bool = False
    """Whether it is for ReAct text alone (decision 33)."""
    then: tuple[Policy, ...] = ()
    """Policies whose weights multiply into this one's."""

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Policy:
        """The policy a card describes (`schemas/weights.schema.json`)."""
        keywords = {key: (w["keyword"], w["content"]) for key, w in card.get("keywords", {}).items()}
        patterns = tuple(
            (key, re.compile(w["pattern"], re.DOTALL), w["weight"]) for key, w in card.get("patterns", {}).items()
        )
        queries, then = tuple(card.get("queries", {}).items()), tuple(map(cls.from_card, card.get("then", ())))
        last, only_react = card.get("replies") == "last", card.get("only_react", False)
        return cls(card["name"], keywords, patterns, queries, last, only_react, then)

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

    def of_whole(self, conversation: Conversation, reply: int) -> float | None:
        """The weight of a whole reply, stop included, by the user message it answers; None where none is given."""
        if not self.queries:
            return None
        before = reversed(conversation.messages[:reply])
        query = next((message.content for message in before if message.role is Role.USER), "")
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
        return re.compile(f"\n({self._keyword.pattern})")  # begins with a literal, which makes the search fast

    def intervals(self, reply: str, begin: int = 0) -> list[Interval]:
        """The intervals of a reply whose own text, which begins a line, is at character `begin`.

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
            for (at, word), end in zip(marks, ends, strict=False):  # without keywords no interval
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


EVEN = Policy("none", {}, ())
"""The policy that weighs every reply evenly."""


def _apart(intervals: list[Interval]) -> list[Interval]:
    """Order intervals and take overlaps away: the interval that begins first keeps its characters."""
    apart: list[Interval] = []
    done = 0
    for start, end, weight, key in sorted(intervals):
        if end > max(start, done):
            apart.append((max(start, done), end, weight, key))
            done = end
    return apart


def _begin(reply: str, message: Message) -> int:
    """Find where a message's own text begins in its reply: its thinking comes first and may hold the same words.

    A template may put a space before the text (Mistral, Llama 2), or strip it.
    """
    thought = (message.reasoning or "").strip()
    after = max(reply.find(thought), 0) + len(thought) if thought else 0
    places = (reply.find(text, after) for text in (message.content, message.content.strip()))
    return next((place for place in places if place >= 0), after)


def weigh_replies(
    policies: list[Policy], texts: list[str], conversations: list[Conversation], number: int
) -> list[tuple[list[Weighed], float]]:
    """Weigh message `number` of each conversation, a reply of this text: its characters, and the stop after them."""
    found = []
    for text, conversation in zip(texts, conversations, strict=True):
        weighed, stop = [(len(text), 1.0, "")], 1.0
        for policy in policies:
            whole = policy.of_whole(conversation, number)
            if whole is not None:
                weighed, stop = [(length, weight * whole, key) for length, weight, key in weighed], stop * whole
            elif conversation.plain and policy.only_react:
                continue
            elif intervals := policy.intervals(text, _begin(text, conversation.messages[number])):
                weighed = _multiplied(weighed, intervals)
        found.append((weighed, stop))
    return found


def _multiplied(weighed: list[Weighed], intervals: list[Interval]) -> list[Weighed]:
    """Cut characters at intervals, and multiply their weights by those of the intervals."""
    found: list[Weighed] = []
    at = 0
    for length, weight, key in weighed:
        end = at + length
        for start, stop, times, name in intervals:
            if stop <= at:
                continue
            if start >= end:
                break
            if start > at:
                found.append((start - at, weight, key))
                at = start
            last = min(stop, end)
            found.append((last - at, weight * times, name or key))
            at = last
        if at < end:
            found.append((end - at, weight, key))
            at = end
    return found


def between(weighed: list[Weighed], start: int, end: int) -> list[Weighed]:
    """The characters [start, end) of weighed ones."""
    found: list[Weighed] = []
    at = 0
    for length, weight, key in weighed:
        low, high = max(at, start), min(at + length, end)
        if low < high:
            found.append((high - low, weight, key))
        at += length
    return found


def last_round(conversation: Conversation) -> Conversation:
    """Make every reply but the last context."""
    messages = conversation.messages
    last = max((i for i, message in enumerate(messages) if message.role is Role.ASSISTANT), default=0)
    return replace(conversation, messages=[*map(as_context, messages[:last]), *messages[last:]])


def as_context(message: Message) -> Message:
    """Make a reply context; other messages stay as they are."""
    return replace(message, weight=0.0) if message.role is Role.ASSISTANT else message
