"""atif: agent trajectories in Harbor's format: steps of system, user and agent, with calls and what was observed."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Call, Conversation, Message, Role
from compiler.formats.common import parse_tools, read_columns
from compiler.formats.format import Format
from compiler.formats.thread import Thread, add_parts, text_of
from compiler.options import Names

_ROLES = {"system": Role.SYSTEM, "user": Role.USER}


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation. A step that is copied context, or that no model wrote, is not trained."""
    found, column = read_columns(row, columns), columns["messages"]
    thread = Thread()
    for i, step in enumerate(found["messages"]):
        pointer = f"/{column}/{i}"
        if step["source"] == "agent":
            _add_reply(thread, i, step)
        else:
            message = Message(_ROLES[step["source"]], "")
            thread.add(add_parts(message, step["message"], f"{pointer}/message"), i)
        for j, result in enumerate((step.get("observation") or {}).get("results") or ()):
            message = Message(Role.TOOL, "", call_id=result.get("source_call_id"))
            at = f"{pointer}/observation/results/{j}/content"
            thread.add(add_parts(message, result.get("content"), at), i)
    agent = found.get("agent") or {}
    tools = parse_tools(agent.get("tool_definitions"), f"/{columns['agent']}/tool_definitions")
    return thread.conversation(None, tools)


def _add_reply(thread: Thread, place: int, step: dict[str, Any]) -> None:
    weight = 0.0 if step.get("is_copied_context") or step.get("llm_call_count") == 0 else None
    calls = [
        Call(call["function_name"], call["arguments"], call["tool_call_id"]) for call in step.get("tool_calls") or ()
    ]
    reply = Message(Role.ASSISTANT, text_of(step.get("message")) or "", calls, weight=weight)
    reply.reasoning = step.get("reasoning_content") or None
    thread.add(reply, place)


FORMAT = Format(
    name="atif",
    lift=lift,
    columns={"messages": "steps", "agent": "agent"},
    ignorable=("schema_version", "step_id", "name", "metrics", "final_metrics"),
    turns="messages",
)
