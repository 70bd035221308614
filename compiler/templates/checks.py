"""What must hold of a rendering before it is used: nothing the row says is left out, moved or taken for a command."""

from __future__ import annotations

import re
from typing import Any

from compiler.conversation import Conversation, Role
from compiler.templates.guard import CUT, Guard, map_strings
from compiler.templates.markup import Markup
from compiler.templates.messages import as_dict
from schemas.errors import Reason, RowError


def must_not_be_looked_for(markup: Markup, hidden: list[str], text: str, conversation: Conversation) -> None:
    """Raise where the template treats what was hidden from it in its own way: it would have found it.

    Known by rendering the row with its control tokens as they are: the template may look for such texts in replies
    alone, say. Characters that slots use stay hidden: `repr` writes them in another way.
    """
    spelled = [token for token in hidden if token in markup.controls]
    if not spelled:
        return
    guard = Guard(re.compile("(?!)"), [text, markup.template.source, markup.tool_template.source])
    messages = [as_dict(message, guard.hide) for message in conversation.messages]
    written = markup.render(messages, map_strings(conversation.tools, guard.hide), generation_prompt=False)
    if guard.restore(written.replace(CUT, "")) != text:
        found = [token for token in spelled if token in markup.looked_for] or spelled
        raise RowError(
            Reason.TEMPLATE_REFUSED,
            f"the chat template treats texts with {' and '.join(map(repr, found[:3]))} in its own way, and here "
            "that is a control token; --special-text allow takes it as one",
        )


def must_differ_without(
    markup: Markup, plain: list[dict[str, Any]], tools: Any, text: str, conversation: Conversation
) -> None:
    """Raise if the template leaves out tools, calls or reasoning: the rest would be another row."""
    if tools and markup.rendered_or_none(plain, None) == text:
        raise RowError(Reason.TEMPLATE_REFUSED, "the chat template leaves out the tools")

    def is_same_without(i: int, key: str) -> bool:
        without = {name: value for name, value in plain[i].items() if name != key}
        return markup.rendered_or_none([*plain[:i], without, *plain[i + 1 :]], tools) == text

    for i, message in enumerate(plain):
        if "tool_calls" in message and is_same_without(i, "tool_calls"):
            raise RowError(Reason.TEMPLATE_REFUSED, f"the chat template leaves out the calls of message {i + 1}")
        reasoning = "" if conversation.is_history(i) else message.get("reasoning_content", "").strip()
        if reasoning and (reasoning not in text or is_same_without(i, "reasoning_content")):
            what = f"the chat template leaves out the reasoning of message {i + 1}"
            raise RowError(Reason.TEMPLATE_REFUSED, what)


def must_be_rendered(
    plain: list[dict[str, Any]], text: str, conversation: Conversation, known: set[int], gone: set[int]
) -> None:
    """Raise if a content is missing from the rendering, or must be trained and has no known place."""
    for i, (hidden, message) in enumerate(zip(plain, conversation.messages, strict=True)):
        if i in known or conversation.is_history(i) or not message.content:
            continue
        where = f"message {i + 1} ({message.role})"
        if message.content.strip() and (i in gone or hidden["content"].strip() not in text):
            raise RowError(Reason.TEMPLATE_REFUSED, f"the chat template leaves out the content of {where}")
        if message.role is not Role.ASSISTANT and message.weight:
            raise RowError(
                Reason.TEMPLATE_UNSTABLE, f"the chat template changes the text of {where}, which is to be trained"
            )
