"""Conversations encoded for tests: from segments, and as the texts of weighed runs."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, pairwise

from compiler.conversation import Conversation, Segment
from compiler.encode.batch import Encoded
from compiler.encode.replies import choose_replies
from compiler.encode.shapes import Rendered
from compiler.encode.tokens import encode
from compiler.encode.weigh import EVEN, Policy
from compiler.tokenizer.tokenizer import Tokenizer


def encode_segments(
    conversation: Conversation, segments: list[Segment], tokenizer: Tokenizer, policy: Policy = EVEN
) -> Encoded:
    """The columns of a conversation, given its rendered segments."""
    conversation = choose_replies(policy, conversation, Counter())
    return encode([Rendered.of(conversation, segments, tokenizer, policy)], tokenizer)[0]


def weighed_texts(
    conversation: Conversation, segments: list[Segment], tokenizer: Tokenizer, policy: Policy
) -> list[tuple[str, float, bool]]:
    """(text, weight, generated) of the pieces of every run, in order."""
    row = Rendered.of(conversation, segments, tokenizer, policy)
    shape = row.shape
    shape.fill([row])
    found = []
    for number, text_number in enumerate(shape.text_number):
        text = shape.names[number] if text_number < 0 else row.texts[text_number]
        lengths, origins = row.pieces.get(number, ([len(text)], [number]))
        edges = pairwise([0, *accumulate(lengths)])
        for (start, end), one in zip(edges, origins, strict=True):
            found.append((text[start:end], shape.origins[one].weight, shape.origins[one].generated))
    return found
