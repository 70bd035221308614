"""OpenAI messages: roles, list contents, tool_calls with their results, and the older function_call."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from compiler.conversation import Call, Conversation, Media, Message, Role
from compiler.formats.common import (
    CALL_ROLE,
    SWIFT_ROLES,
    WEIGHT_KEYS,
    asked_weight,
    calls_of_text,
    complete,
    parse_call,
    parse_text,
    read_columns,
    reasoning_of,
)
from compiler.formats.format import CHAT_KINDS, Format
from compiler.formats.kinds import KIND_COLUMNS
from compiler.formats.marks import MEDIA_COLUMNS, OBJECTS_COLUMN, image
from compiler.options import Names
from schemas.errors import Reason, RowError

_ASIDE = frozenset(("name", "tool_calls", "function_call", "tools"))
"""Keys of messages that most have not, and that are read in some only."""
_OF_PARTS = ("text", "image", "image_url", "video", "video_url")
"""The keys of a part that hold what it shows: one, the one of its type."""
NAMED = "named"
"""The note on a row with names of speakers, until it is known whether the template writes them."""


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:
    """The conversation. `developer` is a system message, `function` a tool result."""
    column = columns["messages"]
    assert column is not None
    role_tag, content_tag = tags["role_tag"] or "role", tags["content_tag"] or "content"
    roles = _roles(tags.get("user_tag"), tags.get("assistant_tag"), tags.get("observation_tag"))

    def message(source: Any, pointer: str) -> Message:
        if isinstance(source, str):  # ms-swift's rejected_response
            return Message(Role.ASSISTANT, source)
        role = roles[source[role_tag]]
        source = _unwrapped(source, content_tag, role, pointer)
        weight = None if WEIGHT_KEYS.isdisjoint(source) else asked_weight(source, role, pointer)
        one = Message(role, "", weight=weight, reasoning=reasoning_of(source, role, pointer))
        if not _ASIDE.isdisjoint(source):
            _check_place(source, role, pointer, in_list=pointer.startswith(f"/{column}/"))
            if role is not Role.TOOL and source.get("name"):
                one.name = source["name"]
                named.append(one)
        _fill(one, source.get(content_tag), f"{pointer}/{content_tag}")
        if role is Role.ASSISTANT:
            one.calls = _calls(source, pointer)
            if source[role_tag] == CALL_ROLE:
                one.content, one.calls = "", calls_of_text(one.content, f"{pointer}/{content_tag}")
        elif role is Role.TOOL:
            one.name, one.call_id = source.get("name"), source.get("tool_call_id")
        return one

    named: list[Message] = []
    messages = [message(source, f"/{column}/{i}") for i, source in enumerate(row[column])]
    found = read_columns(row, columns)
    columns = _with_tools(row, found, columns)
    conversation = complete(found, columns, messages, message)
    if named:
        conversation.notes = [*conversation.notes, NAMED]
    for one in messages:
        for media in one.media:
            if not media.uri:
                what = f"expected {media.kind!r} in the part, or the row's {media.kind}s in a column; found neither"
                raise RowError(Reason.MEDIA, what, media.pointer)
    return conversation


def _with_tools(row: dict[str, Any], found: dict[str, Any], columns: Names) -> Names:
    """Add the tools that a message lists as JSON text, or `functions`, to the columns found; where tools stand."""
    for i, source in enumerate(found["messages"]):
        if isinstance(source.get("tools"), str) and source["tools"]:  # minimind has them in its system message
            at = f"{columns['messages']}/{i}/tools"
            if found.get("tools"):
                raise RowError(Reason.TOOLS, "expected the tools of a row once, found them in a message too", f"/{at}")
            columns, found["tools"] = columns | {"tools": at}, source["tools"]
    if row.get("functions"):
        if found.get("tools"):
            raise RowError(Reason.TOOLS, "expected the tools of a row once, found functions beside them", "/functions")
        columns, found["tools"] = columns | {"tools": "functions"}, row["functions"]
    return columns


def _check_place(source: dict[str, Any], role: Role, pointer: str, *, in_list: bool) -> None:
    """Raise for calls and tools that a message has where they are not read."""
    if role is not Role.ASSISTANT and (source.get("tool_calls") or source.get("function_call")):
        what = f"expected calls in a reply, found them in a message of {role}"
        raise RowError(Reason.UNREAD_KEY, what, pointer)
    if not in_list and source.get("tools"):
        what = "expected the tools of a pair beside its replies, found them in a reply"
        raise RowError(Reason.UNREAD_KEY, what, f"{pointer}/tools")


def _unwrapped(source: dict[str, Any], content_tag: str, role: Role, pointer: str) -> dict[str, Any]:
    """The message with the text of a refusal as its content, and calls that it holds as JSON text as a list."""
    if refusal := source.get("refusal"):
        if source.get(content_tag) or role is not Role.ASSISTANT:
            what = "expected a refusal in place of the content of a reply, found it beside other content"
            raise RowError(Reason.UNREAD_KEY, what, f"{pointer}/refusal")
        source = source | {content_tag: refusal}
    if isinstance(text := source.get("tool_calls"), str):
        at = f"{pointer}/tool_calls"
        calls = parse_text(text, "a list of tool calls", Reason.TOOL_ARGUMENTS, at) if text.strip() else []
        calls = calls if isinstance(calls, list) else [calls]
        bare = (call if isinstance(call, dict) and "function" in call else {"function": call} for call in calls)
        source = source | {"tool_calls": list(bare)}
    return source


@lru_cache(maxsize=64)
def _roles(user: str | None, assistant: str | None, result: str | None) -> dict[str, Role]:
    """The role that each name in a message means, with the user's own names (shared: do not change them)."""
    roles = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "function": Role.TOOL, "tool": Role.TOOL}
    named = {user: Role.USER, assistant: Role.ASSISTANT, result: Role.TOOL}
    return roles | SWIFT_ROLES | {name: role for name, role in named.items() if name is not None}


