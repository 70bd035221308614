"""Weights policies: which characters of a reply are trained, and how much.

A policy is data: `registry/weights/*.json`, or a file of the user's. It may leave out whole replies (`replies.py`). Of
the others it looks at the text as the model would produce it (tool calls rendered, the stop left out) and gives
intervals of it a weight and a key. Everything else in the reply weighs 1.
Weights never change ids: they belong to characters, and a token takes the smallest weight among those it covers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import Any, NamedTuple

from compiler.conversation import Conversation, Message, Role
from compiler.rows.react.parse import ACTION, ACTION_INPUT, OBSERVATION, parse_reply
from schemas.errors import InputError
from schemas.limits import TimeLimitError, limited

SECONDS = 10.0
"""Seconds of processor time that the patterns of a policy may take for a reply."""
KEYWORD = "keyword"
"""The key of a policy's own marker words ("Action:" itself, not what follows it)."""
FAILED = "failed_call"
"""The key of an action in ReAct text whose observation is an error."""

Interval = tuple[int, int, float, str]
"""(start, end, weight, key) in characters of a reply; intervals are in order and do not overlap."""

Kind = tuple[float, str]
"""(weight, key) of neighbouring characters of a reply that weigh the same."""


class Weighed(NamedTuple):
    """A reply in pieces: their lengths in characters, and their kinds."""

    lengths: list[int]
    kinds: list[Kind]

    def between(self, start: int, end: int) -> Weighed:
        """The characters [start, end)."""
        found = Weighed([], [])
        at = 0
        for length, kind in zip(*self, strict=True):
            low, high = max(at, start), min(at + length, end)
            if low < high:
                found.lengths.append(high - low)
                found.kinds.append(kind)
            at += length
        return found


