"""What the texts of a row say that somebody forgot: placeholders, another template's markers, replies with nothing."""

from __future__ import annotations

import re

from compiler.conversation import Message

PLACEHOLDER, MARKER = "placeholder: ", "marker: "
"""What the notes begin with; the text that was found follows."""

_NAMED = re.compile(r"\{\{\s*\w{1,40}\s*\}\}")
_PLACEHOLDERS = ("<IMG_CONTEXT>", "<bbox>")
_MARKERS = ("### Response:", "[INST]", "<|im_start|>")
_SPEAKERS = re.compile(r"^Human:.*^Assistant:", re.MULTILINE | re.DOTALL)
_MOST = 4
"""The most placeholders that one row is counted under."""


def is_empty(message: Message) -> bool:
    """Whether a reply has nothing but its stop."""
    return not (message.content.strip() or message.calls or message.media or (message.reasoning or "").strip())


def remarks_on(text: str) -> list[str]:
    """The notes on a row's texts: placeholders that nobody filled, and texts that carry another template's markers."""
    found: list[str] = []
    if "{{" in text:
        found += [PLACEHOLDER + name for name in sorted(set(_NAMED.findall(text)))[:_MOST]]
    if "<" in text:
        found += [PLACEHOLDER + name for name in _PLACEHOLDERS if name in text]
    found += [MARKER + marker for marker in _MARKERS if marker[0] in text and marker in text]
    if "Human:" in text and _SPEAKERS.search(text):
        found.append(f"{MARKER}Human: / Assistant:")
    return found
