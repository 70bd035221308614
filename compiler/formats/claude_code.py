"""claude_code: a session file of Claude Code. Its lines are a tree; the conversation ends at the newest leaf."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Role
from compiler.formats.anthropic import add_message, add_reply
from compiler.formats.format import Format
from compiler.formats.thread import Thread
from compiler.options import Names
from schemas.errors import Reason, RowError

_SAID = ("user", "assistant")


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation that ends at the newest leaf. Notes say what the file holds beside it, and what it lacks."""
    session = _Session(row["lines"])
    thread = Thread()
    thread.notes += session.notes()
    done: set[int] = set()
    for at in session.path:
        line = session.lines[at]
        if at in done:
            continue
        if line["type"] == "user":
            add_message(thread, at, line["message"], f"/lines/{at}/message", None)
            continue
        fragments = session.fragments(at)
        done.update(fragments)
        calls = _add_reply(thread, session, fragments)
        for beside in session.results_beside(calls):
            add_message(thread, beside, session.lines[beside]["message"], f"/lines/{beside}/message", None)
    return thread.conversation(None, None)


def _add_reply(thread: Thread, session: _Session, fragments: list[int]) -> set[str]:
    """Add the fragments of one reply as one message; the ids of its calls."""
    for n, at in enumerate(fragments):
        message = session.lines[at]["message"]
        if n == 0:  # what the program itself says in the model's place (an API error) is not trained
            weight = 0.0 if message.get("model") == "<synthetic>" else None
            add_message(thread, at, message, f"/lines/{at}/message", weight)
        else:
            add_reply(thread, at, message["content"], f"/lines/{at}/message/content")
    return {call.id for call in thread.messages[-1].calls if call.id is not None}


class _Session:
    """The lines of a session and the path from its first line to its newest leaf."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.lines = lines
        self._by_uuid = {line["uuid"]: i for i, line in enumerate(lines) if line.get("uuid")}
        self.main = [i for i, line in enumerate(lines) if line["type"] in _SAID and not line.get("isSidechain")]
        if not self.main:
            raise RowError(Reason.TURN_ORDER, "expected lines of user and assistant, found only those of subagents")
        self.path = [i for i in self._up_from(self.main[-1]) if lines[i]["type"] in _SAID]
        on_path = {lines[i].get("sessionId") for i in self.path}
        other = next((i for i in self.main if lines[i].get("sessionId") not in on_path), None)
        if other is not None:
            what = f"expected one session, found a line of another: {lines[other].get('sessionId')!r}; split the file"
            raise RowError(Reason.SCHEMA, what, f"/lines/{other}")

    def fragments(self, at: int) -> list[int]:
        """The lines of the reply that line `at` belongs to: those with the same `message.id`."""
        name = self.lines[at]["message"].get("id")
        if name is None:
            return [at]
        return [
            i for i in self.main if self.lines[i]["type"] == "assistant" and self.lines[i]["message"].get("id") == name
        ]

    def results_beside(self, calls: set[str]) -> list[int]:
        """The lines off the path with results of these calls: calls made at once have their results on branches."""
        on_path = set(self.path)
        missing = calls - {name for i in self.path for name in self._results(i)}
        return [i for i in self.main if i not in on_path and missing.intersection(self._results(i))]

    def notes(self) -> list[str]:
        """What the user is told: what is not in the file, and what of the file is not in the conversation."""
        found = ["session_prompt"]
        if any(line.get("isSidechain") for line in self.lines):
            found.append("session_subagents")
        used = set(self.path)
        for at in self.path:
            if self.lines[at]["type"] == "assistant":
                used.update(self.fragments(at))
        calls = {
            block["id"]
            for i in used
            if self.lines[i]["type"] == "assistant"
            for block in _blocks(self.lines[i])
            if block["type"] == "tool_use"
        }
        used.update(self.results_beside(calls))
        return [*found, "session_branches"] if used < set(self.main) else found

    def _up_from(self, leaf: int) -> list[int]:
        """The lines from the root to a leaf."""
        path, at = [], leaf
        seen: set[int] = set()
        while True:
            if at in seen:
                raise RowError(Reason.SCHEMA, "expected a tree of lines, found a line above itself", f"/lines/{at}")
            seen.add(at)
            path.append(at)
            parent = self.lines[at].get("parentUuid")
            if parent is None:
                return path[::-1]
            if parent not in self._by_uuid:
                what = f"expected a line with the uuid {parent!r}, found none: the file does not hold the whole session"
                raise RowError(Reason.SCHEMA, what, f"/lines/{at}/parentUuid")
            at = self._by_uuid[parent]

    def _results(self, at: int) -> list[str]:
        if self.lines[at]["type"] != Role.USER:
            return []
        return [block["tool_use_id"] for block in _blocks(self.lines[at]) if block["type"] == "tool_result"]


def _blocks(line: dict[str, Any]) -> list[dict[str, Any]]:
    content = line["message"]["content"]
    return content if isinstance(content, list) else []


FORMAT = Format(
    name="claude_code",
    lift=lift,
    columns={"lines": "lines"},
    ignorable=(
        "cwd", "gitBranch", "isMeta", "isSnapshotUpdate", "leafUuid", "level", "messageId", "operation",
        "permissionMode", "requestId", "slug", "snapshot", "sourceToolAssistantUUID", "subtype", "summary",
        "thinkingMetadata", "toolUseResult", "userType", "is_error", "stop_reason", "stop_sequence", "type",
        "usage", "signature",
    ),
    turns="lines",
    session=True,
)  # fmt: skip