@dataclass(frozen=True)
class Policy:
    """A weights policy, ready to use: keywords at the start of a line, or patterns anywhere."""

    name: str
    keywords: dict[str, tuple[float, float]]
    patterns: tuple[tuple[str, re.Pattern[str], float], ...]
    queries: tuple[tuple[str, float], ...] = ()
    before: float = 1.0
    """The weight of what stands before the first keyword, in a reply that has one."""
    replies: str = "all"
    """Which replies are trained: "all", the "last" one, or the "final" one of each exchange; see replies.py."""
    errors: tuple[re.Pattern[str], ...] = ()
    """What a result that is an error looks like: its call is not trained."""
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
        return cls(
            card["name"], keywords, patterns,
            queries=tuple(card.get("queries", {}).items()),
            before=card.get("before", 1.0),
            replies=card.get("replies", "all"),
            errors=tuple(re.compile(pattern, re.DOTALL) for pattern in card.get("errors", {}).values()),
            only_react=card.get("only_react", False),
            then=tuple(map(cls.from_card, card.get("then", ()))),
        )  # fmt: skip

    @property
    def parts(self) -> tuple[Policy, ...]:
        """The policies that are applied one after the other."""
        return (self, *self.then)

    @cached_property
    def has_keywords_alone(self) -> bool:
        """Whether its keywords are all that gives characters a weight."""
        others = self.patterns or self.queries or self.errors
        return bool(self.keywords) and not others and self.before == 1

    @property
    def looks(self) -> bool:
        """Whether it looks into replies, or at what they reply to."""
        return bool(self.keywords or self.patterns or self.queries or self.errors)

    def is_error(self, result: str) -> bool:
        """Whether a tool's result is an error."""
        return any(pattern.search(result) for pattern in self.errors)

    def failed_actions(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each action in ReAct text whose observation is an error, in characters.

        An action ends with the word "Observation:", at which the model stops. The thought before it is no part of it.
        """
        found, begin = [], -1
        for part in parse_reply(text):
            if part.keyword == ACTION:
                begin = part.start
            elif part.keyword != ACTION_INPUT:
                if part.keyword == OBSERVATION and begin >= 0 and self.is_error(part.text):
                    found.append((begin, part.start + len(f"{OBSERVATION}:")))
                begin = -1
        return found

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
        own += [FAILED] if self.errors else []
        return own + [key for policy in self.then for key in policy.keys]

    @cached_property
    def _keyword(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.keywords, key=len, reverse=True))))

    @cached_property
    def _keyword_line(self) -> re.Pattern[str]:
        return re.compile(f"\n({self._keyword.pattern})")  # begins with a literal, which makes the search fast

    @cached_property
    def _kinds(self) -> dict[str, tuple[Kind, Kind]]:
        """The kinds of a keyword and of what follows it."""
        return {word: ((own, KEYWORD), (content, word)) for word, (own, content) in self.keywords.items()}

    def by_keyword(self, reply: str, begin: int) -> Weighed | None:
        """The pieces that the `intervals` of a policy make which has keywords alone; None where there are none."""
        first = self._keyword.match(reply, begin)
        parts = self._keyword_line.split(reply[first.end() if first else begin :])
        if not first and len(parts) == 1:
            return None
        lengths = list(map(len, parts))
        for number in range(0, len(parts) - 1, 2):
            lengths[number] += 1  # the end of the line before a keyword
        kinds = list(chain.from_iterable(map(self._kinds.__getitem__, parts[1::2])))
        if first:
            lengths[:0], kinds[:0] = [begin, len(first[0])], [(1.0, ""), *self._kinds[first[0]]]
        else:
            lengths[0], kinds[:0] = lengths[0] + begin, [(1.0, "")]
        if not lengths[0]:
            del lengths[0], kinds[0]
        if not lengths[-1]:
            del lengths[-1], kinds[-1]
        return Weighed(lengths, kinds)

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
            if self.before != 1 and marks:
                found.append((0, marks[0][0], self.before, ""))
            for (at, word), end in zip(marks, ends, strict=False):  # without keywords no interval
                keyword, content = self.keywords[word]
                after = at + len(word)
                found.append((at, after, keyword, KEYWORD))
                if end > after:
                    found.append((after, end, content, word))
        if not self.patterns:
            return found
        start = 0 if reply[:begin].strip() else begin
        try:
            with limited(SECONDS):
                for key, pattern, weight in self.patterns:
                    end = _last_end(pattern, reply)
                    matches = pattern.finditer(reply[start:end]) if end > start else ()
                    found += [(start + match.start(), start + match.end(), weight, key) for match in matches]
        except TimeLimitError as error:
            what = f"its patterns took more than {SECONDS:g} seconds for a reply of {len(reply):,} characters"
            hint = "Write them so that they do not try the same text again and again."
            raise InputError(f"--weights {self.name}", what, hint) from error
        return _apart(found)


EVEN = Policy("none", {}, ())
"""The policy that weighs every reply evenly."""


_LITERAL_END = re.compile(r"[A-Za-z0-9<>/_ -]+\Z")


@cache
def _literal_end(pattern: re.Pattern[str]) -> str:
    """The text that every match of a pattern ends with, as far as that is plain; "" where it is not."""
    found = _LITERAL_END.search(pattern.pattern)
    if found is None or "|" in pattern.pattern or "(?" in pattern.pattern or pattern.flags & re.VERBOSE:
        return ""
    return found[0][1:] if pattern.pattern[: found.start()].endswith("\\") else found[0]


def _last_end(pattern: re.Pattern[str], text: str) -> int:
    """Where the last match of a pattern can end.

    Without it, `<a>.+?</a>` looks from each of many `<a>` to the end of the text for a `</a>` that is not there.
    """
    literal = _literal_end(pattern)
    return text.rfind(literal) + len(literal) if literal in text else 0


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
    if message.reasoning is None and reply.startswith(message.content):
        return 0  # nearly always
    thought = (message.reasoning or "").strip()
    after = max(reply.find(thought), 0) + len(thought) if thought else 0
    places = (reply.find(text, after) for text in (message.content, message.content.strip()))
    return next((place for place in places if place >= 0), after)


def weigh_replies(
    policies: list[Policy], texts: list[str], conversations: list[Conversation], number: int
) -> list[tuple[Weighed | None, float]]:
    """Weigh message `number` of each conversation, a reply of this text: its characters, and the stop after them.

    None instead of pieces: every character weighs 1 and has no key.
    """
    return [
        _weigh_reply(policies, text, conversation, number)
        for text, conversation in zip(texts, conversations, strict=True)
    ]


def _weigh_reply(
    policies: list[Policy], text: str, conversation: Conversation, number: int
) -> tuple[Weighed | None, float]:
    weighed, stop = Weighed([len(text)], [(1.0, "")]), 1.0
    for policy in policies:
        whole = policy.of_whole(conversation, number)
        if whole is not None:
            kinds = [(weight * whole, key) for weight, key in weighed.kinds]
            weighed, stop = Weighed(weighed.lengths, kinds), stop * whole
            continue
        if conversation.plain and policy.only_react:
            continue
        begin = _begin(text, conversation.messages[number])
        if policy.has_keywords_alone and len(policies) == 1:
            return policy.by_keyword(text, begin), stop
        if intervals := policy.intervals(text, begin):
            weighed = _multiplied(weighed, intervals)
        if policy.errors and not conversation.plain and (actions := policy.failed_actions(text[begin:])):
            failed = [(begin + start, begin + end, 0.0, FAILED) for start, end in actions]
            weighed = _multiplied(weighed, failed)
    return (None if weighed.kinds == [(1.0, "")] else weighed), stop


def _multiplied(weighed: Weighed, intervals: list[Interval]) -> Weighed:
    """Cut characters at intervals, and multiply their weights by those of the intervals."""
    found: list[tuple[int, Kind]] = []
    at = 0
    for length, (weight, key) in zip(*weighed, strict=True):
        end = at + length
        for start, stop, times, name in intervals:
            if stop <= at:
                continue
            if start >= end:
                break
            if start > at:
                found.append((start - at, (weight, key)))
                at = start
            last = min(stop, end)
            found.append((last - at, (weight * times, name or key)))
            at = last
        if at < end:
            found.append((end - at, (weight, key)))
            at = end
    return Weighed([length for length, _ in found], [kind for _, kind in found])
