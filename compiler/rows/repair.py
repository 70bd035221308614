"""Repairs of conversations; each has a name and is made only on request.

Rows that a repair changed are counted under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compiler.conversation import Conversation, Role

Repair = Callable[[Conversation], bool]
"""Changes a conversation in place; returns whether it changed anything."""


def dangling(conversation: Conversation) -> bool:
    """Remove trailing messages without a reply. A pair keeps them: its rejected reply answers the last one."""
    messages = conversation.messages
    if conversation.rejected is not None:
        return False
    keep = max((i + 1 for i, message in enumerate(messages) if message.role is Role.ASSISTANT), default=None)
    if keep is None or keep == len(messages):
        return False
    del messages[keep:]
    return True


def media_first(conversation: Conversation) -> bool:
    """Put images and videos without a mark in any text before the first user text."""
    user = next((message for message in conversation.messages if message.role is Role.USER), None)
    if user is None or not conversation.loose:
        return False
    for media in conversation.loose:
        media.at = 0
    user.media = [*conversation.loose, *user.media]
    conversation.loose = []
    return True


REPAIRS: dict[str, Repair] = {"dangling": dangling, "media-first": media_first}


def repair(conversation: Conversation, names: Sequence[str]) -> list[str]:
    """Make those of the named repairs that are of conversations, in place; return the names of those that did."""
    return [name for name in names if name in REPAIRS and REPAIRS[name](conversation)]
