"""A text for pretraining as segments: no chat template, only what begins and ends a document (decision 18)."""

from __future__ import annotations

from compiler.conversation import Conversation, Segment
from compiler.templates.load import Template
from compiler.tokenizer.tokenizer import Tokenizer


def document_segments(conversation: Conversation, tokenizer: Tokenizer, template: Template) -> list[Segment]:
    """The text between the tokens that the tokenizer itself puts first (often none) and the document's end.

    All of it is trained but what stands first: nothing comes before it that could predict it (`fit.pieces`).
    """
    start = [Segment(tokenizer.token(token), control=token) for token in tokenizer.document_start]
    rendering, text, end = template.program.rendering, conversation.messages[0].content, template.document_end
    allowed = rendering.special_text == "allow"
    body = rendering.split_controls(text) if allowed else [Segment(text)] if text else []
    if body:
        body[0].boundary = body[0].fresh = True
    said = [*body, Segment(end, tokenizer.controls[end])]
    for segment in said:
        segment.message, segment.generated = 0, True
    return [*start, *said]
