"""CogAgent: messages of {role, content}; a user message may have a screenshot in the key `image`.

The image stands before the text of its message (decision 16). A user message with an image whose content begins with
`Task:` is an agent's prompt: it and its reply must match CogAgent's grammar. Any other content is plain dialogue and
stays unchanged. A prompt without a screenshot is rejected, because it cannot be answered.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import asked_weight, read_columns
from compiler.formats.format import Format
from compiler.formats.marks import image
from compiler.formats.screens.located import GrammarError
from compiler.formats.screens.prompt import ScreenPrompt, group_of, looks_like_prompt, parse_prompt, structure
from compiler.formats.screens.reply import parse_reply
from compiler.options import Names
from schemas.errors import Reason, RowError


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation; its group is the task and platform of its first prompt, None where it has no prompt."""
    column = columns["messages"]
    messages = [_message(source, f"/{column}/{i}") for i, source in enumerate(read_columns(row, columns)["messages"])]
    prompts = [_prompt(message, f"/{column}/{i}") for i, message in enumerate(messages)]
    for i, (prompt, reply) in enumerate(pairwise(zip(prompts, messages, strict=True)), start=1):
        if prompt[0] is not None and reply[1].role is Role.ASSISTANT:
            _check_reply(reply[1].content, prompt[0], f"/{column}/{i}/content")
    first = next((prompt for prompt in prompts if prompt is not None), None)
    return Conversation(messages, group=group_of(first.task, first.platform) if first else None)


def _message(source: dict[str, Any], pointer: str) -> Message:
    role = Role(source["role"])
    message = Message(role, source["content"], weight=asked_weight(source, role, pointer))
    if (found := source.get("image")) is not None:
        if role is not Role.USER:
            raise RowError(
                Reason.SCREEN,
                f"expected an image in a user message, found one in a message of {role}",
                f"{pointer}/image",
            )
        message.media.append(image(found, f"{pointer}/image"))
    return message


def _prompt(message: Message, pointer: str) -> ScreenPrompt | None:
    """The prompt that a message is; None for anything else."""
    if message.role is not Role.USER or not looks_like_prompt(message.content):
        return None
    if not message.media:
        if structure(message.content) is None:
            return None  # a task for a chat model
        raise RowError(Reason.SCREEN, "expected the prompt's screenshot in the key 'image', found none", pointer)
    try:
        return parse_prompt(message.content)
    except GrammarError as error:
        raise error.in_row(message.content, f"{pointer}/content") from error


def _check_reply(content: str, prompt: ScreenPrompt, pointer: str) -> None:
    try:
        parse_reply(content, prompt.answer_format, prompt.variables)
    except GrammarError as error:
        raise error.in_row(content, pointer) from error


FORMAT = Format(
    name="cogagent",
    lift=lift,
    columns={"messages": "messages"},
    turns="messages",
)
