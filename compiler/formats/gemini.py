"""gemini: contents of parts, as in Google's tuning files: text, functionCall and functionResponse.

Parts that are thoughts are the reply's reasoning. A functionResponse is a tool's result, as JSON.
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Call, Conversation, Message, Role, to_json
from compiler.formats.common import parse_tools
from compiler.formats.format import Format
from compiler.options import Names
from schemas.errors import Reason, RowError

_SYSTEM_KEYS = ("systemInstruction", "system_instruction")


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation; `places` tells which content each message came from."""
    column = str(columns["messages"])
    messages: list[Message] = []
    places: list[int] = []
    for key in _SYSTEM_KEYS:
        if row.get(key) is not None:
            messages.append(Message(Role.SYSTEM, "".join(part["text"] for part in row[key]["parts"])))
            places.append(-1)
    for i, content in enumerate(row[column]):
        lifted = _messages(content, f"/{column}/{i}")
        messages += lifted
        places += [i] * len(lifted)
    return Conversation(messages, _tools(row.get(str(columns["tools"])), f"/{columns['tools']}"), places=places)


def _messages(content: dict[str, Any], pointer: str) -> list[Message]:
    """One reply of a content of the model; of another content, its results as messages, and one with its texts."""
    reply = content.get("role") == "model"
    one = Message(Role.ASSISTANT if reply else Role.USER, "")
    results = []
    for j, part in enumerate(content["parts"]):
        response = part.get("functionResponse", part.get("function_response"))
        call = part.get("functionCall", part.get("function_call"))
        if (call is not None and not reply) or (response is not None and reply):
            what = f"expected {'text or functionCall' if reply else 'text or functionResponse'} in a content of the"
            raise RowError(Reason.TURN_ORDER, f"{what} {content.get('role', 'user')}", f"{pointer}/parts/{j}")
        if response is not None:
            results.append(Message(Role.TOOL, to_json(response["response"]), name=response["name"]))
        elif call is not None:
            one.calls.append(Call(call["name"], call.get("args") or {}))
        elif part.get("thought"):
            one.reasoning = (one.reasoning or "") + part["text"]
        elif one.calls:
            raise RowError(
                Reason.TURN_ORDER, "expected no text after a functionCall, found one", f"{pointer}/parts/{j}"
            )
        else:
            one.content += part["text"]
    return results if results and not one.content else [*results, one]


def _tools(value: Any, pointer: str) -> list[Any] | None:
    """The function declarations of all tools, which may be JSON text."""
    if isinstance(value, str):
        value = parse_tools(value, pointer)
    keys = ("functionDeclarations", "function_declarations")
    found = [one for tool in value or () for key in keys for one in tool.get(key) or ()]
    return parse_tools(found, pointer) if value is not None else None


FORMAT = Format(
    name="gemini",
    lift=lift,
    columns={"messages": "contents", "tools": "tools"},
    turns="messages",
)
