"""Tools as the system text of ReAct, in the layout of ms-swift's `react_en` and its Chinese counterpart.

The English text is exactly what ms-swift (3602360a) renders. The keywords are English in both languages, because a
harness looks for them.
"""

from __future__ import annotations

from typing import Any, Literal

from compiler.conversation import to_json
from schemas.errors import Reason, RowError

Language = Literal["en", "zh"]

_TOOL = {
    "en": "{name}: Call this tool to interact with the {name} API. What is the {name} API useful for?",
    "zh": "{name}: 调用此工具可以使用 {name} API。{name} API 有什么用？",
}
_PARAMETERS = {
    "en": "Parameters: {parameters} Format the arguments as a JSON object.",
    "zh": "参数: {parameters} 请把输入写成一个 JSON 对象。",
}
_PROMPT = {
    "en": """\
Answer the following questions as best you can. You have access to the following tools:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!
""",
    "zh": """\
请尽力回答用户的问题。你可以调用下列工具：

{tools}

回答时请遵循这样的格式：

Question: 用户提出的、需要回答的问题
Thought: 每一步都先想清楚接下来做什么
Action: 要采取的行动，只能是 [{names}] 之一
Action Input: 这次行动的输入
Observation: 这次行动返回的结果
...（Thought/Action/Action Input/Observation 可以没有，也可以重复多次）
Thought: 我已经知道答案了
Final Answer: 对用户问题的最终回答

现在开始！
""",
}
_KEYS = {"name", "description", "parameters", "strict"}
"""The keys of a function that the text can express, and `strict`, which instructs a server and not the model."""


def tools_prompt(tools: Any, language: Language, pointer: str = "") -> str:
    """The system text that lists the tools; a tool that it cannot express is a RowError at `pointer`.

    A tool is an object with `name`, `description` and `parameters`, or {"type": "function", "function": such an
    object}. A missing description is left out; missing parameters are {}, as OpenAI defines them.
    """
    problem = _problem(tools)
    if problem is not None:
        raise RowError(Reason.TEMPLATE_REFUSED, f"ReAct text cannot list the tools: {problem}", pointer)
    functions = [tool.get("function", tool) for tool in tools]
    names = ",".join(function["name"] for function in functions)
    entries = "\n\n".join(_entry(function, language) for function in functions)
    return _PROMPT[language].format(tools=entries, names=names)


def _problem(tools: Any) -> str | None:
    """Why the tools cannot be listed; None where they can."""
    if not isinstance(tools, list):
        return "expected a list"
    for i, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if function is None or not isinstance(name, str):
            return f"expected tool {i} to be an object with a name"
        if not isinstance(function.get("description") or "", str):
            return f"expected the description of {name!r} to be text"
        known = _KEYS | ({"type"} if function is tool else set())
        lost = [key for key, value in function.items() if key not in known and value is not None]
        if lost:
            return f"{name!r} has {', '.join(map(repr, lost))}, which would be lost"
    return None


def _entry(function: dict[str, Any], language: Language) -> str:
    name, parameters = function["name"], function.get("parameters")
    described = function.get("description") or ""
    shown = to_json({} if parameters is None else parameters)
    texts = (_TOOL[language].format(name=name), described, _PARAMETERS[language].format(parameters=shown))
    return " ".join(text for text in texts if text)
