"""The replies that a weights policy leaves untrained as a whole: they become context, stop included.

`last`: every reply but the last one of the conversation.
`final`: every reply but the final answer of each exchange.
`errors`: a reply that a result follows which is an error.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from compiler.conversation import Conversation, Message, Role
from compiler.encode.weigh import Policy
from compiler.rows.react.parse import FINAL_ANSWER, parse_reply

NOT_FINAL, FAILED_REPLY = "untrained:not_final", "untrained:failed_reply"
"""Notes that count replies which became context, by the rule."""
BEFORE_FINAL, FAILED_ACTION = "untrained:before_final", "untrained:failed_action"
"""Notes that count replies in ReAct text with a part that is not trained, and such actions."""


def leaves_out(policy: Policy) -> bool:
    """Whether the policy leaves out whole replies, so that each conversation is looked at."""
    return any(part.replies != "all" or part.errors for part in policy.parts)


def choose_replies(policy: Policy, conversation: Conversation, notes: Counter[str]) -> Conversation:
    """Make the replies that the policy leaves out context; what happened is counted.

    A reply that the row itself makes context stays so. The other reply of a pair is treated as the last one is.
    """
    chosen = _chosen(policy, conversation, notes)
    if conversation.rejected is None:
        return chosen
    other = _chosen(policy, replace(conversation, messages=[*conversation.messages[:-1], conversation.rejected]), notes)
    return replace(chosen, rejected=other.messages[-1])


def _chosen(policy: Policy, conversation: Conversation, notes: Counter[str]) -> Conversation:
    messages = conversation.messages
    trained = {
        i for i, message in enumerate(messages)
        if message.role is Role.ASSISTANT and message.weight != 0 and not conversation.is_history(i)
    }  # fmt: skip
    left_out: set[int] = set()
    for part in policy.parts:
        if part.replies == "last":
            left_out |= {i for i, message in enumerate(messages) if message.role is Role.ASSISTANT} - {_last(messages)}
        elif part.replies == "final":
            left_out |= _counted(NOT_FINAL, notes, (trained - left_out) - _answers(conversation))
        if part.errors:
            left_out |= _counted(FAILED_REPLY, notes, (trained - left_out) & _failed(part, messages))
    if not conversation.plain:
        _count_parts(policy, [messages[i].content for i in trained - left_out if messages[i].weight is None], notes)
    return replace(conversation, messages=[as_context(m) if i in left_out else m for i, m in enumerate(messages)])


def as_context(message: Message) -> Message:
    """Make a reply context; other messages stay as they are."""
    return replace(message, weight=0.0) if message.role is Role.ASSISTANT else message


def _counted(note: str, notes: Counter[str], found: set[int]) -> set[int]:
    _count(note, len(found), notes)
    return found


def _count(note: str, number: int, notes: Counter[str]) -> None:
    if number:
        notes[note] += number


def _last(messages: list[Message]) -> int:
    return max((i for i, message in enumerate(messages) if message.role is Role.ASSISTANT), default=0)


def _answers(conversation: Conversation) -> set[int]:
    """The final answers: the last reply before the next user message or the end, if it makes no calls.

    A reply that a result follows made a call. So did a reply in ReAct text that has keywords, but no final answer.
    """
    answers, is_open = set(), True
    for i, message in reversed(list(enumerate(conversation.messages))):
        if message.role is Role.USER:
            is_open = True
        elif message.role is Role.TOOL:
            is_open = False
        elif message.role is Role.ASSISTANT:
            if is_open and not message.calls and (conversation.plain or _may_answer(message.content)):
                answers.add(i)
            is_open = False
    return answers


def _may_answer(text: str) -> bool:
    parts = parse_reply(text)
    return not parts or any(part.keyword == FINAL_ANSWER for part in parts)


def _failed(policy: Policy, messages: list[Message]) -> set[int]:
    """The replies with a result that is an error: the one whose call has the result's id, or the one before it."""
    found, by_id, last = set(), dict[str, int](), -1
    for i, message in enumerate(messages):
        if message.role is Role.ASSISTANT:
            last = i
            by_id |= {call.id: i for call in message.calls if call.id is not None}
        elif message.role is Role.USER:
            last = -1
        elif message.role is Role.TOOL and policy.is_error(message.content):
            found.add(last if message.call_id is None else by_id.get(message.call_id, last))
    return found - {-1}


def _count_parts(policy: Policy, texts: list[str], notes: Counter[str]) -> None:
    """Count what the policy leaves out of replies in ReAct text."""
    for part in policy.parts:
        _count(FAILED_ACTION, sum(len(part.failed_actions(text)) for text in texts if part.errors), notes)
        if part.replies == "final":
            whole = f"{FINAL_ANSWER}:"
            _count(BEFORE_FINAL, sum(not text.startswith(whole) for text in texts if parse_reply(text)), notes)
