"""The marks and colours of the text, and how characters are made visible.

Every mark is a glyph as well as a colour, so nothing is lost in a pipe or with `NO_COLOR`:

    ⟦trained⟧  ⟦2.0:weight 2⟧  ‹control token›  ⚠<|looks like one|>  ↵ end of line  ␣ space that could be missed

Marks that occur in the data, and characters that do not print, are written as `<U+001B>`.
"""

from __future__ import annotations

import re
import unicodedata

CONTEXT = ("color(246)", "color(242)")
TRAINED = ("color(35)", "color(29)")
WEIGHTED = ("color(172) bold", "color(130) bold")
"""Two shades each, readable on black and on white."""
CONTROL, LOOKALIKE, FOUND, MARK, QUIET = "bold color(33)", "bold color(160)", "reverse", "bold", "dim"
EDGE, NEWLINE, SPACE = "┊", "↵", "␣"
_PICTURES = {"\n": NEWLINE, "\t": "⇥"}
_MARKS = frozenset("⟦⟧‹›⚠┊↵␣⇥")
_MISSED_SPACE = re.compile(r"(?<= ) | (?= )| (?=\n|$)")
_JOINER = "\u200d"


def glyphs(text: str, marks: frozenset[str] = _MARKS) -> list[str]:
    """What is shown for each character: all are visible, and none acts on the terminal or is taken for a mark."""
    missed = {match.start() for match in _MISSED_SPACE.finditer(text)}
    return [SPACE if i in missed else _glyph(char, marks) for i, char in enumerate(text)]


def visible(text: str) -> str:
    """The text as it is shown."""
    return "".join(glyphs(text))


def joins(char: str) -> bool:
    """Whether a character combines with the one before it, so that no mark can go between them."""
    return char == _JOINER or unicodedata.category(char).startswith("M")


def occurrences(text: str, find: str | None) -> list[tuple[int, int]]:
    """The (start, end) of every occurrence of the searched text."""
    return [match.span() for match in re.finditer(re.escape(find), text)] if find else []


def _glyph(char: str, marks: frozenset[str]) -> str:
    if char in _PICTURES:
        return _PICTURES[char]
    category = unicodedata.category(char)
    # Cn (unassigned) is shown: newer emoji than this Python knows are Cn.
    hidden = char in marks or (category[0] in "CZ" and category != "Cn" and char not in (" ", _JOINER))
    return f"<U+{ord(char):04X}>" if hidden else char
