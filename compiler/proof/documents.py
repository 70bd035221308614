"""The certificate of documents: what a text becomes without any chat template.

| law | says |
|---|---|
| ids | our ids equal the published tokenizer's own, special tokens and all, with the document's end after them |
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
from compiler.proof.template import must, probes
from compiler.templates.document import document_segments
from compiler.templates.load import Template
from compiler.tokenizer.tokenizer import Tokenizer


def certify_documents(template: Template, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the certificate: checks made by law; no chat template takes part, so nothing is refused."""
    checks: Counter[str] = Counter()
    end = tokenizer.controls[template.document_end]
    texts = {probe.name: probe.conversation.messages[-1].content for probe in probes()}
    for name, text in texts.items():
        ours = _ids(text, template, tokenizer)
        official = [*tokenizer.official.encode(text, add_special_tokens=True).ids, end]
        must("ids", name, [tokenizer.token(i) for i in ours], [tokenizer.token(i) for i in official], checks)
        start = len(tokenizer.document_start)
        decoded = tokenizer.decode(ours[start:-1])
        must("decode", name, [tokenizer.normalize(decoded).strip()], [tokenizer.normalize(text).strip()], checks)
        if template.program.rendering.special_text == "allow":
            continue
        spelled = _ids(f"{text} {' '.join(list(tokenizer.controls)[:40])}.", template, tokenizer)
        found = [tokenizer.token(i) for i in spelled[start:] if tokenizer.is_control[i]]
        must("injection", name, found, [template.document_end], checks)
    return {
        "checks": dict(sorted(checks.items())),
        "refuses": {},
        "stops": [template.document_end],
        "merges_across_generation_boundary": 0,
    }


def _ids(text: str, template: Template, tokenizer: Tokenizer) -> list[int]:
    document = Conversation([Message(Role.DOCUMENT, text)])
    segments = document_segments(document, tokenizer, template)
    return encode([Rendered.of(document, segments, tokenizer, EVEN)], tokenizer)[0].ids.tolist()
