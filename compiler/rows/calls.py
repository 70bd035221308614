"""Calls as a reply makes them: all of a reply's calls in one message, and <tool_call> blocks in texts as calls.

A model writes its text and its calls in one turn and stops once. So calls in consecutive messages are one reply, and a
text before them is its text. Blocks of text that the chat template writes itself are taken out of the texts: it would
wrap results twice, and calls would not be its own tokens.
"""

from __future__ import annotations

from dataclasses import replace

from compiler.conversation import Conversation, Message, Role
from compiler.formats.hermes import calls_of, lists_tools, results_of
from schemas.errors import RowError

JOINED = "joined_calls"
"""The note on a row in which calls of consecutive messages became one reply."""
BLOCKS = "tool_blocks"
"""The note on a row whose <tool_call> and <tool_response> blocks became calls and results."""
NOT_BLOCKS = "tool_call_text"
"""The note on a row in which a <tool_call> stayed text, because it is no call at the end of its reply."""


def join_calls(conversation: Conversation) -> None:
    """Make one reply of consecutive messages that end in calls, where their weights agree (decision 30).

    The last reply of a pair stays alone: the rejected one takes its place.
    """
    messages = conversation.messages
    calling = [i for i, message in enumerate(messages) if i and message.calls]
    if not any(messages[i - 1].role is Role.ASSISTANT for i in calling):
        return
    last = len(messages) - 1 if conversation.rejected is not None else len(messages)
    places = conversation.places or list(range(len(messages)))
    joined, kept = [messages[0]], [places[0]]
    for i, (message, place) in enumerate(zip(messages[1:], places[1:], strict=True), start=1):
        if i < last and i >= conversation.context and _goes_on(joined[-1], message):
            joined[-1] = _one(joined[-1], message)
        else:
            joined.append(message)
            kept.append(place)
    if len(joined) < len(messages) and not conversation.context:
        conversation.messages, conversation.places = joined, kept
        conversation.notes = [*conversation.notes, JOINED]


def _goes_on(reply: Message, message: Message) -> bool:
    """Whether a message with calls goes on with the reply before it: nothing would change its place in the reply."""
    return (
        reply.role is Role.ASSISTANT
        and message.role is Role.ASSISTANT
        and bool(message.calls)
        and reply.weight == message.weight
        and not (reply.calls and message.content.strip())
        and not (message.reasoning and (reply.content or reply.calls or reply.reasoning))
        and not message.media
    )


def _one(reply: Message, message: Message) -> Message:
    content = "\n".join(text for text in (reply.content, message.content) if text.strip())
    reasoning = reply.reasoning if reply.reasoning is not None else message.reasoning
    return replace(reply, content=content, calls=[*reply.calls, *message.calls], reasoning=reasoning)


def take_out_blocks(conversation: Conversation) -> None:
    """Make calls of <tool_call> blocks in replies and results of <tool_response> blocks (decision 31)."""
    messages: list[Message] = []
    places: list[int] = []
    notes: set[str] = set()
    for place, message in zip(
        conversation.places or range(len(conversation.messages)), conversation.messages, strict=True
    ):
        taken = _without_blocks(message, notes)
        messages += taken
        places += [place] * len(taken)
    if conversation.rejected is not None:
        conversation.rejected = _without_blocks(conversation.rejected, notes)[0]
    if messages[0].role is Role.SYSTEM and "<tools>" in messages[0].content and conversation.tools:
        conversation.tools = None if lists_tools(messages[0].content, conversation.tools) else conversation.tools
    if notes and not conversation.context:
        conversation.messages, conversation.places = messages, places
        conversation.notes = [*conversation.notes, *sorted(notes)]


def has_blocks(messages: list[Message]) -> bool:
    """Whether a reply or a result has the beginning of such a block."""
    for message in messages:
        if message.role is Role.ASSISTANT:
            if "<tool_call>" in message.content:
                return True
        elif message.role is Role.TOOL and "<tool_response>" in message.content:
            return True
    return False


def _without_blocks(message: Message, notes: set[str]) -> list[Message]:
    if message.role is Role.ASSISTANT and "<tool_call>" in message.content:
        try:
            text, calls = calls_of(message.content, "")
        except RowError:
            notes.add(NOT_BLOCKS)
            return [message]
        notes.add(BLOCKS)
        return [replace(message, content=text, calls=[*calls, *message.calls])]
    if message.role is Role.TOOL and "<tool_response>" in message.content and not message.media:
        results = results_of(message.content)
        if results != [message.content]:
            notes.add(BLOCKS)
            return [replace(message, content=text) for text in results]
    return [message]
