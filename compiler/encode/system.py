"""A system text put before the first user message, for templates that take none (`--system merge`, decision 26)."""

from __future__ import annotations

from dataclasses import replace

from compiler.conversation import Conversation, Message, Role


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
    """Put a text before a message's own, with a blank line between; its media move with their text."""
    if not text:
        return message
    text = f"{text}\n\n"
    media = [replace(one, at=one.at + len(text)) for one in message.media]
    return replace(message, content=text + message.content, media=media)
