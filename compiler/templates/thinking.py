"""Thinking that a row writes into its reply as `<think>...</think>`, given to templates that take it apart.

Such templates (Qwen3 and its like) look for the tags in the text themselves. They are control tokens of these models:
a row's text must not become one, so the reasoning is handed over by itself and the template writes the tags.
"""

from __future__ import annotations

from dataclasses import replace

from compiler.conversation import Conversation, Message, Role

OPEN, CLOSE = "<think>", "</think>"


def with_reasoning(conversation: Conversation) -> Conversation:
    """Take the thinking of replies apart from their text; the same conversation where no reply has any."""
    messages = [_split(message) for message in conversation.messages]
    if all(new is old for new, old in zip(messages, conversation.messages, strict=True)):
        return conversation
    return replace(conversation, messages=messages)


def _split(message: Message) -> Message:
    """Take the thinking block that begins a reply apart; any other message stays as it is."""
    text = message.content
    if message.role is not Role.ASSISTANT or message.reasoning is not None or not text.startswith(OPEN):
        return message
    thought, closed, rest = text.removeprefix(OPEN).partition(CLOSE)
    if not closed or OPEN in thought or CLOSE in rest:
        return message
    return replace(message, reasoning=thought.strip("\n"), content=rest.lstrip("\n"))
