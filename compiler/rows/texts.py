"""What the texts of a row say that somebody forgot: placeholders, another template's markers, replies with nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compiler.conversation import Message, Role

PLACEHOLDER, MARKER = "placeholder: ", "marker: "
"""What the notes begin with; the text that was found follows."""

EMPTY_PROMPT, EMPTY_THOUGHT, REACT_TEXT = "empty_prompt", "empty_thought", "react_text"
"""The notes on a user's message that is empty, on a reply that is nothing but an empty thought, and on ReAct text under
weights that are not for it."""

_NAMED = re.compile(r"\{\{\s*[\w.]{1,40}\s*\}\}")
_PLACEHOLDERS = ("<IMG_CONTEXT>", "<bbox>", "<ref-object>", "<ImageHere>", "<img>", "<|image|>")
_IMAGE = "<image>"
"""The mark of an image: in a text for a model that takes none, a placeholder that nobody filled."""
_MARKERS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|user|>", "<|User|>", "<｜User｜>")
_HEADINGS = ("### Response:", "### Assistant:")
_INSTRUCTION = "[INST]"
_SPEAKERS = re.compile("^Human:", re.MULTILINE), re.compile(r"^[ \t]*Assistant:", re.MULTILINE)
_OBSERVED = re.compile("^Action:", re.MULTILINE), re.compile("^Observation:", re.MULTILINE)
_NO_THOUGHT = re.compile(r"<think>\s*</think>")
_MOST = 4
"""The most placeholders that one row is counted under."""


def is_empty(message: Message) -> bool:
    """Whether a reply has nothing but its stop."""
    return not (message.content.strip() or message.calls or message.media or (message.reasoning or "").strip())


def remarks_on(said: Sequence[Message], text: str, *, empty: bool, vision: bool, react: bool) -> list[str]:
    """The notes on a row's texts: placeholders that nobody filled, and texts that carry another template's markers.

    `text` is all that is said, `empty` is whether a message has no text, `vision` whether the model takes media, and
    `react` whether the weights know ReAct text.
    """
    found: list[str] = []
    if empty and any(message.role is Role.USER and not (message.content or message.media) for message in said):
        found.append(EMPTY_PROMPT)
    if "{" in text and text.rfind("{{") >= 0:
        found += [PLACEHOLDER + name for name in sorted(set(_NAMED.findall(text)))[:_MOST]]
    if "<" in text:
        found += [
            PLACEHOLDER + name for name in (_PLACEHOLDERS if vision else (*_PLACEHOLDERS, _IMAGE)) if name in text
        ]
        if "</think>" in text and any(_NO_THOUGHT.fullmatch(message.content.strip()) for message in said):
            found.append(EMPTY_THOUGHT)
    if not react and "Observation:" in said[-1].content and _in_order(said[-1].content, *_OBSERVED):
        found.append(REACT_TEXT)
    return found + markers_in(text)


def markers_in(text: str) -> list[str]:
    """The notes on markers of chat templates that a text carries."""
    # A character is found many times as fast as a word, a long word faster than a short one, and a short one, or one of
    # rare characters, twice as fast from the end.
    found = [MARKER + marker for marker in _MARKERS if marker in text] if "<" in text else []
    if "#" in text:
        found += [MARKER + marker for marker in _HEADINGS if marker in text]
    if "[" in text and text.rfind(_INSTRUCTION) >= 0:
        found.append(MARKER + _INSTRUCTION)
    if "Assistant:" in text and "Human:" in text and _in_order(text, *_SPEAKERS):
        found.append(f"{MARKER}Human: / Assistant:")
    return found


def _in_order(text: str, first: re.Pattern[str], second: re.Pattern[str]) -> bool:
    """Whether one stands somewhere after the other. Two searches take time in proportion to the text; one may not."""
    found = first.search(text)
    return found is not None and second.search(text, found.end()) is not None
