"""CogAgent's reply: the parts that the answer format asks for, one grounded operation, and a mark at the end.

    Status: ...            where the answer format has Status
    Plan: ...              where it has Plan
    Action: ...            one line: it becomes a step of the history
    Grounded Operation: CLICK(...)
    <<一般操作>>            where it has Sensitive: or <<敏感操作>>; <<END>> may stand in its place, or after it

`<<END>>` ends a task. In the fine-tuning samples it follows `END()` (Chinese README) and a last `CLICK` (English
README), so it may follow any operation, and `END()` does not require it. A summary before the parts is allowed, as
README says. `Grounded Operation:CLICK` (the samples) and `Grounded Operation: CLICK` (the model) are both accepted.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from compiler.formats.screens.action_space import Operation
from compiler.formats.screens.located import GrammarError, found
from compiler.formats.screens.operation import read_operation

SENSITIVE, GENERAL, END = "<<敏感操作>>", "<<一般操作>>", "<<END>>"
_KEY = re.compile(r"^(Status|Plan|Action|Grounded Operation):", re.MULTILINE)
_TEXTS, _OPERATION = ("Status", "Plan", "Action"), "Grounded Operation"
_MARK = re.compile(r"<<[^<>\n]*>>")


@dataclass(frozen=True)
class ScreenReply:
    """A reply of the agent. `written` is the operation's text; `sensitive` is None where there is no mark for it."""

    action: str
    operation: Operation
    written: str
    status: str | None = None
    plan: str | None = None
    sensitive: bool | None = None
    ended: bool = False
    summary: str = ""


def structure(text: str) -> re.Match[str] | None:
    """The first line of a text that the reply's grammar would read as a part; None where there is none."""
    return _KEY.search(text)


def render_reply(reply: ScreenReply) -> str:
    """The text of a reply as the model writes it, with a space before the operation."""
    parts = [reply.summary] if reply.summary else []
    parts += [f"Status: {reply.status}"] if reply.status is not None else []
    parts += [f"Plan: {reply.plan}"] if reply.plan is not None else []
    parts += [f"Action: {reply.action}", f"Grounded Operation: {reply.written}"]
    if reply.sensitive is not None:
        parts.append(SENSITIVE if reply.sensitive else GENERAL)
    return "\n".join([*parts, END] if reply.ended else parts)


def parse_reply(text: str, answer_format: str, variables: Collection[str] = ()) -> ScreenReply:
    """The reply that a text is; GrammarError with the character where it is not what `answer_format` asks for.

    `variables` are those that the history has set; the operation may use no others.
    """
    keys = [(match[1], match.start(), match.end()) for match in _KEY.finditer(text)]
    asked = [part for part in answer_format.split("-") if part in _TEXTS] + [_OPERATION]
    _check_parts(text, keys, asked, answer_format)
    ends = [start for _, start, _ in keys[1:]]
    said = {key: _text_of(text, key, after, end) for (key, _, after), end in zip(keys[:-1], ends, strict=True)}
    operation, end = read_operation(text, keys[-1][2], len(text), variables)
    sensitive, ended = _marks(text, end, answer_format)
    return ScreenReply(
        said["Action"],
        operation,
        text[keys[-1][2] : end].strip(" "),
        said.get("Status"),
        said.get("Plan"),
        sensitive,
        ended,
        text[: keys[0][1]].strip(),
    )


def _check_parts(text: str, keys: list[tuple[str, int, int]], asked: list[str], answer_format: str) -> None:
    """Raise unless the reply has exactly the parts that the format asks for, once each and in order."""
    for i in range(max(len(asked), len(keys))):
        key, at, _ = keys[i] if i < len(keys) else ("", len(text), 0)
        if i >= len(asked):
            raise GrammarError(at, f"expected no part after '{asked[-1]}:', found '{key}:'")
        if key != asked[i]:
            shown = f"'{key}:'" if key else found(text, at)
            raise GrammarError(at, f"expected '{asked[i]}:' as {answer_format} asks for, found {shown}")


def _text_of(text: str, key: str, start: int, end: int) -> str:
    """The text of a part, without the space before it and the line break after it."""
    said = text[start:end].removesuffix("\n").removeprefix(" ")
    if not said.strip():
        raise GrammarError(start, f"expected text after '{key}:', found none")
    if key == "Action" and "\n" in said.rstrip():
        at = text.index("\n", start)
        raise GrammarError(at, "expected the action on one line, as it becomes a step of the history, found two")
    return said


def _marks(text: str, end: int, answer_format: str) -> tuple[bool | None, bool]:
    """(sensitive, ended), by the marks after the operation, each on a line of its own."""
    marks: list[str] = []
    for line in re.compile(r"[^\n]*").finditer(text, end):
        rest = line.group().strip()
        if not rest:
            continue
        at = line.start() + len(line.group()) - len(line.group().lstrip())
        if line.start() == end or not _MARK.fullmatch(rest):
            what = "the end of the line after the operation" if line.start() == end else "a mark or the reply's end"
            raise GrammarError(at, f"expected {what}, found {rest[:24]!r}")
        marks.append(rest)
        _check_mark(marks, at, answer_format)
    if answer_format.endswith("Sensitive") and not marks:
        what = f"expected {GENERAL}, {SENSITIVE} or {END} at the end, as {answer_format} asks for"
        raise GrammarError(len(text), f"{what}, found none")
    return next((mark == SENSITIVE for mark in marks if mark != END), None), END in marks


def _check_mark(marks: list[str], at: int, answer_format: str) -> None:
    """Raise unless the last mark may follow the others."""
    *before, mark = marks
    if mark not in (SENSITIVE, GENERAL, END):
        raise GrammarError(at, f"expected {GENERAL}, {SENSITIVE} or {END}, found {mark[:24]!r}")
    if END in before:
        raise GrammarError(at, f"expected nothing after {END}, found {mark}")
    if mark != END and before:
        raise GrammarError(at, f"expected {END} or the end, found {mark}")
    if mark != END and not answer_format.endswith("Sensitive"):
        raise GrammarError(at, f"expected no mark, as {answer_format} asks for none, found {mark}")
