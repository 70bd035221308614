"""Private-use characters as marks in rendered text, so that a row's words are never taken for the template's.

Two Unicode planes are borrowed while a conversation is rendered, and given back after:

- plane 15: *hidden* strings. Whatever in a value spells a control token (or is itself a private-use character)
  is replaced by one mark, so that the control tokens left in the rendered text are the template's own;
- plane 16: *slots*, which say where a value went.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_HIDDEN = 0xF0000
_SLOTS = 0x100000
_PRIVATE = "\U000f0000-\U0010ffff"
SLOT_PATTERN = re.compile("([\U00100000-\U0010ffff])")
_MARK_PATTERN = re.compile("[\U000f0000-\U000fffff]")


CUT = "\U0010fffd"
"""What a card's template writes (as `cut`) where the family encodes two texts apart."""


def slot(number: int) -> str:
    """Return the mark of slot `number`."""
    return chr(_SLOTS + number)


def slot_number(mark: str) -> int:
    """Return the number of the slot whose mark this is."""
    return ord(mark) - _SLOTS


class Guard:
    """Hides strings of one row and gives them back."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = re.compile(f"{pattern.pattern}|[{_PRIVATE}]")
        self._hidden: list[str] = []
        self._marks: dict[str, str] = {}

    def hide(self, text: str) -> str:
        """Return `text` with every control token's text and private-use character replaced by a mark."""
        return self._pattern.sub(self._mark, text)

    def _mark(self, match: re.Match[str]) -> str:
        found = match[0]
        if found not in self._marks:
            self._marks[found] = chr(_HIDDEN + len(self._hidden))
            self._hidden.append(found)
        return self._marks[found]

    def restore(self, text: str) -> str:
        """Return `text` with the hidden strings back in place."""
        if not self._hidden:
            return text
        return _MARK_PATTERN.sub(lambda match: self._hidden[ord(match[0]) - _HIDDEN], text)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with `change` applied to every string in it, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): map_strings(item, change) for key, item in value.items()}
    return value
