"""A text for pretraining as segments: no chat template, only what begins and ends a document (decision 18)."""

from __future__ import annotations

from compiler.conversation import Conversation, Segment
from compiler.tokenizer import Tokenizer


def document_segments(conversation: Conversation, tokenizer: Tokenizer, end: str) -> list[Segment]:
    """Return the text between the tokens that the tokenizer itself puts first (often none) and the document's end.

    All of it is trained but what stands first: nothing comes before it that could predict it (`fit.pieces`).
    """
    start = [Segment(tokenizer.token(token), control=token) for token in tokenizer.document_start]
    text = conversation.messages[0].content
    body = Segment(text, message=0, generated=True, boundary=True, fresh=True, weight=1.0)
    return [*start, *([body] if text else []), Segment(end, tokenizer.controls[end], 0, generated=True, weight=1.0)]
