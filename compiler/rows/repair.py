"""Repairs of rows, each by name and only when asked for: nothing is mended silently.

A repair says in one sentence what it changes; the row it changed is counted under its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compiler.conversation import Conversation, Message, Role

Repair = Callable[[Conversation], bool]
"""Changes a conversation in place; returns whether it did."""


def dangling(conversation: Conversation) -> bool:
    """Remove trailing turns that have no reply; not of a pair, whose other reply is to the last of them."""
    messages = conversation.messages
    if conversation.rejected is not None:
        return False
    keep = max((i + 1 for i, message in enumerate(messages) if message.role is Role.ASSISTANT), default=None)
    if keep is None or keep == len(messages):
        return False
    del messages[keep:]
    return True


def media_first(conversation: Conversation) -> bool:
    """Put images and videos that no text places before the first user text."""
    user = next((message for message in conversation.messages if message.role is Role.USER), None)
    if user is None or not conversation.loose:
        return False
    for media in conversation.loose:
        media.at = 0
    user.media = [*conversation.loose, *user.media]
    conversation.loose = []
    return True


REPAIRS: dict[str, Repair] = {"dangling": dangling, "media-first": media_first}


def merge_system(conversation: Conversation) -> bool:
    """Put a leading system text before the first user message, a blank line between (decision 26)."""
    messages = conversation.messages
    if not messages or messages[0].role is not Role.SYSTEM:
        return False
    user = next((message for message in messages if message.role is Role.USER), None)
    if user is None:
        return False
    conversation.merged = messages[0].content
    messages[messages.index(user)] = put_before(user, conversation.merged)
    del messages[0]
    return True


def put_before(message: Message, text: str) -> Message:
    """Return the message with a text before its own, a blank line between; its media move with what they stand in."""
    if not text:
        return message
    text = f"{text}\n\n"
    media = [replace(one, at=one.at + len(text)) for one in message.media]
    return replace(message, content=text + message.content, media=media)
