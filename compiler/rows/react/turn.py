"""One turn as one ReAct reply: the texts, calls and results of several messages in one text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from compiler.conversation import Call, Media, Message, Role, to_json
from compiler.rows.react.parse import ACTION, ACTION_INPUT, FINAL_ANSWER, KEYWORD_LINE, OBSERVATION, THOUGHT
from schemas.errors import RowError

Refuse = Callable[[int, str], RowError]
"""(index of a message, what cannot be said) -> the error to raise."""


@dataclass(slots=True)
class _Text:
    """A text under construction, with the media that stand in it."""

    text: str = ""
    media: list[Media] = field(default_factory=list)

    def line(self, keyword: str, content: str, media: list[Media] | None = None) -> None:
        """Write a keyword ("" = the content has its own), a space and the content on a new line."""
        self.end_line()
        self.text += f"{keyword}: " if keyword else ""
        self.media += [replace(one, at=one.at + len(self.text)) for one in media or ()]
        self.text += content

    def end_line(self) -> None:
        """Add a newline unless the text is empty or ends in one."""
        if self.text and not self.text.endswith("\n"):
            self.text += "\n"


def reply_of(run: list[Message], begin: int, refuse: Refuse) -> Message:
    """The one message that a run of replies and results becomes; the same object if it is one reply without calls.

    `begin` is where the run begins in its conversation.
    """
    if len(run) == 1 and not run[0].calls and run[0].role is not Role.TOOL:
        return run[0]
    _check(run, begin, refuse)
    said = _Text()
    at = 0
    while at < len(run):
        message, results = run[at], _results(run, at + 1)
        last = at + 1 + len(results) == len(run)
        _say(said, message, begin + at, refuse, ends=last and not message.calls)
        if message.calls or results:
            _call(said, message.calls, results, begin + at, refuse, last=last)
        at += 1 + len(results)
    return Message(Role.ASSISTANT, said.text, weight=run[0].weight, media=said.media, reasoning=run[0].reasoning)


def _check(run: list[Message], begin: int, refuse: Refuse) -> None:
    """Raise if one message cannot carry the weights and reasoning of the run."""
    if run[0].role is Role.TOOL:
        raise refuse(begin, "a result without a call")
    if run[-1].role is Role.TOOL:
        raise refuse(begin + len(run) - 1, "a result without a reply to it")
    weight, results = run[0].weight, any(message.role is Role.TOOL for message in run)
    for i, message in enumerate(run, begin):
        if message.role is Role.TOOL:
            if message.weight:
                raise refuse(i, "the result is trained, and becomes a part of the reply")
        elif message.weight != weight:
            raise refuse(
                i, f"the replies of one turn have different weights, {_asked(weight)} and {_asked(message.weight)}"
            )
        elif weight and results:
            raise refuse(
                i, f"the reply asks for a weight of {weight:g}, and the results inside it would get that weight too"
            )
        if message.reasoning and i > begin:
            raise refuse(i, "the reasoning of a reply would stand in the middle of the text")


def _asked(weight: float | None) -> str:
    return "none asked for" if weight is None else f"{weight:g}"


def _say(said: _Text, message: Message, i: int, refuse: Refuse, *, ends: bool) -> None:
    """Add a reply's own text: as the final answer if it ends the turn, else as a thought."""
    if not message.content:
        return
    marks = list(KEYWORD_LINE.finditer(message.content))
    for mark in marks:
        if mark[1] != THOUGHT and not (ends and mark[1] == FINAL_ANSWER):
            raise refuse(i, f"a line of the reply begins with '{mark[1]}:', which would be read as a keyword")
    keyword = THOUGHT if marks or not ends else FINAL_ANSWER
    said.line("" if marks and marks[0].start() == 0 else keyword, message.content, message.media)


def _call(said: _Text, calls: list[Call], results: list[Message], i: int, refuse: Refuse, *, last: bool) -> None:
    """Add the calls of a reply, each with its result; a call that ends the turn is followed by the stop word alone."""
    for call in calls:
        if "\n" in call.name:
            raise refuse(i, f"the name {call.name!r} of a tool has a newline")
    if last and len(calls) == 1 and not results:
        _action(said, calls[0])
        said.line("", f"{OBSERVATION}:")
        return
    if len(calls) != len(results):
        counts = f"{_count(len(calls), 'call')} with {_count(len(results), 'result')}"
        raise refuse(i, f"{counts}, but each call needs exactly one result")
    for call, k in zip(calls, _pairs(calls, results, i, refuse), strict=True):
        result = results[k]
        mark = next((mark for mark in KEYWORD_LINE.finditer(result.content) if mark.start()), None)
        if mark is not None:  # at the very start of the result it follows "Observation: " on its line
            what = f"a line of the result begins with '{mark[1]}:', which would be read as a keyword"
            raise refuse(i + 1 + k, what)
        _action(said, call)
        said.line(OBSERVATION, result.content, result.media)
        said.end_line()


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _action(said: _Text, call: Call) -> None:
    said.line(ACTION, call.name)
    said.line(ACTION_INPUT, to_json(call.arguments))


def _results(run: list[Message], begin: int) -> list[Message]:
    end = begin
    while end < len(run) and run[end].role is Role.TOOL:
        end += 1
    return run[begin:end]


def _pairs(calls: list[Call], results: list[Message], i: int, refuse: Refuse) -> list[int]:
    """The number of each call's result: matched by id where all have one, else in order."""
    ids, answered = [call.id for call in calls], [result.call_id for result in results]
    if len(calls) > 1 and None not in ids and None not in answered:
        if len(set(ids)) < len(ids) or set(ids) != set(answered):
            raise refuse(i, "the ids of the results are not those of the calls")
        return [answered.index(id_) for id_ in ids]
    for k, (call, result) in enumerate(zip(calls, results, strict=True)):
        if len(calls) > 1 and result.name not in (None, call.name):
            raise refuse(i + 1 + k, f"a result of {result.name!r} in the place of one of {call.name!r}")
    return list(range(len(calls)))
