"""Secrets in the texts of a row: counted by kind (--scan-secrets), replaced by marked placeholders (--redact)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

from compiler.conversation import Call, Conversation, Message
from compiler.rows.secret_rules import KeyedText, Span, find, is_own, joined

NOTE = "secrets:"
"""What the notes begin with; the kind follows."""
REPAIR = "redact"
FIRST = 3
"""The number of rows with each kind whose places are kept."""

_LEAST = 8
"""The shortest secret that is also replaced where nothing around it says what it is, in characters."""


def look(conversation: Conversation, *, redact: bool) -> Conversation:
    """The conversation with a note for each kind of secret in it; with `redact`, without the secrets."""
    places: dict[KeyedText, None] = {}

    def listed(text: str, key: str) -> str:
        places[KeyedText(text, key)] = None
        return text

    _changed(conversation, listed)
    found = find(list(places))
    if not found:
        return conversation
    kinds = {span.kind for spans in found.values() for span in spans}
    conversation.notes = [*conversation.notes, *(NOTE + kind for kind in sorted(kinds))]
    if not redact:
        return conversation
    made = _redacted(list(places), found)
    clean = _changed(conversation, lambda text, key: made.get(KeyedText(text, key), text))
    clean.repairs = [*conversation.repairs, REPAIR]
    return clean


def kinds_in(conversation: Conversation) -> list[str]:
    """The kinds of secrets that were found in a conversation."""
    return [note.removeprefix(NOTE) for note in conversation.notes if note.startswith(NOTE)]


def quotes(message: str, value: Any) -> bool:
    """Whether a message quotes a secret of a row's value, or a part of one that is long enough to tell."""
    places: list[KeyedText] = []

    def listed(text: str, key: str) -> str:
        places.append(KeyedText(text, key))
        return text

    _json(value, listed)
    for (text, _), spans in find(places).items():
        for start, end, _ in spans:
            for at in range(start, max(end - _LEAST, start) + 1):
                if text[at : min(at + _LEAST, end)] in message:
                    return True
    return False


def _redacted(places: list[KeyedText], found: dict[KeyedText, list[Span]]) -> dict[KeyedText, str]:
    """The texts that have secrets, with placeholders. A secret that was found once is replaced wherever it stands."""
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for place, spans in found.items():
        for start, end, kind in spans:
            secret = place.text[start:end]
            if secret not in names:
                counts[kind] += 1
                names[secret] = f"[REDACTED:{kind}]" if counts[kind] == 1 else f"[REDACTED:{kind}-{counts[kind]}]"
    known = {
        place.text[start:end]: kind
        for place, spans in found.items()
        for start, end, kind in spans
        if end - start >= _LEAST and not is_own(kind)
    }
    anywhere = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True)))) if known else None
    made: dict[KeyedText, str] = {}
    for place in places:
        spans = found.get(place, [])
        if anywhere is not None:
            again = [Span(*match.span(), known[match[0]]) for match in anywhere.finditer(place.text)]
            spans = joined([*spans, *again])
        if spans:
            made[place] = _with(place.text, spans, names)
    return made


def _with(text: str, spans: list[Span], names: dict[str, str]) -> str:
    """The text with a placeholder for each span."""
    pieces, at = [], 0
    for start, end, kind in spans:
        pieces += [text[at:start], names.get(text[start:end], f"[REDACTED:{kind}]")]
        at = end
    return "".join([*pieces, text[at:]])


Change = Callable[[str, str], str]
"""(text, key) -> the text in its place."""


def _changed(conversation: Conversation, change: Change) -> Conversation:
    """A copy of the conversation with another text for each: contents, reasoning, arguments of calls, tools."""
    made = copy(conversation)
    made.messages = [_message(message, change) for message in conversation.messages]
    made.rejected = None if conversation.rejected is None else _message(conversation.rejected, change)
    made.tools = _json(conversation.tools, change)
    return made


def _message(message: Message, change: Change) -> Message:
    made = replace(
        message,
        calls=[Call(call.name, _json(call.arguments, change), call.id) for call in message.calls],
        reasoning=message.reasoning and change(message.reasoning, ""),
    )
    made.content, places = message.changed(lambda text: change(text, ""))
    made.media = [replace(media, at=at) for media, at in zip(message.media, places, strict=True)]
    return made


def _json(value: Any, change: Change, key: str = "") -> Any:
    """The JSON value with another text for each of its texts; keys stay."""
    if isinstance(value, str):
        return change(value, key)
    if isinstance(value, dict):
        return {name: _json(one, change, name) for name, one in value.items()}
    return [_json(one, change) for one in value] if isinstance(value, list) else value
