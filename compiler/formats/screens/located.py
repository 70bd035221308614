"""Errors of the screen grammars, each with its position in the text."""

from __future__ import annotations

import re

from schemas.errors import Reason, RowError


class GrammarError(ValueError):
    """A text that breaks a grammar: at which character, what was expected and what was found."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(position, message)
        self.position, self.message = position, message

    def __str__(self) -> str:
        return f"character {self.position}: {self.message}"

    def in_row(self, text: str, pointer: str) -> RowError:
        """The error of the row that has this text, with a few characters around the position."""
        begin, end = max(0, self.position - 20), self.position + 20
        near = f"{'...' if begin else ''}{text[begin:end]!r}{'...' if end < len(text) else ''}"
        return RowError(Reason.SCREEN, f"character {self.position}, near {near}: {self.message}", pointer)


def found(text: str, at: int, end: int | None = None) -> str:
    """What is at a position, for a message: a word or a few characters, quoted, or the end of the text or line."""
    rest = text[at : min(at + 24, len(text) if end is None else end)]
    if not rest:
        return "the end of the text" if at >= len(text) else "the end of the line"
    word = re.match(r"\w+|\S+|\s+", rest)
    assert word is not None
    return repr(word.group())
