"""implicit_prompt: pairs of texts that begin with the same prompt, with no prompt apart, as in TRL.

The prompt ends where the texts begin to differ, as TRL cuts it: a space there belongs to the replies. A word is
not cut: where the texts differ inside one, the replies begin with it.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from compiler.conversation import Conversation, Kind, Message, Role
from compiler.formats.common import complete
from compiler.formats.format import Format
from compiler.options import Names
from schemas.errors import Reason, RowError


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation: what both texts begin with, then what follows it in each."""
    texts = {name: row[str(columns[name])] for name in ("chosen", "rejected")}
    at = _end_of_prompt(*texts.values())
    prompt = texts["chosen"][:at]
    if not prompt.strip():
        what = "expected texts that begin with the same prompt, found different beginnings"
        raise RowError(Reason.SCHEMA, f"{what}; give the prompt in the key 'prompt'", f"/{columns['rejected']}")
    return complete({name: text[at:] for name, text in texts.items()}, columns, [Message(Role.USER, prompt)])


def _end_of_prompt(chosen: str, rejected: str) -> int:
    both = enumerate(zip(chosen, rejected, strict=False))
    at = next((i for i, (a, b) in both if a != b), min(len(chosen), len(rejected)))
    if any(_in_word(text, at) for text in (chosen, rejected)):
        while at and _is_letter(chosen[at - 1]):
            at -= 1
    return at - 1 if chosen[at - 1 : at] == " " else at


def _in_word(text: str, at: int) -> bool:
    return _is_letter(text[at - 1 : at]) and _is_letter(text[at : at + 1])


def _is_letter(character: str) -> bool:
    """Whether a character is a letter or digit of a script that puts spaces between words."""
    return bool(character) and unicodedata.category(character) in ("Lu", "Ll", "Lt", "Mn", "Nd")


FORMAT = Format(
    name="implicit_prompt",
    lift=lift,
    columns={"chosen": "chosen", "rejected": "rejected"},
    kinds=(Kind.PREFERENCE,),
)
