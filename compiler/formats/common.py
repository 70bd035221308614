"""What several source formats share: turn order, tools and arguments given as JSON text, per-message flags."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from compiler.conversation import Call, Message, Role
from schemas.errors import Reason, RowError

_MAY_FOLLOW = {
    Role.USER: (Role.ASSISTANT,),
    Role.ASSISTANT: (Role.USER, Role.TOOL),
    Role.TOOL: (Role.ASSISTANT, Role.TOOL),
}


def check_turns(messages: list[Message], pointer: str, *, first: int = 0) -> None:
    """Raise unless the messages are a conversation that ends with a reply (decision 11).

    `first` is the position of messages[0] in the source list that `pointer` names; system messages may stand
    anywhere and are skipped.
    """
    turns = [(i + first, message.role) for i, message in enumerate(messages) if message.role is not Role.SYSTEM]
    if not any(role is Role.ASSISTANT for _, role in turns):
        raise RowError(Reason.TURN_ORDER, "expected at least one reply, found none", pointer)
    if turns[0][1] is not Role.USER:
        raise RowError(
            Reason.TURN_ORDER,
            f"expected a user message first, found {turns[0][1]}",
            f"{pointer}/{turns[0][0]}",
        )
    for (_, before), (i, role) in pairwise(turns):
        if role not in _MAY_FOLLOW[before]:
            expected = " or ".join(_MAY_FOLLOW[before])
            raise RowError(Reason.TURN_ORDER, f"expected {expected} after {before}, found {role}", f"{pointer}/{i}")
    if turns[-1][1] is not Role.ASSISTANT:
        raise RowError(
            Reason.TURN_ORDER,
            f"expected a reply last, found {turns[-1][1]}; --repair dangling removes trailing turns without a reply",
            f"{pointer}/{turns[-1][0]}",
        )


def column_of(row: dict[str, Any], columns: dict[str, str | None], name: str) -> Any:
    """Return the value of a column by the format's name for it; None where the user's rows have none."""
    column = columns.get(name)
    return None if column is None else row.get(column)


def parse_tools(value: Any, pointer: str) -> list[Any] | None:
    """Return the list of tools given as JSON text, a list or one tool; None where nothing is given, [] for "[]"."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowError(
                Reason.TOOLS, f"expected a JSON list of tools, found text that is not JSON: {error}", pointer
            ) from error
    if isinstance(value, dict):
        value = [value]
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError(Reason.TOOLS, f"expected a JSON list of tools, found {_kind(value)}", pointer)
    return [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool} for tool in value
    ]


def parse_call(call: Any, pointer: str, *, call_id: str | None = None) -> Call:
    """Return a tool call from {"name", "arguments"}; arguments may be an object or its JSON text (decision 6)."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise RowError(
            Reason.TOOL_ARGUMENTS,
            f"expected an object with a name and arguments, found {_kind(call)}",
            pointer,
        )
    if "arguments" not in call:
        raise RowError(Reason.TOOL_ARGUMENTS, f"the call of {call['name']!r} has no arguments", pointer)
    arguments = call["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise RowError(
                Reason.TOOL_ARGUMENTS,
                f"expected arguments as JSON, found text that is not: {error}",
                f"{pointer}/arguments",
            ) from error
    if not isinstance(arguments, dict):
        raise RowError(
            Reason.TOOL_ARGUMENTS,
            f"expected arguments to be a JSON object, found {_kind(arguments)}",
            f"{pointer}/arguments",
        )
    return Call(call["name"], arguments, call_id)


def asked_weight(message: dict[str, Any], role: Role) -> float | None:
    """Return the weight a message asks for with `loss_scale`, `loss` or OpenAI's `weight`; None = by role.

    `loss: true` on a reply is the default and leaves it to the weights policy; on any other role it trains the
    content (decision 14).
    """
    loss, scale = message.get("loss"), message.get("loss_scale")
    if loss is None and message.get("weight") is not None:
        loss = bool(message["weight"])
    if loss is False:
        return 0.0
    if scale is not None:
        return float(scale)
    return 1.0 if loss and role is not Role.ASSISTANT else None


def _kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
