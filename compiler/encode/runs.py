"""Runs: what of a conversation is encoded at once.

Neighbouring texts are one run, encoded as inference encodes them; a control token is a run by itself. A run ends at a
control token and where generation begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from compiler.conversation import Segment
from compiler.templates.skeleton import Text
from compiler.tokenizer.tokenizer import Tokenizer

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""What control tokens that swallow white space swallow: Unicode's, which Python's `strip` adds \\x1c to \\x1f to."""


class RunPart(NamedTuple):
    """Neighbouring characters of a run with one origin: a message's own text, or the template's (message -1)."""

    text: Text
    message: int
    generated: bool


@dataclass(slots=True)
class Run:
    """What is encoded at once: a text (control -1), or one control token, `repeat` times."""

    parts: list[RunPart]
    control: int = -1
    fresh: bool = False
    repeat: int = 1
    media: int = -1
    swallowed: str = ""
    """White space of a reply before this run that the control token before it swallows: it is not encoded."""

    @property
    def text(self) -> Text:
        """The text of the run, or the control token's own."""
        return tuple(piece for part in self.parts for piece in part.text)


def runs_of(segments: Iterable[tuple[Segment, Text]], tokenizer: Tokenizer) -> list[Run]:
    """Join segments, given with their texts, to runs."""
    runs: list[Run] = []
    swallowed = ""
    for segment, text in segments:
        is_swallowed = runs and runs[-1].control in tokenizer.swallows and not segment.boundary
        if is_swallowed and segment.control < 0:
            whole = "".join(map(str, text))  # there are no slots where control tokens swallow text
            text = (whole.lstrip(WHITE_SPACE),)
            swallowed += whole[: len(whole) - len(text[0])] if segment.generated else ""
        part = RunPart(text, segment.message, segment.generated)
        if segment.control >= 0:
            runs.append(Run([part], segment.control, False, segment.repeat, segment.media, swallowed))
            swallowed = ""
        elif not any(piece != "" for piece in text):
            continue
        elif runs and runs[-1].control < 0 and not segment.boundary:
            runs[-1].parts.append(part)
        else:
            fresh = not runs or tokenizer.prefix_every_section
            if segment.boundary and runs and runs[-1].control < 0:
                fresh = segment.fresh
            runs.append(Run([part], fresh=fresh, swallowed=swallowed))
            swallowed = ""
    return runs
