"""A decoded row as what people read: messages, in them runs of tokens of one weight, and places of images.

Nothing is guessed: a message is a run of tokens of one role, as the row's spans say, and what the template wrote
stands between. Parts of a message (thinking, calls) are found by their tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any

from compiler.encode.shapes import TEMPLATE
from compiler.inspect.lines import repeated
from compiler.inspect.marks import NEWLINE, SPACE, glyphs
from compiler.inspect.tokens import Token
from schemas.arrow import IGNORED

FIRST, LAST = 1100, 300
"""Of a longer row, so many tokens are shown from its begin and from its end."""
_MARKS = frozenset((NEWLINE, SPACE, "⇥"))
_PARTS = (
    ("thinking", re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)),
    ("tool call", re.compile(r"<tool_call>.*?(?:</tool_call>|\Z)|\[TOOL_CALLS\].*", re.DOTALL)),
    ("tool result", re.compile(r"<tool_response>.*?(?:</tool_response>|\Z)", re.DOTALL)),
)
"""Parts of a message by the tags around them."""


@dataclass
class Shown:
    """One token, or a control token that repeats, as the page shows it."""

    text: str
    title: str
    style: str
    count: int = 1
    media: dict[str, Any] | None = None


@dataclass
class TokenRun:
    """Neighbouring tokens of one weight. `mark` is "×2" before a run whose weight is not 1."""

    style: str
    mark: str
    tokens: list[Shown] = field(default_factory=list)


@dataclass
class MessagePart:
    """A part of a message: thinking, a call, or neither ("")."""

    kind: str
    runs: list[TokenRun] = field(default_factory=list)


@dataclass
class Turn:
    """A message, what the template wrote between two messages, or a gap: so many tokens that are left out."""

    role: str
    parts: list[MessagePart] = field(default_factory=list)
    tokens: int = 0
    trained: int = 0
    gap: int = 0


def turns_of(tokens: Sequence[Token], media: Sequence[dict[str, Any]] = (), start: int = 0) -> list[Turn]:
    """The turns of a sequence, or of its tokens from `start` on. A long one has a gap."""
    left_out = len(tokens) - start - FIRST - LAST
    at = {one["position"]: one for one in media}
    if left_out <= 0:
        return list(_turns(tokens[start:], at, start))
    last = len(tokens) - LAST
    gap = Turn(TEMPLATE[0], gap=left_out)
    return [*_turns(tokens[start : start + FIRST], at, start), gap, *_turns(tokens[last:], at, last)]


def shared(one: Sequence[Token], other: Sequence[Token]) -> int:
    """How many tokens two sequences begin with alike, up to the begin of the message in which they differ."""
    same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    while 0 < same < min(len(one), len(other)) and one[same - 1].role == one[same].role != TEMPLATE[0]:
        same -= 1
    return same


def visible(text: str) -> str:
    """The text with marks for what cannot be seen. A line ends after its mark."""
    return "".join(glyph + "\n" if glyph == NEWLINE else glyph for glyph in glyphs(text, _MARKS))


def _turns(tokens: Sequence[Token], media: dict[int, dict[str, Any]], start: int) -> Iterator[Turn]:
    texts = dict(enumerate(_texts(tokens), start))
    for role, group in groupby(tokens, key=lambda token: token.role):
        inside = list(group)
        trained = sum(token.label != IGNORED for token in inside)
        yield Turn(role, list(_parts(inside, role, texts, media, start)), len(inside), trained)
        start += len(inside)


def _texts(tokens: Sequence[Token]) -> list[str]:
    """What is shown for each token. Whether a space could be missed depends on its neighbours in other tokens."""
    shown = [glyph + "\n" if glyph == NEWLINE else glyph for glyph in glyphs("".join(t.text for t in tokens), _MARKS)]
    ends = [0, *accumulate(len(token.text) for token in tokens)]
    return ["".join(shown[a:b]) for a, b in pairwise(ends)]


def _parts(
    tokens: list[Token], role: str, texts: dict[int, str], media: dict[int, dict[str, Any]], start: int
) -> Iterator[MessagePart]:
    """Cut a message at the tags in its text; a token belongs to the part in which it begins."""
    kinds = [""] * len(tokens)
    if role != TEMPLATE[0]:
        text = "".join(token.text for token in tokens)
        begins = [0, *accumulate(len(token.text) for token in tokens)]
        for kind, pattern in _PARTS:
            for match in pattern.finditer(text):
                for n in range(len(tokens)):
                    if match.start() <= begins[n] < match.end():
                        kinds[n] = kind
    at = 0
    for kind, group in groupby(kinds):
        count = len(list(group))
        yield MessagePart(kind, list(_runs(tokens[at : at + count], texts, media, start + at)))
        at += count


def _runs(
    tokens: list[Token], texts: dict[int, str], media: dict[int, dict[str, Any]], start: int
) -> Iterator[TokenRun]:
    for weight, group in groupby(tokens, key=lambda token: token.weight):
        run = TokenRun(_style(weight), f"×{_number(weight)}" if weight not in (0, 1) else "")
        for token, count in repeated(group):
            text = texts[start].replace("\n", "") if token.control else texts[start]
            shown = Shown(text, _title(token), _token_style(token), count, media.get(start))
            start += count
            if shown.text or shown.media:
                run.tokens.append(shown)
            elif run.tokens:  # bytes of a character that a later token completes
                run.tokens[-1].title += f"; then {shown.title}"
        yield run


def _style(weight: float) -> str:
    """The style of a run: context, trained, or trained with more or less weight."""
    return "context" if not weight else "trained" if weight == 1 else "more" if weight > 1 else "less"


def _number(weight: float) -> str:
    return f"{round(weight, 4):g}"  # 1.1 is 1.100000023841858 as a float32


def _token_style(token: Token) -> str:
    return "control" if token.control else "alike" if token.looks_like_control else ""


def _title(token: Token) -> str:
    said = f"id {token.id}, label {token.label}, weight {_number(token.weight)}"
    said += f", {visible(token.key)}" if token.key else ""
    return said + (", text that looks like a control token" if token.looks_like_control else "")
