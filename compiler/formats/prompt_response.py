"""prompt_response: a prompt and its response, ChatGLM3's input-output form, with ChatGLM's history.

It is read as alpaca with one column for the instruction.
"""

from __future__ import annotations

from compiler.formats import alpaca
from compiler.formats.format import Format
from compiler.formats.marks import MEDIA_COLUMNS

FORMAT = Format(
    name="prompt_response",
    lift=alpaca.lift,
    columns={
        "prompt": "prompt",
        "response": "response",
        "history": "history",
        "system": "system",
        "tools": "tools",
        **MEDIA_COLUMNS,
    },
)
