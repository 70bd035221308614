"""toolbench: the answer files of ToolBench's tree search, {"answer_generation": {train_messages, function, ...}}.

`train_messages` holds one list for every reply on the way to the answer: the messages up to that reply. Upstream makes
a training row of each list and trains only its last reply. Here, lists that continue one another become one
conversation in which all those replies are trained; where the search backtracked, another conversation begins. Every
reply is trained once, after exactly the messages that preceded it. A thought and the call after it are one reply. The
query and the search's remark on it are one user message, each on its own lines.
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import parse_call, parse_tools, read_columns
from compiler.formats.format import Format
from compiler.formats.turns import check_turns
from compiler.options import Names
from schemas.errors import Reason, RowError

_ROLES = {"system": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT, "function": Role.TOOL}

_List = list[dict[str, Any]]


def lift(row: dict[str, Any], columns: Names, tags: Names) -> list[Conversation]:  # noqa: ARG001
    """The conversations of a search, most often one; together they are one group."""
    answer, pointer = read_columns(row, columns)["answer"], f"/{columns['answer']}"
    if not answer["valid_data"]:
        what = "expected a search that found an answer (valid_data), found one that did not"
        raise RowError(Reason.TURN_ORDER, what, f"{pointer}/valid_data")
    tools = parse_tools(answer["function"], f"{pointer}/function")
    found = []
    for number, trained in _trained(answer["train_messages"]).items():
        at = f"{pointer}/train_messages/{number}"
        conversation = _conversation(answer["train_messages"][number], trained, tools, at)
        check_turns(conversation, at)
        found.append(conversation)
    if not found:
        raise RowError(Reason.TURN_ORDER, "expected a reply that calls a function, found none", pointer)
    if len(found) > 1:
        group = found[0].fingerprint()
        for conversation in found:
            conversation.group = group
    return found


def _trained(lists: list[_List]) -> dict[int, set[int]]:
    """The numbers of the trained messages, by the number of each list that no other list continues.

    A list that ends in a thought without its call is left out, as upstream does: the list of the call has both.
    """
    lasts = [messages[-1] for messages in lists]
    ends = [i for i, last in enumerate(lasts) if last["role"] == "assistant" and last.get("function_call")]
    trained: dict[int, set[int]] = {}
    for i in ends:
        size = len(lists[i])
        longest = max((j for j in ends if lists[j][:size] == lists[i]), key=lambda j: (len(lists[j]), -j))
        trained.setdefault(longest, set()).add(size - 1)
    return trained


def _conversation(source: _List, trained: set[int], tools: Any, pointer: str) -> Conversation:
    messages: list[Message] = []
    places: list[int] = []
    for i, raw in enumerate(source):
        role = _ROLES[raw["role"]]
        message = Message(role, raw.get("content") or "", name=raw.get("name"))
        if role is Role.ASSISTANT:
            message.weight = None if i in trained else 0.0
            if raw.get("function_call"):
                at = f"{pointer}/{i}/function_call"
                message.calls = [parse_call(raw["function_call"], at, f"{at}/arguments")]
        if messages and _goes_on(messages[-1], message):
            message.content = "\n".join(filter(None, (messages.pop().content, message.content)))
            places.pop()
        messages.append(message)
        places.append(i)
    return Conversation(messages, tools, places=places)


def _goes_on(before: Message, message: Message) -> bool:
    """Whether two messages belong together: a thought and its call, or the query and the search's remark on it."""
    return before.role is message.role and message.role in (Role.ASSISTANT, Role.USER) and not before.calls


FORMAT = Format(
    name="toolbench",
    lift=lift,
    columns={"answer": "answer_generation"},
    ignorable=(
        "win",
        "tree",
        "trys",
        "try_count",
        "forward_args",
        "compare_candidates",
        "total_tokens",
        "query",
        "query_count",
        "chain",
        "finish_type",
        "final_answer",
        "valid",
        "method",
    ),
)
