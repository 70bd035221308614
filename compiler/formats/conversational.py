"""conversational: TRL's prompt and completion, or a pair, as lists of messages; UltraFeedback's whole conversations.

A prompt is context, its replies too. Where `chosen` and `rejected` begin with the same messages, those are the prompt.
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Role
from compiler.formats import openai
from compiler.formats.common import read_columns
from compiler.formats.format import CHAT_KINDS, Format
from compiler.formats.joined import Placed, lift_joined, only_reply, place, shared
from compiler.options import Names
from schemas.errors import Reason, RowError


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:
    """The conversation: the prompt, then the completion or the two replies."""
    found = read_columns(row, columns)
    prompt, at = found.get("prompt"), f"/{columns.get('prompt')}"
    user = {str(tags["role_tag"]): tags["user_tag"], str(tags["content_tag"]): prompt}
    context = [(at, user)] if isinstance(prompt, str) else place(prompt or [], columns.get("prompt"))
    beside: dict[str, tuple[str | None, Any]] = {
        name: (f"/{columns[name]}", found.get(name)) for name in ("system", "tools", "kto_tag")
    }
    if found.get("rejected") is None:
        completion = found["completion"]
        said = {str(tags["role_tag"]): tags["assistant_tag"], str(tags["content_tag"]): completion}
        at = f"/{columns['completion']}"
        reply = [(at, said)] if isinstance(completion, str) else place(completion, columns["completion"])
        conversation = lift_joined(context + reply, beside, tags)
        last = len(conversation.messages) - len(reply)
        for message in conversation.messages[:last]:
            if message.role is Role.ASSISTANT and message.weight is None:
                message.weight = 0.0
        return conversation
    chosen, rejected = found["chosen"], found["rejected"]
    same = shared(chosen, rejected)
    common = place(chosen[:same], columns["chosen"])
    beside |= {
        name: only_reply(messages, same, columns[name])
        for name, messages in (("chosen", chosen), ("rejected", rejected))
    }
    return lift_joined(_context(context, common, at, tags), beside, tags)


def _context(prompt: Placed, common: Placed, at: str, tags: Names) -> Placed:
    """What both sides of a pair have in common: the prompt, which the sides may repeat, and their first messages."""
    said, again = ([message for _, message in placed] for placed in (prompt, common))
    role, content = str(tags["role_tag"]), str(tags["content_tag"])
    if not said or again[: len(said)] == said:
        return common
    if len(said) > 1 or not any(message[role] == tags["user_tag"] for message in again):
        return prompt + common
    if any(message.get(content) == said[0].get(content) for message in again):
        return common
    what = "expected the prompt among the first messages of chosen and rejected, found another text there"
    raise RowError(Reason.TURN_ORDER, what, at)


FORMAT = Format(
    name="conversational",
    lift=lift,
    columns={
        "prompt": "prompt",
        "completion": "completion",
        "chosen": "chosen",
        "rejected": "rejected",
        "kto_tag": "label",
        "system": "system",
        "tools": "tools",
    },
    tags=openai.FORMAT.tags,
    kinds=CHAT_KINDS,
)
