"""A row's tokens laid out on lines, with every mark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from compiler.encode.shapes import TEMPLATE
from compiler.inspect.marks import (
    CONTEXT,
    CONTROL,
    EDGE,
    FOUND,
    LOOKALIKE,
    MARK,
    QUIET,
    TRAINED,
    WEIGHTED,
    glyphs,
    joins,
    occurrences,
    visible,
)
from compiler.inspect.tokens import ShownRow, Token


@dataclass
class Line:
    """One line of the decoded text: (glyphs, style) in order. `opens`: the template's control token begins it."""

    parts: list[tuple[str, str]] = field(default_factory=list)
    role: str = ""
    opens: bool = False


def lines(row: ShownRow, find: str | None, *, edges: bool) -> list[Line]:
    """The lines of a row. With `edges`, a mark separates tokens; without, two shades do.

    A line that holds only the header of a message has the role of that message.
    """
    found = _Writer(row, find, edges).write()
    for following, line in pairwise(reversed(found)):
        line.role = line.role or ("" if following.opens else following.role)
    return found


class _Writer:
    """Writes tokens one after the other. A line ends only when text follows its newline, so a closing ⟧ stays on it."""

    def __init__(self, row: ShownRow, find: str | None, edges: bool) -> None:
        self._tokens, self._text, self._edges = row.tokens, row.text, edges
        self._glyphs, self._extra = glyphs(self._text), [""] * len(self._text)
        for start, end in row.lookalikes:
            self._extra[start:end] = [f" {LOOKALIKE}"] * (end - start)
            self._glyphs[start] = "⚠" + self._glyphs[start]
        for start, end in occurrences(self._text, find):
            self._extra[start:end] = [f" {FOUND}"] * (end - start)
        self._lines, self._ended = [Line()], False
        self._at, self._shade = 0, 0
        self._apart = True
        """Whether a mark or a new line already separates the next token from the one before it."""

    def write(self) -> list[Line]:
        """Write the lines, with brackets around tokens of one weight."""
        for weight, tokens in groupby(self._tokens, key=lambda token: token.weight):
            if weight:
                self._put("⟦" if weight == 1 else f"⟦{_number(weight)}:", MARK)
            self._apart = True
            for token, count in repeated(tokens):
                self._token(token, CONTEXT if not weight else TRAINED if weight == 1 else WEIGHTED, count)
            if weight:
                self._lines[-1].parts.append(("⟧", MARK))
        return self._lines

    def _token(self, token: Token, shades: tuple[str, str], count: int) -> None:
        start, self._at = self._at, self._at + len(token.text) * count
        if not token.text:  # the token that completes the character shows it
            return
        style = shades[self._shade]
        line = self._line()
        if token.role != TEMPLATE[0]:
            line.role = line.role or token.role
        if token.control:
            line.opens = line.opens or (token.role == TEMPLATE[0] and not line.parts)
            name = token.text[1:-1] if token.text[0] + token.text[-1] == "<>" else token.text
            self._put(f"‹{visible(name)}›" + (f"×{count:,}" if count > 1 else ""), f"{style} {CONTROL}")
            self._apart = True
            return
        if self._edges and not self._apart and not joins(token.text[0]):
            self._put(EDGE, QUIET)
        for position in range(start, self._at):
            self._put(self._glyphs[position], style + self._extra[position])
            self._ended = self._text[position] == "\n"
        self._apart = self._ended
        self._shade ^= 1

    def _line(self) -> Line:
        if self._ended:
            self._lines.append(Line())
            self._ended = False
        return self._lines[-1]

    def _put(self, shown: str, style: str) -> None:
        parts = self._line().parts
        if parts and parts[-1][1] == style:
            shown = parts.pop()[0] + shown
        parts.append((shown, style))


def repeated(tokens: Iterable[Token]) -> Iterator[tuple[Token, int]]:
    """Yield each token with 1; a control token that repeats (an image's) comes once, with its number of repeats."""
    for control, run in groupby(tokens, key=lambda token: token.id if token.control else -1):
        same = list(run)
        if control >= 0 and len(same) > 3:
            yield same[0], len(same)
        else:
            yield from ((token, 1) for token in same)


def _number(weight: float) -> str:
    return repr(round(weight, 4))  # 1.1 is 1.100000023841858 as a float32
