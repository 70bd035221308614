"""Rows that are not compiled: how their format was recognised, what becomes of each key, the first conversations.

Everything is found as a compile finds it: datasets, formats and columns by `datasets`, conversations by `rows`. Nothing
is measured or rendered, so images are references and no template is asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from rich.text import Text

from compiler import formats
from compiler.conversation import Conversation, Message
from compiler.datasets.catalogue import Catalogue
from compiler.datasets.dataset import Dataset
from compiler.inspect.marks import LOOKALIKE, MARK, QUIET, visible
from compiler.inspect.page import Page
from compiler.options import CompileOptions
from compiler.read import as_session, numbered, open_source
from compiler.rows.lift import Preparer
from compiler.rows.media import MediaOfRows
from schemas.errors import Reject
from schemas.places import spell

ROWS_LOOKED_AT = 100
"""Rows whose keys are counted."""
_EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclass
class RawRow:
    """A row, and what it becomes."""

    place: str
    made: list[Conversation | Reject]


@dataclass
class RawRows:
    """The first rows of a dataset, and what becomes of their keys."""

    dataset: Dataset
    looked_at: int = 0
    keys: Counter[str] = field(default_factory=Counter)
    """Top-level keys with a value, by rows."""
    becomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    below: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Keys within rows that are not read: "not read" or "ignored", and the number of rows."""
    rows: list[RawRow] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The keys of `--json`."""
        options = self.dataset.options
        return {
            "name": self.dataset.name,
            "files": [file.label for file in self.dataset.files],
            "format": options.format,
            "kind": str(options.kind),
            "notes": self.dataset.notes,
            "rows_looked_at": self.looked_at,
            "keys": [
                {"key": key, "rows": n, "becomes": self.becomes[key][0], "as": self.becomes[key][1]}
                for key, n in self.keys.items()
            ],
            "below": [{"path": path, "becomes": what, "rows": n} for path, (what, n) in self.below.items()],
            "rows": [{"place": row.place, "made": [_json_of(one) for one in row.made]} for row in self.rows],
        }


class _Unmeasured(MediaOfRows):
    """Leaves images and videos as they are named."""

    def look(self, conversation: Conversation, notes: Counter[str]) -> None:
        """Raise only for media that no text places."""
        if conversation.loose:
            super().look(conversation, notes)


def raw_rows(options: CompileOptions, limit: int) -> Iterator[RawRows]:
    """Yield the datasets that the options name, each with its first rows."""
    catalogue = Catalogue(options)
    for request in catalogue.requests():
        found = RawRows(catalogue.resolve(request.name))
        preparer = Preparer(found.dataset.options, options.units, None)
        preparer.media = _Unmeasured(found.dataset.options.media, None, "", preparer.media._keep)
        for place, value, reject in islice(_rows(found.dataset), max(limit, ROWS_LOOKED_AT)):
            found.looked_at += 1
            if isinstance(value, dict):
                found.keys.update(key for key, held in value.items() if held not in _EMPTY)
            made: list[Conversation | Reject] = [reject] if reject is not None else preparer.conversations(value)
            if len(found.rows) < limit:
                found.rows.append(RawRow(place, made))
        found.becomes = {key: preparer.becomes(key) for key in found.keys}
        for what, counts in (("not read", preparer.unread), ("ignored", preparer.ignored)):
            found.below |= {path: (what, n) for path, n in counts.items() if path not in found.keys}
        yield found


def _rows(dataset: Dataset) -> Iterator[tuple[str, Any, Reject | None]]:
    """Yield (place, value, why there is none) of the rows of all files."""
    for file in dataset.files:
        source = open_source(file.path)
        if formats.get(dataset.options.format, file.label).session:
            source = as_session(source)
        for number, line, row in numbered(source):
            yield spell(file.label, number, line, ""), row.value, row.reject


def _json_of(one: Conversation | Reject) -> dict[str, Any]:
    if isinstance(one, Reject):
        return {"reject": {"reason": str(one.reason), "message": one.message, "pointer": one.pointer}}
    found: dict[str, Any] = {"messages": [_message(message) for message in one.messages]}
    found |= {"tools": one.tools} if one.tools is not None else {}
    found |= {"rejected": _message(one.rejected)} if one.rejected is not None else {}
    found |= {"desirable": one.desirable} if one.desirable is not None else {}
    found |= {"repairs": one.repairs} if one.repairs else {}
    return found


def _message(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": str(message.role), "content": message.content}
    found |= {"thinking": message.reasoning} if message.reasoning else {}
    found |= {"name": message.name} if message.name else {}
    found |= {"weight": message.weight} if message.weight is not None else {}
    if message.calls:
        found["calls"] = [{key: value for key, value in asdict(call).items() if value} for call in message.calls]
    if message.media:
        found["media"] = [{"kind": media.kind, "uri": media.uri, "at": media.at} for media in message.media]
    return found


# -- text --


def show_raw(found: RawRows, page: Page, *, conversations: bool) -> None:
    """Print a dataset: its format and why, its keys, and its first rows if `conversations`."""
    options, say = found.dataset.options, page.console.print
    say(Text.assemble((f"━━ {visible(found.dataset.name)}", MARK), f" ━━ format {options.format}, {options.kind} rows"))
    for note in found.dataset.notes:
        say(Text(f"   {visible(note)}", QUIET), soft_wrap=True)
    say(Text(f"   keys of the first {found.looked_at:,} rows:", QUIET))
    width = max((len(visible(key)) for key in found.keys), default=0)
    for key, count in found.keys.items():
        what, why = found.becomes[key]
        style = LOOKALIKE if what in ("not read", "refused") else ""
        tail = f" {count:,}  {what}" + (f" {'as' if what == 'read' else '-'} {visible(why)}" if why else "")
        say(Text.assemble(f"   {visible(key):<{width}}", (tail, style)), soft_wrap=True)
    for path, (what, count) in found.below.items():
        say(Text.assemble(f"   {visible(path)}", (f" {count:,}  {what}", LOOKALIKE)), soft_wrap=True)
    for row in found.rows:
        for one in row.made:
            if isinstance(one, Reject):
                where = visible(
                    row.place + (one.pointer if "#" in row.place else f"#{one.pointer}" * bool(one.pointer))
                )
                say()
                say(Text.assemble((where, MARK), "  ", (str(one.reason), LOOKALIKE), f": {visible(one.message)}"),
                    soft_wrap=True)  # fmt: skip
            elif conversations:
                say()
                say(Text(f"━━ {visible(row.place)}", MARK))
                for label, text in _lines(one):
                    say(Text.assemble((f"{label:<10}", QUIET), visible(text)), soft_wrap=True)


def _lines(one: Conversation) -> Iterator[tuple[str, str]]:
    """Yield a conversation as (label, text): tools, messages with thinking, calls and media."""
    if one.tools is not None:
        yield "tools", json.dumps(one.tools, ensure_ascii=False)
    for message in one.said:
        label = "rejected" if message is one.rejected else str(message.role)
        if message.reasoning:
            yield "thinking", message.reasoning
        for media in message.media:
            yield media.kind, f"{media.uri} at character {media.at:,}"
        if message.content or not message.calls:
            note = "" if message.weight is None else f"  (weight {message.weight:g})"
            yield label, message.content + note
        for call in message.calls:
            yield "call", f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}"
    if one.desirable is not None:
        yield "kto", "desirable" if one.desirable else "not desirable"
    if one.repairs:
        yield "repaired", ", ".join(one.repairs)
