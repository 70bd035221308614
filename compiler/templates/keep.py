"""`--thinking keep`: the variables with which a chat template keeps the thinking of earlier replies.

There is no standard name for them. `registry/thinking.json` lists those of real templates; a template is given the ones
that it reads, and what it then writes tells whether they do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import registry
from compiler.templates.rendering import Rendering
from compiler.templates.thinking import CLOSE, OPEN
from schemas.errors import UsageError

_THOUGHTS = ("zq first thought", "zq second thought", "zq third thought")


def keeping(made: Callable[[Mapping[str, bool]], Rendering], where: str) -> tuple[Rendering, dict[str, bool]]:
    """The rendering that keeps earlier thinking, and its variables: none where the template keeps it anyway.

    UsageError where the template has no variable that does it.
    """
    plain = made({})
    if _keeps(plain):
        return plain, {}
    switches = registry.thinking_switches()
    variables = {
        switch["name"]: switch["keep"]
        for switch in switches
        if plain.template.reads(switch["name"]) or plain.tool_template.reads(switch["name"])
    }
    if variables and _keeps(rendering := made(variables)):
        return rendering, variables
    names = ", ".join(variables or [switch["name"] for switch in switches])
    how = f"and {names} does not keep all of it" if variables else f"and reads no variable that keeps it ({names})"
    raise UsageError(
        "--thinking keep", f"{where} leaves out the thinking of earlier replies, {how}",
        "Leave --thinking out: each reply is then an example with the history that the model sees. Or put a chat "
        "template with such a variable into the tokenizer's folder as chat_template.jinja.",
    )  # fmt: skip


def _keeps(rendering: Rendering) -> bool:
    """Whether the template writes in history what it writes of the thinking of a last reply.

    Tried with three replies, and with calls where the template takes those. Of a reply with calls it may write no
    thinking at all; such rows are rejects in any case.
    """
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}, "id": "abcdefghi"}
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}

    def reply(thought: str, **more: Any) -> dict[str, Any]:
        if rendering.thinks:
            return {"role": "assistant", "content": "a", "reasoning_content": thought, **more}
        return {"role": "assistant", "content": f"{OPEN}\n{thought}\n{CLOSE}\n\na", **more}

    first, second, third = _THOUGHTS
    asked, result = {"role": "user", "content": "q"}, {"role": "tool", "content": "r", "name": "f"}
    talk = [asked, reply(first), asked, reply(second), asked, reply(third)]
    called = [asked, reply(first, tool_calls=[call]), result | {"tool_call_id": call["id"]}, reply(second)]
    found: list[tuple[bool, bool]] = []
    for messages, tools in ((talk, None), ([*called, asked, reply(third)], [tool])):
        whole = rendering.rendered_or_none(messages, tools)
        if whole is None:
            continue  # it takes none of these, which the certificate says
        lasts = [rendering.rendered_or_none(messages[:end], tools) or "" for end in (2, 4, 6)]
        found += [(thought in last, thought in whole) for thought, last in zip(_THOUGHTS, lasts, strict=True)]
        if not any(written for written, _ in found):
            return False
    return all(kept for written, kept in found if written)
