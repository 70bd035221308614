"""The length policy (decision 10): what happens to a conversation that is longer than --max-length.

Turns are dropped from the conversation and what is left is rendered and encoded again, so every law of masks holds
for the shorter example by construction. Only `cut` works on tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compiler.conversation import Conversation, Role
from compiler.encode import Encoded, Stretch
from schemas.errors import Reason, RowError

POLICIES = ("turns", "last-turns", "reject", "cut")

Encode = Callable[[Conversation], Encoded]


def fit(conversation: Conversation, encoded: Encoded, max_length: int, policy: str, again: Encode) -> Encoded:
    """Return the example at no more than `max_length` tokens; a RowError(`too_long`) where the policy cannot."""
    length = len(encoded.ids)
    if length <= max_length:
        return encoded
    shorter = None
    if policy == "turns":
        shorter = _first_that_fits(_prefixes(conversation, encoded, max_length), max_length, again)
    elif policy == "last-turns":
        shorter = _first_that_fits(_suffixes(conversation, length - max_length, encoded), max_length, again)
    elif policy == "cut":
        shorter = _cut(encoded, max_length)
    if shorter is None:
        detail = {"turns": "its first exchange does not fit", "last-turns": "its last exchange does not fit"}
        why = detail.get(policy, "--overlength reject")
        raise RowError(Reason.TOO_LONG, f"expected at most {max_length} tokens, found {length}; {why}")
    return shorter


def _first_that_fits(candidates: list[Conversation], max_length: int, again: Encode) -> Encoded | None:
    for candidate in candidates:
        encoded = again(candidate)
        if len(encoded.ids) <= max_length:
            return encoded
    return None


def _prefixes(conversation: Conversation, encoded: Encoded, max_length: int) -> list[Conversation]:
    """Return the conversations that end with an earlier reply, the longest first, leaving out hopeless ones."""
    candidates = []
    position = 0
    for stretch in encoded.stretches:
        position += stretch.length
        if stretch.generated and position <= max_length:
            candidates.append(stretch.message)
    replies = sorted(set(candidates), reverse=True)
    return [replace(conversation, messages=conversation.messages[: reply + 1]) for reply in replies]


def _suffixes(conversation: Conversation, excess: int, encoded: Encoded) -> list[Conversation]:
    """Return the conversations that keep the system messages and begin at a later user message, the longest first."""
    messages = conversation.messages
    starts = [i for i, message in enumerate(messages) if message.role is Role.USER][1:]
    before = _tokens_before(encoded.stretches, starts)
    systems = []
    for message in messages:
        if message.role is not Role.SYSTEM:
            break
        systems.append(message)
    # What stands before a user message includes the system text that is kept, so a start is only left out when even
    # dropping everything before it would not be enough.
    return [
        replace(conversation, messages=[*systems, *messages[start:]])
        for start in starts
        if before.get(start, excess) >= excess
    ]


def _tokens_before(stretches: list[Stretch], starts: list[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    position = 0
    for stretch in stretches:
        if stretch.message in starts and stretch.message not in found:
            found[stretch.message] = position
        position += stretch.length
    return found


def _cut(encoded: Encoded, max_length: int) -> Encoded:
    stretches, left = [], max_length
    for stretch in encoded.stretches:
        if left > 0:
            stretches.append(replace(stretch, length=min(stretch.length, left)))
        left -= stretch.length
    return Encoded(encoded.ids[:max_length], encoded.weights[:max_length], stretches)
