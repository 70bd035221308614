"""Marks in rendered text: they keep a row's words apart from the template's and show where values stand.

- *Hidden* strings: whatever in a value spells a control token (or is a character that slots use) is replaced by a
  word that is neither in the row nor in the template, so that the control tokens left in the rendered text are the
  template's own. The words are plain ASCII: they come through `tojson`, `repr` and the like unchanged.
- *Slots* say where a value went: single characters of the private-use plane 16. So is the mark of an image or video.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

_SLOTS = 0x100000
MAX_SLOTS = 0xFF00
SLOT_PATTERN = re.compile("([\U00100000-\U0010feff])")
CUT = "\U0010fffd"
"""A card's template writes this (as `cut`) where the family encodes two texts separately."""
MEDIA_MARKS = {"image": "\U0010ff00", "video": "\U0010ff01"}
"""Stand in for an image or a video in a content until its tokens are placed."""
_MARKS = "[\U00100000-\U0010ffff]"
_ANY_MARK = re.compile(_MARKS)


def slot(number: int) -> str:
    """The mark of slot `number`, which must be below MAX_SLOTS."""
    return chr(_SLOTS + number)


def slot_number(mark: str) -> int:
    """The number of the slot whose mark this is."""
    return ord(mark) - _SLOTS


class Guard:
    """Hides strings of one row and puts them back."""

    def __init__(self, pattern: re.Pattern[str], taken: Sequence[str]) -> None:
        """`taken` is every text that will be rendered, the template's source included; marks differ from all of it."""
        self._controls = pattern
        self._pattern = re.compile(f"{pattern.pattern}|{_MARKS}")
        self._hidden: list[str] = []
        self._marks: dict[str, str] = {}
        lowered = [text.lower() for text in taken]
        self._word = next(w for w in (f"zq{i}x" for i in count()) if not any(w in text for text in lowered))

    def hide(self, text: str) -> str:
        """Replace every control token's text and every slot character in `text` by a mark."""
        # To search for the two apart takes a tenth of the time of the pattern with both, and most texts have neither.
        if not self._controls.search(text) and (text.isascii() or not _ANY_MARK.search(text)):
            return text
        return self._pattern.sub(self._mark, text)

    def _mark(self, match: re.Match[str]) -> str:
        found = match[0]
        if found not in self._marks:
            self._marks[found] = f"{self._word}{len(self._hidden):x}z"
            self._hidden.append(found)
        return self._marks[found]

    @property
    def hidden(self) -> list[str]:
        """The strings that were hidden, each once, in the order they were found."""
        return list(self._hidden)

    def changed(self, text: str) -> bool:
        """Whether a template changed a mark in the rendered text, by lowering its letters for example."""
        whole = re.findall(f"{self._word}[0-9a-f]+z", text)
        return len(whole) != len(re.findall(self._word, text, re.IGNORECASE))

    def restore(self, text: str) -> str:
        """Put the hidden strings back into `text`."""
        if not self._hidden:
            return text
        return re.sub(f"{self._word}([0-9a-f]+)z", lambda match: self._hidden[int(match[1], 16)], text)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to every string of a JSON value, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): map_strings(item, change) for key, item in value.items()}
    return value
