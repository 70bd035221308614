"""One conversation for each reply, for templates that render a reply differently once others follow it."""

from __future__ import annotations

from dataclasses import replace

from compiler.conversation import Conversation, Role


def by_reply(conversation: Conversation) -> list[Conversation]:
    """One conversation for each trained reply, with all that comes before it as history.

    For templates that render a reply differently once others follow (Qwen3 leaves earlier thinking out).
    """
    last, whole = len(conversation.messages) - 1, conversation.group or conversation.fingerprint()
    if conversation.rejected is not None or conversation.desirable is not None:
        return [replace(conversation, context=last)]
    examples, seen = [], 0
    for i, message in enumerate(conversation.messages):
        asked = any(m.weight for m in conversation.messages[seen:i])
        if message.role is Role.ASSISTANT and (message.weight != 0 or asked):
            # A user's text that is to be trained is trained once, with the next example.
            history = [replace(m, weight=None) for m in conversation.messages[:seen]]
            messages = [*history, *conversation.messages[seen : i + 1]]
            examples.append(replace(conversation, messages=messages, context=i, group=whole))
            seen = i + 1
    return examples
