"""Structured tool calls as ReAct text, for models without tool roles: every user turn becomes one reply.

    Thought: <what the reply says beside its call>
    Action: <name>
    Action Input: <arguments as JSON>
    Observation: <the tool's result>
    Final Answer: <what the reply says after the last result>

The weights policy `react` reads keywords at the start of a line only: a result is context, and everything else is the
model's output, including `Observation:`, which stops it. So the text of a reply after a result needs a keyword too.
Differences from ms-swift's `react_en`, and why:

* Arguments are JSON, as the prompt asks; ms-swift writes Python's notation (decision 6).
* A keyword begins a line: a newline is added before it if there is none, and after each result.
* `Observation: ` ends in a space, as all keywords do in the prompt's format lines. Without it, the colon could share a
  token with a newline at the start of the result, and that token is not trained.
* The text beside a call becomes a `Thought: `, the text that ends a turn with calls a `Final Answer: `, unless it
  begins with a keyword itself. ms-swift writes both bare; they cannot be told from the result then.
* Several calls at once are written one after the other, each with its own result: a harness makes one call at a time.
* The row's own system text comes first, then a blank line and the tools.

A turn without calls stays unchanged. A row whose meaning the text would change is a RowError: for example a result with
a line that begins with a keyword, or replies of one turn with different weights.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from compiler.conversation import Conversation, Message, Role
from compiler.rows.react.prompt import Language, tools_prompt
from compiler.rows.react.turn import Refuse, reply_of
from schemas.errors import Reason, RowError


def to_text(
    conversation: Conversation, language: Language, *, turns: str | None = None, tools: str = ""
) -> Conversation:
    """The conversation without tools, calls and tool messages; the same object if it has none.

    `turns` points to the row's list of messages (None = it has none), `tools` to its tools.
    """
    sides = conversation.said
    if conversation.tools is None and not any(m.calls or m.role is Role.TOOL for m in sides):
        return conversation
    refuse = _refusal(conversation, turns)
    messages: list[Message] = []
    places: list[int] = []
    rejected, context = conversation.rejected, 0
    for begin, end in _runs(conversation.messages):
        run = conversation.messages[begin:end]
        if begin < conversation.context:
            if conversation.context < end and any(
                m.role is Role.ASSISTANT for m in run[conversation.context - begin :]
            ):
                raise refuse(begin, "a part of the turn is history, which is not trained")
            context = len(messages) + 1
        if rejected is not None and end == len(conversation.messages):
            rejected = reply_of([*run[:-1], rejected], begin, refuse)
        messages.append(reply_of(run, begin, refuse))
        places.append(_places(conversation)[begin])
    if conversation.tools:
        prompt = tools_prompt(conversation.tools, language, tools)
        added = _add_tools(messages, prompt, refuse)
        places[:0] = [-1] * added
        context += added if context else 0
    return replace(conversation, messages=messages, tools=None, places=places, rejected=rejected, context=context)


def _runs(messages: list[Message]) -> list[tuple[int, int]]:
    """(begin, end) of the messages that become one: replies and results together, any other role alone."""
    ours = [message.role in (Role.ASSISTANT, Role.TOOL) for message in messages]
    begins = [i for i, mine in enumerate(ours) if not (mine and i and ours[i - 1])]
    return list(pairwise([*begins, len(ours)]))


def _places(conversation: Conversation) -> list[int]:
    return conversation.places if conversation.places is not None else list(range(len(conversation.messages)))


def _refusal(conversation: Conversation, turns: str | None) -> Refuse:
    """A function that makes the error for a message, with its place in the row."""
    places = _places(conversation)

    def refuse(i: int, what: str) -> RowError:
        where = "" if turns is None else f"{turns}/{places[i]}" if places[i] >= 0 else turns
        return RowError(Reason.TEMPLATE_REFUSED, f"ReAct text cannot express this: {what}", where)

    return refuse


def _add_tools(messages: list[Message], prompt: str, refuse: Refuse) -> int:
    """Put the tools into the first message, after its own text, and return how many messages that made new."""
    if not messages or messages[0].role is not Role.SYSTEM:
        messages.insert(0, Message(Role.SYSTEM, prompt))
        return 1
    system = messages[0]
    if system.weight:
        raise refuse(0, "the system message is trained, and the tools in it would be too")
    messages[0] = replace(system, content=f"{system.content}\n\n{prompt}" if system.content else prompt)
    return 0
