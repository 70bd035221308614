"""The clean-up rules of a dataset card, for texts that its rows are known to contain and no model should learn.

Rules are data (`clean` in `registry/datasets/*.json`). Nothing is cleaned silently: a rule that changes a row is
counted like a repair, a row that a rule drops is a reject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compiler.conversation import Conversation, Role
from schemas.errors import Reason, RowError


def clean(conversation: Conversation, rules: Mapping[str, Sequence[str]], pointer: str | None = None) -> list[str]:
    """Apply a card's rules to a conversation in place; return the names of the rules that changed it.

    1. `drop_system`: a first system message that equals one of the texts is removed.
    2. `drop_rows_with`: a row that still contains one of the texts, in upper or lower case, is a RowError.

    `pointer` points to the row's list of messages; None where it has none.
    """
    places = conversation.places if conversation.places is not None else list(range(len(conversation.messages)))
    applied = []
    first = next(iter(conversation.messages), None)
    if first is not None and first.role is Role.SYSTEM and first.content in rules.get("drop_system", ()):
        conversation.messages, places = conversation.messages[1:], places[1:]
        conversation.places = places
        conversation.context = max(conversation.context - 1, 0)
        applied.append("drop_system")
    said = list(zip(conversation.messages, places, strict=True))
    if conversation.rejected is not None:
        said.append((conversation.rejected, -1))  # it is not in the list of messages
    for message, place in said:
        content = message.content.lower()
        found = next((text for text in rules.get("drop_rows_with", ()) if text.lower() in content), None)
        if found is not None:
            where = "" if pointer is None or place < 0 else f"{pointer}/{place}"
            raise RowError(Reason.CLEANED, f"the {message.role} message contains {found!r} (drop_rows_with)", where)
    return applied
