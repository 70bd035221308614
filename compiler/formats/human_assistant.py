r"""human_assistant: pairs of whole dialogues as text, "\n\nHuman: ... \n\nAssistant: ...", as in Anthropic's HH."""

from __future__ import annotations

import re
from typing import Any

from compiler.conversation import Conversation, Kind, Message, Role
from compiler.formats.common import complete
from compiler.formats.format import Format
from compiler.formats.joined import shared
from compiler.options import Names
from schemas.errors import Reason, RowError

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")
_ROLES = {"Human": Role.USER, "Assistant": Role.ASSISTANT}


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation: the turns that both dialogues begin with, then the last reply of each."""
    dialogues = []
    for name in ("chosen", "rejected"):
        _, *pieces = _TURN.split(row[str(columns[name])])
        dialogues.append(list(zip(pieces[::2], pieces[1::2], strict=True)))
    same = shared(*dialogues)
    for name, turns in zip(("chosen", "rejected"), dialogues, strict=True):
        if len(turns) != same + 1 or turns[same][0] != "Assistant":
            what = "expected dialogues that are equal up to their last reply, found another turn that differs"
            raise RowError(Reason.TURN_ORDER, what, f"/{columns[name]}")
    messages = [Message(_ROLES[who], text) for who, text in dialogues[0][:same]]
    replies = {name: turns[same][1] for name, turns in zip(("chosen", "rejected"), dialogues, strict=True)}
    return complete(replies, columns, messages)


FORMAT = Format(
    name="human_assistant",
    lift=lift,
    columns={"chosen": "chosen", "rejected": "rejected"},
    kinds=(Kind.PREFERENCE,),
)
