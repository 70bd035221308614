"""Repairs of rows, each by name and only when asked for: nothing is mended silently.

A repair says in one sentence what it changes; the row it changed is counted under its name.
"""

from __future__ import annotations

from collections.abc import Callable

from compiler.conversation import Conversation, Role

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
