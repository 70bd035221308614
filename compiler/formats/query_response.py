"""query_response: ms-swift's {query, response} with optional history, system, tools, media; pairs and KTO.

It is read as alpaca without an instruction.
"""

from __future__ import annotations

from compiler.formats import alpaca
from compiler.formats.format import CHAT_KINDS, Format
from compiler.formats.marks import MEDIA_COLUMNS, OBJECTS_COLUMN

FORMAT = Format(
    name="query_response",
    lift=alpaca.lift,
    columns={
        "query": "query",
        "response": "response",
        "history": "history",
        "system": "system",
        "tools": "tools",
        **MEDIA_COLUMNS,
        **OBJECTS_COLUMN,
        "rejected": "rejected_response",
        "kto_tag": "label",
    },
    ignorable=("tag",),
    kinds=CHAT_KINDS,
)
