"""dolci: messages with `functions`, and calls as Python writes them (`dig(x=3)`) in `function_calls`, as in Dolci.

Results have the role environment.
"""

from __future__ import annotations

import ast
from typing import Any

from compiler.conversation import Call, Conversation
from compiler.formats import openai
from compiler.formats.format import Format
from compiler.formats.joined import lift_joined
from compiler.options import Names
from compiler.read.literal import parse_literal
from schemas.errors import Reason, RowError


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:
    """The conversation; the functions of the system message are the tools."""
    column = str(columns["messages"])
    placed = [(f"/{column}/{i}", message) for i, message in enumerate(row[column])]
    given = [(f"{at}/functions", message["functions"]) for at, message in placed if message.get("functions")]
    if len(given) > 1:
        raise RowError(Reason.TOOLS, "expected one list of functions, found another one", given[1][0])
    filled = [(at, message | {"content": message.get("content") or ""}) for at, message in placed]
    conversation = lift_joined(filled, {"tools": given[0]} if given else {}, tags)
    for (at, source), message in zip(placed, conversation.messages, strict=True):
        if source.get("function_calls"):
            message.calls = _calls(source["function_calls"], f"{at}/function_calls")
    return conversation


def _calls(text: str, pointer: str) -> list[Call]:
    """The calls of a text: Python calls with named arguments, one on each line or in a list."""
    try:
        lines = [getattr(line, "value", line) for line in ast.parse(text.strip()).body]
        return [_call(node) for line in lines for node in getattr(line, "elts", [line])]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = f"expected calls as Python writes them, such as dig(x=3), found {text[:60]!r} ({error})"
        raise RowError(Reason.TOOL_ARGUMENTS, what[:500], pointer) from None


def _call(node: ast.AST) -> Call:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("not a call with named arguments")
    arguments = {str(keyword.arg): parse_literal(ast.unparse(keyword.value)) for keyword in node.keywords}
    if len(arguments) < len(node.keywords):
        raise ValueError("an argument is given twice")
    return Call(ast.unparse(node.func), arguments)


FORMAT = Format(
    name="dolci",
    lift=lift,
    columns={"messages": "messages"},
    tags=openai.FORMAT.tags | {"observation_tag": "environment"},
    turns="messages",
)
