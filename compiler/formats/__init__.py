"""Step 2, lift: the source formats. Each module declares one as `FORMAT`; `schemas/NAME.schema.json` checks its rows.

The cards in `registry/shapes/` make more of them: the same code and schema with other names of columns and roles.

format.py   what a format declares
common.py   what several formats share: columns, tools, calls, weights
turns.py    the order of turns that every conversation must have
kinds.py    which kind rows are of, and the columns that a kind needs
thread.py   messages made of the pieces of replies
joined.py   messages that stand in several columns of a row
marks.py    images and videos in place of <image> and <video>
screens/    the grammar of screen agents
the others  one source format each
"""

from __future__ import annotations

import registry
from compiler.formats import (
    agentnet,
    alpaca,
    alternating_texts,
    android_control,
    anthropic,
    atif,
    chatglm3,
    claude_code,
    codex,
    cogagent,
    conversation_pairs,
    conversational,
    dolci,
    gemini,
    glaive,
    glm4,
    hermes,
    human_assistant,
    implicit_prompt,
    llamafactory_v1,
    message_lists,
    ms_agent,
    oasst,
    openai,
    openai_preference,
    openai_responses,
    pretrain,
    prompt_response,
    query_response,
    screen_history,
    session_trace,
    sharegpt,
    toolalpaca,
    toolbench,
    xlam,
)
from compiler.formats.format import Format
from schemas.errors import UsageError, nearest

__all__ = ["FORMATS", "Format", "get"]

FORMATS = {
    format_.name: format_
    for format_ in (
        alpaca.FORMAT,
        ms_agent.FORMAT,  # before sharegpt, which reads its roles too
        hermes.FORMAT,  # before sharegpt, whose schema some of its rows fit too
        sharegpt.FORMAT,
        openai.FORMAT,
        anthropic.FORMAT,  # after openai: a row of texts alone fits both
        atif.FORMAT,
        llamafactory_v1.FORMAT,
        claude_code.FORMAT,
        codex.FORMAT,
        session_trace.FORMAT,
        chatglm3.FORMAT,
        prompt_response.FORMAT,
        query_response.FORMAT,
        conversation_pairs.FORMAT,
        toolbench.FORMAT,
        toolalpaca.FORMAT,
        cogagent.FORMAT,
        screen_history.FORMAT,
        agentnet.FORMAT,
        android_control.FORMAT,
        pretrain.FORMAT,
        conversational.FORMAT,
        openai_preference.FORMAT,
        human_assistant.FORMAT,
        alternating_texts.FORMAT,
        xlam.FORMAT,
        message_lists.FORMAT,
        gemini.FORMAT,
        glm4.FORMAT,
        dolci.FORMAT,
        glaive.FORMAT,
        oasst.FORMAT,
    )
}
"""By name. Where a file fits several formats alike, the first of them is chosen. Shapes come last."""
FORMATS |= {card["name"]: FORMATS[card["like"]].with_card(card) for card in registry.shapes()}
FORMATS |= {last.name: last for last in (openai_responses.FORMAT, implicit_prompt.FORMAT)}
"""These would read rows whose reply or prompt stands in a key that they do not read."""


def get(name: str, where: str) -> Format:
    """The format called `name`; an unknown name is a UsageError with the nearest one."""
    if name not in FORMATS:
        raise UsageError(where, f"unknown format {name!r}", nearest(name, FORMATS))
    return FORMATS[name]
