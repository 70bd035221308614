"""The source formats: a table of names, each with its schema (`schemas/NAME.schema.json`), columns, tags and `lift`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compiler.conversation import Conversation
from compiler.formats import alpaca, chatglm3, ms_agent, openai, prompt_response, sharegpt
from schemas.errors import UsageError, nearest

Names = dict[str, str | None]
"""What a user's columns (or tags) are called, by the name the format knows them by; None = the rows have none."""


@dataclass(frozen=True)
class Format:
    """One source format. `weights` is the policy for `--weights auto`."""

    name: str
    columns: dict[str, str]
    tags: dict[str, str]
    lift: Callable[[dict[str, Any], Names, Names], Conversation]
    weights: str = "none"
    turns: str | None = None
    """The column whose items are the turns, for pointers; None where the row is not a list of messages."""


FORMATS = {
    f.name: f
    for f in (
        Format("alpaca", alpaca.COLUMNS, alpaca.TAGS, alpaca.lift),
        Format("sharegpt", sharegpt.COLUMNS, sharegpt.TAGS, sharegpt.lift, turns="messages"),
        Format("ms_agent", ms_agent.COLUMNS, ms_agent.TAGS, ms_agent.lift, weights="react", turns="messages"),
        Format("openai", openai.COLUMNS, openai.TAGS, openai.lift, turns="messages"),
        Format("chatglm3", chatglm3.COLUMNS, chatglm3.TAGS, chatglm3.lift, turns="messages"),
        Format("prompt_response", prompt_response.COLUMNS, prompt_response.TAGS, prompt_response.lift),
    )
}


def get(name: str, where: str) -> Format:
    """Return the format called `name`; an unknown name is a UsageError with the nearest one."""
    if name not in FORMATS:
        raise UsageError(where, f"unknown format {name!r}", nearest(name, FORMATS))
    return FORMATS[name]
