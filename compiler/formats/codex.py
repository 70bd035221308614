"""codex: a session file of Codex. Its `response_item` lines hold the items of OpenAI's Responses API."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation
from compiler.formats.format import Format
from compiler.formats.openai_responses import add_item
from compiler.formats.thread import Thread
from compiler.options import Names
from schemas.errors import Reason, RowError


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation of the items. The instructions of the session are its system text, unless an item has them."""
    thread = Thread()
    system, first = None, -1
    for i, line in enumerate(row["lines"]):
        payload = line.get("payload")
        if line["type"] == "compacted":
            what = "expected a session in one piece, found where the model's context was replaced by a summary"
            raise RowError(Reason.SCHEMA, f"{what}; cut the file there", f"/lines/{i}")
        if line["type"] == "session_meta" and system is None:
            system, first = (payload.get("base_instructions") or {}).get("text") or payload.get("instructions"), i
        if line["type"] == "response_item" and payload["type"] != "ghost_snapshot":
            add_item(thread, i, payload, f"/lines/{i}/payload")
    if system and any(system in message.content for message in thread.messages):
        system = None
    thread.notes.append("session_tools")
    return thread.conversation(system, None, first)


FORMAT = Format(
    name="codex",
    lift=lift,
    columns={"lines": "lines"},
    ignorable=(
        "approval_policy", "cli_version", "cwd", "effort", "encrypted_content", "git", "ghost_commit", "info", "kind",
        "message", "model_provider", "originator", "phase", "rate_limits", "sandbox_policy", "status", "annotations",
    ),
    turns="lines",
    session=True,
)  # fmt: skip