def _fill(message: Message, content: Any, pointer: str) -> None:
    """Fill in the content of a message: a text, or parts. Texts are joined as they are; media keep their places."""
    if not isinstance(content, list):
        message.content = content or ""
        return
    for i, part in enumerate(content):
        if len(part) > 2 and (key := next((key for key in _OF_PARTS if key != part["type"] and part.get(key)), None)):
            what = f"expected {part['type']!r} in a part of that type, found {key!r} beside it"
            raise RowError(Reason.UNREAD_KEY, f"{what}; make it a part of its own", f"{pointer}/{i}/{key}")
        if part["type"] == "text":
            message.content += part["text"]
            continue
        if message.role not in (Role.USER, Role.TOOL):
            what = f"expected text in a message of the {message.role}, found {part['type']!r}"
            raise RowError(Reason.MEDIA, what, f"{pointer}/{i}")
        kind = part["type"].removesuffix("_url")
        found = part.get(part["type"])
        if part["type"] == "image" and isinstance(found, dict):
            one = image(found, f"{pointer}/{i}/image", len(message.content))
        else:
            uri = found["url"] if isinstance(found, dict) else found or ""  # "": it stands in the row's column
            one = Media(kind, uri, at=len(message.content), pointer=f"{pointer}/{i}")
        message.media.append(one)


def _calls(source: dict[str, Any], pointer: str) -> list[Call]:
    """The calls of a reply; without the object `function` around them, name and arguments stand beside the id."""
    calls = []
    for j, call in enumerate(source.get("tool_calls") or ()):
        inner, at = call.get("function"), f"{pointer}/tool_calls/{j}"
        for key in () if inner is None else ("name", "arguments"):
            if call.get(key) and call[key] != inner[key]:
                what = f"expected the {key} of a call in its function, found another one beside it"
                raise RowError(Reason.UNREAD_KEY, what, f"{at}/{key}")
        inner, at = (call, at) if inner is None else (inner, f"{at}/function")
        calls.append(parse_call(inner, at, f"{at}/arguments", call_id=call.get("id")))
    if not calls and source.get("function_call"):
        at = f"{pointer}/function_call"
        calls = [parse_call(source["function_call"], at, f"{at}/arguments")]
    return calls


FORMAT = Format(
    name="openai",
    lift=lift,
    columns={
        "messages": "messages",
        "system": "system",
        "tools": "tools",
        **MEDIA_COLUMNS,
        **OBJECTS_COLUMN,
        **KIND_COLUMNS,
    },
    tags={
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function",
        "system_tag": "system",
    },
    ignorable=("parallel_tool_calls",),
    turns="messages",
    kinds=CHAT_KINDS,
)
