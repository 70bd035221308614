"""glm4: GLM-4's own rows: tools inside the system message, results with the role observation.

A reply before an observation is a call: the name of a tool on its first line, then the arguments as JSON. The chat
template lists the tools; a system text beside them stays.
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Call, Conversation, Role
from compiler.formats import openai
from compiler.formats.common import parse_text
from compiler.formats.format import Format
from compiler.formats.joined import lift_joined
from compiler.options import Names
from schemas.errors import Reason, RowError


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:
    """The conversation; an empty system message that only carries the tools is left out."""
    column = str(columns["messages"])
    placed, tools, tools_at = [], row.get(str(columns["tools"])), f"/{columns['tools']}"
    for i, message in enumerate(row[column]):
        if message.get("tools") is not None:
            if tools is not None:
                raise RowError(Reason.TOOLS, "expected one list of tools, found another one", f"/{column}/{i}/tools")
            tools, tools_at = message["tools"], f"/{column}/{i}/tools"
            if message["role"] == "system" and not message.get("content"):
                continue
        placed.append((f"/{column}/{i}", {key: value for key, value in message.items() if key != "tools"}))
    conversation = lift_joined(placed, {"tools": (tools_at, tools)}, tags)
    functions = (tool.get("function") for tool in conversation.tools or ())
    names = {function["name"] for function in functions if isinstance(function, dict) and "name" in function}
    for k, message in enumerate(conversation.messages[:-1]):
        if message.role is Role.ASSISTANT and conversation.messages[k + 1].role is Role.TOOL and not message.calls:
            name, _, arguments = message.content.partition("\n")
            if name.strip() not in names:
                continue
            at = f"{placed[k][0]}/content"
            value = parse_text(arguments, "the arguments of a call", Reason.TOOL_ARGUMENTS, at)
            if not isinstance(value, dict):
                what = f"expected the arguments of {name.strip()!r} as a JSON object, found another value"
                raise RowError(Reason.TOOL_ARGUMENTS, what, at)
            message.content, message.calls = "", [Call(name.strip(), value)]
    conversation.places = [int(at.rpartition("/")[2]) for at, _ in placed]
    return conversation


FORMAT = Format(
    name="glm4",
    lift=lift,
    columns={"messages": "messages", "tools": "tools"},
    tags=openai.FORMAT.tags | {"observation_tag": "observation"},
    turns="messages",
)
