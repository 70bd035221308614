"""Messages as chat templates are given them: dictionaries, with marks where images and videos stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compiler.conversation import Conversation, Message
from compiler.templates.guard import MEDIA_MARKS, map_strings


def as_dict(message: Message, change: Callable[[str], str]) -> dict[str, Any]:
    """A message as chat templates expect it, with `change` applied to the row's own strings."""
    entry: dict[str, Any] = {"role": str(message.role), "content": _content(message, change)}
    if message.reasoning is not None:
        entry["reasoning_content"] = change(message.reasoning)
    if message.name is not None:
        entry["name"] = change(message.name)
    if message.call_id is not None:
        entry["tool_call_id"] = change(message.call_id)
    if message.calls:
        entry["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": change(call.name), "arguments": map_strings(call.arguments, change)},
                **({"id": change(call.id)} if call.id is not None else {}),
            }
            for call in message.calls
        ]
    return entry


def content_parts(message: Message) -> list[dict[str, str]]:
    """A message's content as parts, as `transformers` is given it."""
    parts, at = [], 0
    for media in message.media:
        text = message.content[at : media.at]
        parts += [*([{"type": "text", "text": text}] if text else []), {"type": media.kind}]
        at = media.at
    rest = message.content[at:]
    return [*parts, {"type": "text", "text": rest}] if rest else parts


def _content(message: Message, change: Callable[[str], str]) -> str:
    """A message's text with the marks of its media in it."""
    if not message.media:
        return change(message.content)
    pieces, at = [], 0
    for media in message.media:
        pieces += [change(message.content[at : media.at]), MEDIA_MARKS[media.kind]]
        at = media.at
    return "".join([*pieces, change(message.content[at:])])


def texts_of(conversation: Conversation) -> list[str]:
    """Every string of the row that a template may write."""
    texts: list[str] = []

    def collect(text: str) -> str:
        texts.append(text)
        return text

    for message in conversation.messages:
        as_dict(message, collect)
    map_strings(conversation.tools, collect)
    return texts
