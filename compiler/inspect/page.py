"""Rows and rejects as text, on a terminal or in a pipe.

Text outside ⟦ ⟧ is context. A bar in the margin marks lines with trained tokens. Tokens have alternating shades, or ┊
between them where there are no colours.
"""

from __future__ import annotations

import textwrap
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.text import Text

from compiler.inspect.lines import Line, lines
from compiler.inspect.marks import (
    CONTEXT,
    CONTROL,
    EDGE,
    FOUND,
    LOOKALIKE,
    MARK,
    NEWLINE,
    QUIET,
    SPACE,
    TRAINED,
    WEIGHTED,
    glyphs,
    occurrences,
    visible,
)
from compiler.inspect.rows import raw_of
from compiler.inspect.tokens import ShownRow
from schemas.manifest import Manifest

_LABEL = len("assistant ")
_MARGIN = _LABEL + 2
_AROUND = 25
"""Characters shown before and after a match."""


class _PipeConsole(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error for `cli` to handle; rich would end the process with exit code 1."""
        raise


@dataclass
class Page:
    """Prints rows. Without a `width` nothing is wrapped; with `edges` a mark separates tokens instead of a colour."""

    console: Console
    width: int | None
    edges: bool

    @classmethod
    def on(cls, file: IO[str]) -> Page:
        """Make a page that suits the file: a terminal with or without colours, or a pipe."""
        console = _PipeConsole(file=file, highlight=False)
        edges = console.no_color or console.color_system not in ("256", "truecolor")
        return cls(console, console.width if console.is_terminal else None, edges)

    def _print(self, text: Text) -> None:
        text.rstrip()
        self.console.print(text, soft_wrap=True)

    def say(self, note: str) -> None:
        """Print the closing sentence, if there is one."""
        if note:
            self._print(Text())
            self._print(Text(note, QUIET))

    def legend(self) -> None:
        """Print what the marks mean."""
        parts = [("context", CONTEXT[0]), ("⟦trained⟧", TRAINED[0]), ("⟦2.0:weight 2⟧", WEIGHTED[0])]
        parts += [("‹control token›", CONTROL), ("⚠only looks like one", LOOKALIKE)]
        parts += [(f"{EDGE} token edge" if self.edges else "one shade per token", QUIET)]
        parts += [(f"{NEWLINE} newline", QUIET), (f"{SPACE} space", QUIET)]
        self._print(Text("   ").join(Text(text, style) for text, style in parts))

    def row(self, row: ShownRow, manifest: Manifest, find: str | None) -> None:
        """Print a row: where it is from, how much of it is trained, a map of that, and its tokens."""
        self._print(Text())
        title = (f"━━ {visible(row.place)}", MARK)
        self._print(Text.assemble(title, (f" ━━ {row.dataset} ━━ row {row.row} of {row.split}", QUIET)))
        self._print(Text(f"   {' · '.join(facts(row, manifest))}", QUIET))
        self._print(Text.assemble("   ", (trained_map(row), TRAINED[0])))
        for match in _matches(row, find):
            self._print(match)
        self._body(row, find)
        if row.rejected is not None:
            self._print(Text("   ── the same context with the rejected reply:", QUIET))
            self._body(row.rejected, find)

    def _body(self, row: ShownRow, find: str | None) -> None:
        last = ""
        for line in lines(row, find, edges=self.edges):
            last = "" if line.opens else last
            self._line(line, line.role if line.role != last else "")
            last = line.role or last

    def _line(self, line: Line, label: str) -> None:
        text = Text.assemble(*line.parts)
        parts = (
            [text]
            if self.width is None
            else text.wrap(self.console, max(self.width - _MARGIN, _MARGIN), overflow="fold")
        )
        for part in parts:
            trained = any(str(span.style).startswith(TRAINED + WEIGHTED) for span in part.spans)
            margin = Text.assemble((f"{label:<{_LABEL}}", QUIET), ("┃ " if trained else "  ", TRAINED[0]))
            self._print(margin + part)
            label = ""

    def reject(self, entry: dict[str, Any]) -> None:
        """Print a rejected row: where it is, what is wrong, and how it begins."""
        where = visible(entry["place"])
        message = visible(entry["message"])
        self._print(Text.assemble((where, MARK), "  ", (entry["reason"], LOOKALIKE), f": {message}"))
        self._print(Text(f"    {cut(visible(raw_of(entry)), 200)}", QUIET))


def cut(text: str, length: int) -> str:
    """The text, cut to that length, with … where the rest is left out."""
    return text if len(text) <= length else f"{text[:length]}…"


def facts(row: ShownRow, manifest: Manifest) -> list[str]:
    """How long a row is, how much of it is trained and by which rules, and what is special about it."""
    weights = next(entry["weights"] for entry in manifest["datasets"] if entry["name"] == row.dataset)
    template = manifest["template"]
    length = row.length + (len(row.rejected_tokens) if row.rejected_tokens else 0)
    seen = length + _unseen(row)
    tokens = f"{length:,} tokens" + (f" ({seen:,} as the model sees them)" if seen != length else "")
    found = [tokens, f"{row.num_trained:,} trained ({row.num_trained / length:.1%})"]
    provenance = textwrap.shorten(template["provenance"], 60, placeholder=" …")
    found += [f"template {template['name']} ({provenance})", f"weights {weights}"]
    found += [f"repeat {row.repeat}"] if row.repeat else []
    found += [f"example {row.part + 1} of its row"] if row.part else []
    found += [f"repaired: {', '.join(row.repairs)}"] if row.repairs else []
    found += ["desirable" if row.desirable else "not desirable"] if row.desirable is not None else []
    found += [_media(kind, media) for kind, media in (("image", row.images), ("video", row.videos)) if media]
    return found


def _unseen(row: ShownRow) -> int:
    """The tokens of a row's media that the model sees beyond the stored placeholders, on both sides of a pair."""
    sides = 2 if row.rejected_tokens else 1
    extra = 0
    for media in [*row.images, *row.videos]:
        _, run = next(groupby(token.id for token in row.tokens[media["position"] :]))
        extra += media["num_tokens"] - len(list(run))
    return extra * sides


def _media(kind: str, media: list[dict[str, Any]]) -> str:
    shown = (f"{visible(m['uri'])} {m['width']}x{m['height']} = {m['num_tokens']:,} tokens" for m in media)
    return f"{kind}{'s' if len(media) > 1 else ''} {', '.join(shown)}"


def trained_map(row: ShownRow) -> str:
    """A map of the row from start to end: the darker, the more of it is trained."""
    trained = np.array([token.weight > 0 for token in row.tokens])
    parts = np.array_split(trained, min(60, len(trained)))
    return "".join("·░▒▓█"[int(np.ceil(part.mean() * 4))] for part in parts)


def _matches(row: ShownRow, find: str | None) -> Iterator[Text]:
    """Yield the first three places of the searched text in the row."""
    found = occurrences(row.text, find)
    ends = list(accumulate(len(token.text) for token in row.tokens))
    shown = glyphs(row.text) if found else []
    for start, end in found[:3]:
        first, last = max(start - _AROUND, 0), min(end + _AROUND, len(shown))
        before, match, after = ("".join(shown[a:b]) for a, b in ((first, start), (start, end), (end, last)))
        line = Text(f"   found at token {bisect_right(ends, start)}: {'…' * (first > 0)}{before}", QUIET)
        yield line.append(match, FOUND).append(after + "…" * (last < len(shown)), QUIET)
    if len(found) > 3:
        yield Text(f"   and {len(found) - 3:,} more", QUIET)
