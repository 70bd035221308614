"""The marks and colours of the text, and characters made visible.

Every mark is a glyph as well as a colour, so that a pipe and `NO_COLOR` lose nothing:

    ⟦trained⟧  ⟦2.0:weight 2⟧  ‹control token›  ⚠<|looks like one|>  ↵ end of line  ␣ space that could be missed

Marks in the data, and characters that do not print, are written `<U+001B>`.
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


def glyphs(text: str) -> list[str]:
    """Return what is shown for each character, so that every one is seen and none is obeyed."""
    missed = {match.start() for match in _MISSED_SPACE.finditer(text)}
    return [SPACE if i in missed else _glyph(char) for i, char in enumerate(text)]


def visible(text: str) -> str:
    """Return a text as it is shown."""
    return "".join(glyphs(text))


def joins(char: str) -> bool:
    """Return whether a character is drawn onto the one before it: nothing can stand between them."""
    return char == _JOINER or unicodedata.category(char).startswith("M")


def occurrences(text: str, find: str | None) -> list[tuple[int, int]]:
    """Return (start, end) of what was looked for, wherever it stands in a text."""
    return [match.span() for match in re.finditer(re.escape(find), text)] if find else []


def _glyph(char: str) -> str:
    if char in _PICTURES:
        return _PICTURES[char]
    category = unicodedata.category(char)
    # Cn, unassigned, is shown: an emoji younger than this Python is one.
    hidden = char in _MARKS or (category[0] in "CZ" and category != "Cn" and char not in (" ", _JOINER))
    return f"<U+{ord(char):04X}>" if hidden else char
