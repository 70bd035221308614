"""The certificate of documents: what a text becomes without a chat template.

| law | says |
|---|---|
| ids | our ids equal the official ids, special tokens and all, followed by the token that ends a document |
| decode | the ids decode to the text |
| injection | control tokens spelled in a text stay text |
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.encode.shapes import Rendered
from compiler.encode.tokens import encode
from compiler.encode.weigh import EVEN
from compiler.proof.laws import must_be_equal
from compiler.proof.probes import SPELLED, probes
from compiler.templates.document import document_segments
from compiler.templates.load import Template
from compiler.tokenizer.tokenizer import Tokenizer


def certify_documents(template: Template, tokenizer: Tokenizer) -> dict[str, Any]:
    """Check the laws on the last text of every probe. No chat template takes part, so nothing is refused."""
    checks: Counter[str] = Counter()
    start, end = len(tokenizer.document_start), template.document_end
    for probe in probes():
        text = probe.conversation.messages[-1].content
        ours = _ids(text, template, tokenizer)
        official = [*tokenizer.official.encode(text, add_special_tokens=True).ids, tokenizer.controls[end]]
        must_be_equal(checks, "ids", probe.name, _tokens(ours, tokenizer), _tokens(official, tokenizer))
        decoded = tokenizer.normalize(tokenizer.decode(ours[start:-1])).strip()
        must_be_equal(checks, "decode", probe.name, [decoded], [tokenizer.normalize(text).strip()])
        if template.program.rendering.special_text != "allow":
            spelled = _ids(f"{text} {' '.join(list(tokenizer.controls)[:SPELLED])}.", template, tokenizer)
            controls = [i for i in spelled[start:] if tokenizer.is_control[i]]
            must_be_equal(checks, "injection", probe.name, _tokens(controls, tokenizer), [end])
    return {
        "checks": dict(sorted(checks.items())),
        "refuses": {},
        "stops": [end],
        "merges_across_generation_boundary": 0,
    }


def _ids(text: str, template: Template, tokenizer: Tokenizer) -> list[int]:
    document = Conversation([Message(Role.DOCUMENT, text)])
    segments = document_segments(document, tokenizer, template)
    return encode([Rendered.of(document, segments, tokenizer, EVEN)], tokenizer)[0].ids.tolist()


def _tokens(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token(i) for i in ids]
