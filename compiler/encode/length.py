"""The length policy (decision 10): shorten conversations that are longer than --max-length.

Turns are dropped from the conversation and what is left is rendered and encoded again, so every law of masks holds
for the shorter example by construction. Only `cut` works on tokens. A preference pair keeps one context for both
replies, so it fits when both sides do. Lengths are what the model sees: an image counts its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compiler.conversation import Conversation, Message, Role
from compiler.encode.batch import Encoded, Stretch
from compiler.encode.system import put_before
from schemas.errors import Reason, RowError

POLICIES = ("turns", "last-turns", "reject", "cut")

Encode = Callable[[Conversation], list[Encoded]]
"""Encodes a conversation: one sequence, or the two of a pair."""

Fitted = tuple[Conversation, list[Encoded]]


def longest(sides: list[Encoded]) -> int:
    """The length of the longer side, in tokens."""
    return max(side.length for side in sides)


def fit(conversation: Conversation, sides: list[Encoded], max_length: int, policy: str, again: Encode) -> Fitted:
    """Shorten an example to `max_length` tokens; RowError(`too_long`) where the policy cannot."""
    length = longest(sides)
    if length <= max_length:
        return conversation, sides
    shorter: Fitted | None = None
    if policy == "turns":
        shorter = _first_that_fits(_prefixes(conversation, sides[0], max_length), max_length, again)
    elif policy == "last-turns":
        excess = min(side.length for side in sides) - max_length
        shorter = _first_that_fits(_suffixes(conversation, excess, sides[0]), max_length, again)
    elif policy == "cut":
        shorter = conversation, [_cut(side, max_length) for side in sides]
    if shorter is None:
        raise RowError(
            Reason.TOO_LONG, f"expected at most {max_length} tokens, found {length}; {_why(conversation, policy)}"
        )
    return shorter


def _why(conversation: Conversation, policy: str) -> str:
    earlier = sum(message.role is Role.USER for message in conversation.messages) > 1
    if policy == "turns" and earlier and _only_last(conversation):
        return (
            "only its last reply is trained, so no turn at its end can go; --overlength last-turns drops earlier ones"
        )
    detail = {"turns": "its first exchange does not fit", "last-turns": "its last exchange does not fit"}
    return detail.get(policy, "--overlength reject")


def _only_last(conversation: Conversation) -> bool:
    """Whether nothing but the last reply is trained: pairs, KTO, and one turn of a longer conversation."""
    last = len(conversation.messages) - 1
    return conversation.rejected is not None or conversation.desirable is not None or conversation.context >= last > 1


def _first_that_fits(candidates: list[Conversation], max_length: int, again: Encode) -> Fitted | None:
    for candidate in candidates:
        sides = again(candidate)
        if longest(sides) <= max_length:
            return candidate, sides
    return None


def _prefixes(conversation: Conversation, encoded: Encoded, max_length: int) -> list[Conversation]:
    """The conversations that end with an earlier reply, the longest first, leaving out hopeless ones."""
    if _only_last(conversation):
        return []
    candidates = []
    position = 0
    for stretch in encoded.stretches:
        position += stretch.length
        if stretch.generated and position <= max_length:
            candidates.append(stretch.message)
    replies = sorted(set(candidates), reverse=True)
    return [replace(conversation, messages=conversation.messages[: reply + 1]) for reply in replies]


def _suffixes(conversation: Conversation, excess: int, encoded: Encoded) -> list[Conversation]:
    """The conversations that keep the system messages and begin at a later user message, the longest first."""
    messages = conversation.messages
    first = next((i for i, message in enumerate(messages) if message.role is not Role.SYSTEM), 0)
    starts = [i for i, message in enumerate(messages) if message.role is Role.USER and i > first]
    # Stretches do not count the tokens that media stand for; with media no start is left out beforehand.
    before = {} if encoded.placed else _tokens_before(encoded.stretches, starts)
    systems = []
    for message in messages:
        if message.role is not Role.SYSTEM:
            break
        systems.append(message)
    # The text before a user message includes the system text, which is kept. So a start is left out only when dropping
    # everything before it would not be enough.
    return [
        replace(
            conversation,
            messages=[*systems, *_with_system(messages[start:], conversation.merged)],
            context=max(0, conversation.context - start + len(systems)),
        )
        for start in starts
        if conversation.merged or before.get(start, excess) >= excess
    ]


def _with_system(messages: list[Message], merged: str) -> list[Message]:
    """Put the system text that was merged into a dropped message before the first of those that are left."""
    return [put_before(messages[0], merged), *messages[1:]] if merged else messages


def _tokens_before(stretches: list[Stretch], starts: list[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    position = 0
    for stretch in stretches:
        if stretch.message in starts and stretch.message not in found:
            found[stretch.message] = position
        position += stretch.length
    return found


def _cut(encoded: Encoded, max_length: int) -> Encoded:
    """Keep the first tokens, as many as fit; an image or a video is kept whole or not at all."""
    keep, extra = max_length, 0
    placed = []
    for one in encoded.placed:
        grown = extra + one.num_tokens - one.count
        if one.end + grown > max_length:
            keep = min(one.start, max_length - extra)
            break
        extra = grown
        placed.append(one)
        keep = max_length - extra
    return encoded.between(0, keep, placed)


def pieces(encoded: Encoded, max_length: int) -> list[Encoded]:
    """Cut a document into pieces of `max_length` tokens and the rest; nothing predicts the first token of a piece.

    A rest of one token would train nothing: the piece before it gives it one more. Where that has only two, the token
    before it stands before it again, as its context.
    """
    length = len(encoded.ids)
    starts = list(range(0, length, max_length))
    if len(starts) > 1 and length - starts[-1] == 1 < max_length:
        starts[-1] -= 1
    ends = [*starts[1:], length]
    if len(starts) > 1 and ends[-2] - starts[-2] == 1 < max_length:
        ends[-2] += 1
    found = []
    for start, end in zip(starts, ends, strict=True):
        piece = encoded.between(start, end, [])
        piece.weights[0] = 0.0
        found.append(piece)
    return found
