"""Structured tool calls as ReAct text, for models without tool roles: every user turn becomes one reply.

    Thought: <what the reply says beside its call>
    Action: <name>
    Action Input: <arguments as JSON>
    Observation: <the tool's result>
    Final Answer: <what the reply says after the last result>

The weights policy `react` is line-anchored, and reads it as it must: a result is context, all else is what the model
says, `Observation:` included, which stops it. So what a reply says after a result needs a keyword of its own. Where
this differs from ms-swift's `react_en`, and why:

* Arguments are JSON, as the prompt asks; ms-swift writes Python's notation (decision 6).
* A keyword begins a line: there is a newline before it where what precedes has none, and one after each result.
* `Observation: ` has a space after it, as all keywords have in the prompt's format lines. A colon directly before a
  result would share a token with a newline that the result begins with, and go untrained with it.
* A text beside a call is its `Thought: `, the text that ends a turn with calls its `Final Answer: `, unless it begins
  with a keyword itself. ms-swift writes both bare, which no line-anchored reading can tell from the result.
* Several calls at once become one after the other, each with its own result: a harness makes one call at a time.
* The row's own system text stays, before the tools and a blank line.

A turn without calls stays as it is. What the text cannot say without changing what the row means is a RowError: a
line of a result that begins with a keyword, weights that differ within one turn, ...
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
    """Return the conversation without tools, calls and tool messages; itself where it has none.

    `turns` is the pointer of the row's list of messages (None = it has none), `tools` the one of its tools.
    """
    sides = [*conversation.messages, *([conversation.rejected] if conversation.rejected else [])]
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
    """Return (begin, end) of what becomes one message each: other roles alone, replies and results together."""
    ours = [message.role in (Role.ASSISTANT, Role.TOOL) for message in messages]
    begins = [i for i, mine in enumerate(ours) if not (mine and i and ours[i - 1])]
    return list(pairwise([*begins, len(ours)]))


def _places(conversation: Conversation) -> list[int]:
    return conversation.places if conversation.places is not None else list(range(len(conversation.messages)))


def _refusal(conversation: Conversation, turns: str | None) -> Refuse:
    """Return what makes the error for a message: its place in the row, and what cannot be said."""
    places = _places(conversation)

    def refuse(i: int, what: str) -> RowError:
        where = "" if turns is None else f"{turns}/{places[i]}" if places[i] >= 0 else turns
        return RowError(Reason.TEMPLATE_REFUSED, f"ReAct text cannot say it: {what}", where)

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
