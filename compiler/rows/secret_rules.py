"""The rules for secrets, and where a text has any (--scan-secrets).

What a secret looks like is data (`registry/secrets/`): the rules of gitleaks as published, and our own two for mail
addresses and home folders. gitleaks' regular expressions are written for RE2, so `from_re2` writes them for `re`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import registry

_GENERIC = "generic-api-key"
_PREFIX = r"(?i)[\w.-]{0,50}?"
"""What many rules begin with. It is costly to search for, and moves the beginning of a match but not its secret."""
_BOUNDS = {".*": ".{0,1000}", "{64,}?": "{64,20000}?"}
"""What `re` would follow to the end of a text wherever it may begin, and how far it does instead."""
_SPACE = r"\t\n\f\r "
_BEFORE = re.compile(r"[\w.-]{0,50}\Z", re.ASCII)


class Span(NamedTuple):
    """Where a secret stands in a text, and what it is."""

    start: int
    end: int
    kind: str


class KeyedText(NamedTuple):
    """A text of a row, with the key of the JSON object that it is a value of."""

    text: str
    key: str = ""


def from_re2(pattern: str) -> tuple[str, bool]:
    r"""The pattern as `re` takes it, and whether it has several alternatives on its top level.

    RE2's flags within a pattern hold up to the end of their group, `$` is the end of the text, as `\z` is, `\s` has no
    vertical tab, and classes may hold classes by name.
    """
    made: list[str] = []
    flags: list[list[str]] = [[]]
    in_class = several = False
    for token in re.findall(r"\\.|\[:alnum:\]|\[\^?\]?|\(\?[a-z]+(?:-[a-z]+)?\)|.", pattern, re.DOTALL):
        opened = flags[-1]
        if in_class:
            named = {"[:alnum:]": "a-zA-Z0-9", r"\s": _SPACE}.get(token)
            in_class = named is not None or not token.endswith("]") or token == r"\]"
            made.append(named or ("\\" + token if token.startswith("[") else token))
        elif token.startswith("["):
            in_class = True
            made.append(token)
        elif token.startswith("(?") and token.endswith(")"):
            opened.append(token[:-1] + ":")
            made.append(opened[-1])
        elif token == "(":
            flags.append([])
            made.append(token)
        elif token == ")":
            made.append(")" * (len(flags.pop()) + 1))
        elif token == "|":
            several = several or len(flags) == 1
            made.append(")" * len(opened) + token + "".join(opened))
        else:
            made.append({"$": r"\Z", r"\z": r"\Z", r"\s": f"[{_SPACE}]"}.get(token, token))
    text = "".join(made) + ")" * len(flags[0])
    for endless, bounded in _BOUNDS.items():
        text = text.replace(endless, bounded)
    return text, several


@dataclass(frozen=True)
class _Allow:
    """What is no secret after all."""

    regexes: tuple[re.Pattern[str], ...]
    target: str
    """What the expressions are looked for in: the secret, the whole match, or its lines."""
    stopwords: tuple[str, ...]

    @classmethod
    def from_card(cls, card: dict[str, Any], compiled: Callable[[str], re.Pattern[str]]) -> _Allow:
        """The entry of a rules file. Paths and commits are about repositories: a text of a row has none."""
        if card.get("condition") == "AND" and {"paths", "commits"} & card.keys():
            return cls((), "", ())
        regexes = tuple(map(compiled, card.get("regexes", ())))
        return cls(regexes, card.get("regexTarget", "secret"), tuple(map(str.lower, card.get("stopwords", ()))))

    def covers(self, text: str, start: int, end: int, secret: str) -> bool:
        """Whether it covers the secret of the match that stands at start..end in the text."""
        where = secret
        if self.target == "line":
            start, end = text.rfind("\n", 0, start) + 1, (text.find("\n", end) + 1 or len(text) + 1) - 1
        if self.target in ("line", "match"):
            where = text[start:end]
        lowered = secret.lower()
        return any(regex.search(where) for regex in self.regexes) or any(word in lowered for word in self.stopwords)


class _Rule:
    """One rule: what it looks for is only compiled where a row has one of its keywords."""

    def __init__(self, card: dict[str, Any], others: Sequence[_Allow], *, own: bool, whole: bool) -> None:
        self.kind: str = card["id"]
        self.keywords: tuple[str, ...] = tuple(card["keywords"])
        self.own = own
        self._card, self._others, self._whole = card, others, whole
        self._entropy: float = card.get("entropy", 0)
        self._group: int = card.get("secretGroup", 0)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        pattern = self._card["regex"]
        return re.compile(pattern) if self.own else _re2(pattern.replace(_PREFIX, "(?i)", 1) if self._cut else pattern)

    @cached_property
    def _cut(self) -> bool:
        """Whether the expression is searched for without its prefix: the same secrets, if it has no alternatives."""
        pattern = self._card["regex"]
        return pattern.startswith(_PREFIX) and not from_re2(pattern)[1]

    @cached_property
    def _allowed(self) -> list[_Allow]:
        compiled = re.compile if self.own else _re2
        return [_Allow.from_card(card, compiled) for card in self._card.get("allowlists", ())] + [*self._others]

    def find(self, text: str) -> Iterator[Span]:
        """The secrets of this kind in a text."""
        last = 0
        for match in self._regex.finditer(text):
            start, end = match.span(self._secret_of(match))
            secret = text[start:end]
            first, last = last, match.end()
            if self._entropy and entropy(secret) <= self._entropy:
                continue
            begin = match.start()
            if self._cut and (more := _BEFORE.search(text, max(first, begin - 50), begin)):
                begin = more.start()
            if not any(allow.covers(text, begin, match.end(), secret) for allow in self._allowed):
                yield Span(start, end, self.kind)

    def _secret_of(self, match: re.Match[str]) -> int:
        if self._whole or self._group:
            return self._group
        return next((n for n in range(1, len(match.groups()) + 1) if match[n]), 0)


def _re2(pattern: str) -> re.Pattern[str]:
    return re.compile(from_re2(pattern)[0], re.ASCII)


def entropy(text: str) -> float:
    """The Shannon entropy of a text, in bits for each byte."""
    length = len(text.encode(errors="surrogatepass"))
    return -sum(n / length * math.log2(n / length) for n in Counter(text).values())


@cache
def _rules() -> list[_Rule]:
    """All rules, those of gitleaks that are about the names of files left out."""
    published, own = registry.secrets()
    others = [_Allow.from_card(published["allowlist"], _re2)]
    whole = own["gitleaks"]["whole"]
    found = [card for card in published["rules"] if "path" not in card]
    rules = [_Rule(card, others, own=False, whole=card["id"] in whole) for card in found]
    return rules + [_Rule(card, (), own=True, whole=False) for card in own["rules"]]


def is_own(kind: str) -> bool:
    """Whether a kind is one of our own rules."""
    return any(rule.own and rule.kind == kind for rule in _rules())


@cache
def _keywords() -> tuple[str, ...]:
    return tuple(sorted({word for rule in _rules() for word in rule.keywords}))


def find(places: Sequence[KeyedText]) -> dict[KeyedText, list[Span]]:
    """The secrets in texts: for each text that has any, in order, without overlaps."""
    lowered = "\n".join([f"{place.key}\n{place.text}" for place in places]).lower()
    present = {word for word in _keywords() if word in lowered}
    rules = [rule for rule in _rules() if not present.isdisjoint(rule.keywords)]
    found: dict[KeyedText, list[Span]] = {}
    for place in places if rules else ():
        if spans := joined([span for rule in rules for span in _in(place, rule)]):
            found[place] = spans
    return found


def _in(place: KeyedText, rule: _Rule) -> Iterator[Span]:
    """The secrets of a kind in a text. The value of a key is looked at as it stands in JSON, so that the key tells."""
    text, key = place
    if not key:
        yield from rule.find(text)
        return
    at, length = len(key) + 5, len(text)
    for start, end, kind in rule.find(f'"{key}": "{text}"'):
        if end > at and start < at + length:
            yield Span(max(start - at, 0), min(end - at, length), kind)


def joined(spans: list[Span]) -> list[Span]:
    """The spans in order; those that overlap are one, of the kind that says most."""
    made: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if made and span.start < made[-1].end:
            before = made[-1]
            kind = span.kind if before.kind == _GENERIC else before.kind
            made[-1] = Span(before.start, max(before.end, span.end), kind)
        else:
            made.append(span)
    return made
