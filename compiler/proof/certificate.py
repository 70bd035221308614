"""The certificate of a template, kept in the cache: equal code, tokenizer and template give an equal one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.cache import records
from compiler.proof.documents import certify_documents
from compiler.proof.template import certify
from compiler.templates.load import DOCUMENT, Template
from compiler.tokenizer.tokenizer import Tokenizer


def certificate_of(template: Template, tokenizer: Tokenizer, special_text: str, cache: Path) -> dict[str, Any]:
    """Take the template's certificate from the cache, or check the template and keep the certificate there."""
    key = records.key_of("certificate", tokenizer.digest, template.digest, special_text)
    kept = records.load_record(cache, key)
    if kept is not None:
        return kept
    certificate = certify_documents(template, tokenizer) if template.name == DOCUMENT else certify(template, tokenizer)
    records.store_record(cache, key, certificate)
    return certificate
