"""What several source formats share: turn order, tools and arguments given as JSON text, per-message flags."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from compiler.conversation import Call, Conversation, Message, Role
from compiler.options import Names
from compiler.read.value import json_type, parse
from schemas.errors import Reason, RowError

_MAY_FOLLOW = {
    Role.USER: (Role.ASSISTANT,),
    Role.ASSISTANT: (Role.USER, Role.TOOL),
    Role.TOOL: (Role.ASSISTANT, Role.TOOL),
}


def check_turns(conversation: Conversation, pointer: str | None) -> None:
    """Raise unless the messages are a conversation that ends with a reply (decision 11).

    `pointer` names the source list of messages, None where the row has none. System messages are skipped.
    """
    places = conversation.places or range(len(conversation.messages))
    turns = [
        (i, message.role)
        for i, message in zip(places, conversation.messages, strict=False)
        if message.role is not Role.SYSTEM
    ]

    def wrong(message: str, i: int | None = None) -> RowError:
        where = "" if pointer is None or (i or 0) < 0 else pointer if i is None else f"{pointer}/{i}"
        return RowError(Reason.TURN_ORDER, message, where)

    if not any(role is Role.ASSISTANT for _, role in turns):
        raise wrong("expected at least one reply, found none")
    if turns[0][1] is not Role.USER:
        raise wrong(f"expected a user message first, found {turns[0][1]}", turns[0][0])
    calls = {i for i, message in zip(places, conversation.messages, strict=False) if message.calls}
    for (_, before), (i, role) in pairwise(turns):
        if before is Role.ASSISTANT and role is Role.ASSISTANT and i in calls:
            continue  # a thought, then the call it leads to: two turns where their weights differ
        if role not in _MAY_FOLLOW[before]:
            raise wrong(f"expected {' or '.join(_MAY_FOLLOW[before])} after {before}, found {role}", i)
    last, role = turns[-1]
    if role is not Role.ASSISTANT:
        hint = "--repair dangling removes trailing turns without a reply"
        raise wrong(f"expected a reply last, found {role}; {hint}", last)


def column_of(row: dict[str, Any], columns: Names, name: str) -> Any:
    """Return the value of a column by the format's name for it; None where the user's rows have none."""
    column = columns.get(name)
    return None if column is None else row.get(column)


def with_columns(row: dict[str, Any], columns: Names, messages: list[Message]) -> Conversation:
    """Return the conversation of the messages with the row's system and tools columns; a system message wins."""
    tools = parse_tools(column_of(row, columns, "tools"), f"/{columns.get('tools')}")
    system = column_of(row, columns, "system")
    if not system or messages[0].role is Role.SYSTEM:
        return Conversation(messages, tools)
    places = [-1, *range(len(messages))]
    return Conversation([Message(Role.SYSTEM, system), *messages], tools, places=places)


def with_kind(
    conversation: Conversation,
    row: dict[str, Any],
    columns: Names,
    to_message: Callable[[Any, str], Message],
) -> Conversation:
    """Return the conversation as a preference pair or a KTO row where the row is one.

    `chosen` is the reply to prefer; without it the conversation's own last reply is. `to_message` reads a reply at a
    pointer. Which rows may be one is the schema's to say, for the kind that is compiled.
    """
    conversation.desirable = column_of(row, columns, "kto_tag")
    chosen, rejected = column_of(row, columns, "chosen"), column_of(row, columns, "rejected")
    if rejected is None:
        return conversation
    conversation.rejected = to_message(rejected, f"/{columns['rejected']}")
    if chosen is not None:
        places = conversation.places or list(range(len(conversation.messages)))
        conversation.messages.append(to_message(chosen, f"/{columns['chosen']}"))
        conversation.places = [*places, -1]  # it is beside the list of messages
    return conversation


def parse_text(text: str, what: str, reason: Reason, pointer: str) -> Any:
    """Return JSON that a row carries as text, read as strictly as a row itself; `what` says what was expected."""
    value, reject = parse(text.strip().encode(), "text")
    if reject is not None:
        raise RowError(reason, f"expected {what} as JSON, found text that is not: {reject.message}", pointer)
    return value


def parse_tools(value: Any, pointer: str) -> list[Any] | None:
    """Return the list of tools given as JSON text, a list or one tool; None where nothing is given, [] for "[]"."""
    within = pointer
    if isinstance(value, str):
        value = parse_text(value, "a list of tools", Reason.TOOLS, pointer) if value.strip() else None
    elif isinstance(value, list):
        within = f"{pointer}/{{}}"
    if value is None:
        return None
    tools = [value] if isinstance(value, dict) else value
    if not isinstance(tools, list):
        raise RowError(Reason.TOOLS, f"expected a JSON list of tools, found {_kind(value)}", pointer)
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise RowError(Reason.TOOLS, f"expected a tool as a JSON object, found {_kind(tool)}", within.format(i))
    return [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool} for tool in tools
    ]


def parse_call(call: Any, pointer: str, arguments_at: str, *, call_id: str | None = None) -> Call:
    """Return a tool call from {"name", "arguments"}; arguments may be an object or its JSON text (decision 6).

    `pointer` is where the call is in the row, `arguments_at` where its arguments are.
    """
    if not isinstance(call, dict):
        raise RowError(Reason.TOOL_ARGUMENTS, f"expected a tool call as an object, found {_kind(call)}", pointer)
    name = call.get("name")
    if not isinstance(name, str) or not name:
        found = "an empty name" if name == "" else f"the keys {', '.join(map(repr, call)) or 'none'}"
        raise RowError(Reason.TOOL_ARGUMENTS, f"expected a tool call with a name, found {found}", pointer)
    if "arguments" not in call:
        raise RowError(Reason.TOOL_ARGUMENTS, f"the call of {name!r} has no arguments", pointer)
    arguments = call["arguments"]
    if isinstance(arguments, str):
        arguments = parse_text(arguments, "arguments", Reason.TOOL_ARGUMENTS, arguments_at) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise RowError(
            Reason.TOOL_ARGUMENTS, f"expected arguments to be a JSON object, found {_kind(arguments)}", arguments_at
        )
    return Call(name, arguments, call_id)


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
    """What a JSON value is, with its article."""
    name = json_type(value)
    return name if value is None else f"an {name}" if name[0] in "aio" else f"a {name}"
