"""toolalpaca: ToolAlpaca's {"NLDocumentation", "Instances"}; a row is an API with many conversations about it.

Each instance becomes what ChatGLM3's format_tool_alpaca.py makes of it: the API's documentation as the only tool; the
input; for every intermediate step the thought before "Action:", the call and its observation; the final thought and,
on the next line, the output. An instance that cannot be lifted is a reject of its own.
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role, to_json
from compiler.formats.common import parse_call, parse_text, read_columns
from compiler.formats.format import Format
from compiler.options import Names
from schemas.errors import Reason, RowError

_Lifted = list[Conversation | RowError]


def lift(row: dict[str, Any], columns: Names, tags: Names) -> _Lifted:  # noqa: ARG001
    """One conversation for each instance, or the error why there is none."""
    found = read_columns(row, columns)
    lifted: _Lifted = []
    for i, instance in enumerate(found["instances"]):
        try:
            messages = _messages(instance, f"/{columns['instances']}/{i}")
            lifted.append(Conversation(messages, [found["tools"]]))
        except RowError as error:
            lifted.append(error)
    return lifted


def _messages(instance: dict[str, Any], pointer: str) -> list[Message]:
    messages = [Message(Role.USER, instance["input"])]
    for i, ((action, parameters, react), observation) in enumerate(instance["intermediate_steps"]):
        at = f"{pointer}/intermediate_steps/{i}/0/1"
        arguments = parse_text(parameters, "the parameters of a call", Reason.TOOL_ARGUMENTS, at)
        call = parse_call({"name": action, "arguments": arguments}, at, at)
        result = observation if isinstance(observation, str) else to_json(observation)
        messages.append(Message(Role.ASSISTANT, react.split("Action:")[0].strip(), [call]))
        messages.append(Message(Role.TOOL, result, name=action))
    return [*messages, Message(Role.ASSISTANT, f"{instance['Final Thought']}\n{instance['output']}")]


FORMAT = Format(
    name="toolalpaca",
    lift=lift,
    columns={"tools": "NLDocumentation", "instances": "Instances"},
    ignorable=(
        "Name",
        "Description",
        "Category",
        "Introduction",
        "Link",
        "Functions",
        "Documentation",
        "Function_Description",
        "Function_Projection",
        "Instructions",
        "Golden_Answers",
        "external_tools",
    ),
)
