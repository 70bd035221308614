"""The source formats: a table of names, each with its schema (`schemas/NAME.schema.json`), columns, tags and `lift`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.conversation import Conversation
from compiler.formats import (
    alpaca,
    chatglm3,
    cogagent,
    conversation_pairs,
    hermes,
    ms_agent,
    openai,
    pretrain,
    prompt_response,
    query_response,
    screen_history,
    sharegpt,
    toolalpaca,
    toolbench,
)
from compiler.options import Names
from schemas.errors import RowError, UsageError, nearest

__all__ = ["CHAT_KINDS", "FORMATS", "Format", "Names", "get"]

CHAT_KINDS = ("sft", "preference", "kto")


Lift = Callable[[dict[str, Any], Names, Names], Conversation | Sequence[Conversation | RowError]]
"""From a row and the names of its columns and tags: one conversation, or as many as the row makes, each by itself
a reject where it cannot be one."""


@dataclass(frozen=True)
class Format:
    """One source format. `weights` is the policy for `--weights auto`, `kinds` what its rows can be compiled to."""

    name: str
    columns: dict[str, str]
    tags: dict[str, str]
    lift: Lift
    weights: str = "none"
    turns: str | None = None
    """The column whose items are the turns, for pointers; None where the row is not a list of messages."""
    kinds: tuple[str, ...] = ("sft",)
    react: bool = False
    """Whether replies are ReAct text, which is checked."""


FORMATS = {
    f.name: f
    for f in (
        Format("alpaca", alpaca.COLUMNS, alpaca.TAGS, alpaca.lift, kinds=CHAT_KINDS),
        Format("hermes", hermes.COLUMNS, hermes.TAGS, hermes.lift, turns="messages"),  # its rows may fit sharegpt too
        Format("sharegpt", sharegpt.COLUMNS, sharegpt.TAGS, sharegpt.lift, turns="messages", kinds=CHAT_KINDS),
        Format(
            "ms_agent", ms_agent.COLUMNS, ms_agent.TAGS, ms_agent.lift, weights="react", turns="messages", react=True
        ),
        Format("openai", openai.COLUMNS, openai.TAGS, openai.lift, turns="messages", kinds=CHAT_KINDS),
        Format("chatglm3", chatglm3.COLUMNS, chatglm3.TAGS, chatglm3.lift, turns="messages"),
        Format("prompt_response", prompt_response.COLUMNS, prompt_response.TAGS, prompt_response.lift),
        Format("query_response", query_response.COLUMNS, query_response.TAGS, query_response.lift, kinds=CHAT_KINDS),
        Format(
            "conversation_pairs",
            conversation_pairs.COLUMNS,
            conversation_pairs.TAGS,
            conversation_pairs.lift,
            turns="messages",
        ),
        Format("toolbench", toolbench.COLUMNS, toolbench.TAGS, toolbench.lift),
        Format("toolalpaca", toolalpaca.COLUMNS, toolalpaca.TAGS, toolalpaca.lift),
        Format("cogagent", cogagent.COLUMNS, cogagent.TAGS, cogagent.lift, turns="messages"),
        Format("screen_history", screen_history.COLUMNS, screen_history.TAGS, screen_history.lift),
        Format("pretrain", pretrain.COLUMNS, pretrain.TAGS, pretrain.lift, kinds=("pretrain",)),
    )
}


def get(name: str, where: str) -> Format:
    """Return the format called `name`; an unknown name is a UsageError with the nearest one."""
    if name not in FORMATS:
        raise UsageError(where, f"unknown format {name!r}", nearest(name, FORMATS))
    return FORMATS[name]
