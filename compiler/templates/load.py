"""Load a template: the tokenizer's own chat template, a card by name, or none for documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import registry
from compiler.media.rules import load_vision
from compiler.templates.guard import CUT
from compiler.templates.jinja import ChatTemplate
from compiler.templates.keep import keeping
from compiler.templates.markup import NO_VISION
from compiler.templates.program import Program
from compiler.templates.rendering import Rendering
from compiler.tokenizer.tokenizer import Tokenizer
from schemas.errors import UsageError, nearest

DOCUMENT = "document"
"""The name of the template of documents, which only says what begins and what ends one."""
_NO_TURNS = "{{ raise_exception('a document has no turns') }}"


@dataclass
class Template:
    """A program with its name, its provenance and the start of a reply's text."""

    name: str
    program: Program
    reply_start: str
    digest: str
    provenance: str
    document_end: str
    """The token after a document; "" where the tokenizer names none."""
    keeps_thinking: bool = False
    """Whether the thinking of earlier replies must be kept."""
    variables: dict[str, bool] = field(default_factory=dict)
    """What it is rendered with for that, by name."""


def load_template(
    name: str,
    tokenizer: Tokenizer,
    *,
    special_text: str = "text",
    skeletons: bool = True,
    documents: bool = False,
    thinking: str = "template",
) -> Template:
    """The template called `name`; "auto" is the tokenizer's own chat template. Documents need none."""
    tokenizer.wait()
    card: dict[str, Any] = {} if name == "auto" else registry.template(name)
    missing = [token for token in card.get("needs", ()) if token not in tokenizer.controls]
    if missing:
        demo = tokenizer.files.folder == registry.DEMO_TOKENIZER
        which = "the demo tokenizer (no --tokenizer was given)" if demo else "the tokenizer"
        raise UsageError(
            f"--template {name}", f"{which} has no token {missing[0]!r}",
            "Choose the tokenizer of a model that was trained with this template, or another template.",
        )  # fmt: skip
    end = document_end(card, tokenizer)
    if documents:
        if not end:
            what = "pretraining documents end with the tokenizer's eos_token, and it names none"
            raise UsageError(f"--tokenizer {tokenizer.files.folder}", what, "Set eos_token in tokenizer_config.json.")
        plain = with_tools = _NO_TURNS
        provenance = f"{''.join(map(tokenizer.token, tokenizer.document_start))}TEXT{end}"
        name = DOCUMENT
    elif name == "auto":
        plain, with_tools = _own(tokenizer)
        provenance = "the tokenizer's chat template"
    else:
        plain = with_tools = registry.template_source(card["chat_template"])
        provenance = card["provenance"]
    where = f"template {name} of {tokenizer.files.folder}"

    def made(variables: Mapping[str, bool]) -> Rendering:
        return _rendering(plain, with_tools, card, tokenizer, where, variables)

    keeps = thinking == "keep" and not documents
    rendering, variables = keeping(made, where) if keeps else (made({}), {})
    rendering.special_text = special_text
    reply_start, final_stop = card.get("reply_start", "continued"), card.get("final_stop") or ""
    parts = [plain, with_tools, reply_start, final_stop]
    parts += [provenance] if documents else []
    parts += [rendering.vision.digest] if rendering.vision else []
    parts += [json.dumps(variables, sort_keys=True)] if variables else []
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    program = Program(rendering, skeletons)
    return Template(name, program, reply_start, digest, provenance, end, keeps, variables)


def _own(tokenizer: Tokenizer) -> tuple[str, str]:
    """The tokenizer's chat template, and the one it has for conversations with tools."""
    sources = tokenizer.chat_templates
    if not sources:
        raise UsageError(
            f"--tokenizer {tokenizer.files.folder}", "it has no chat template",
            f"Name a template card with --template; {nearest('', registry.template_names())}",
        )  # fmt: skip
    plain = sources.get("default") or next(iter(sources.values()))
    return plain, sources.get("tool_use", plain)


def _rendering(
    plain: str,
    with_tools: str,
    card: Mapping[str, Any],
    tokenizer: Tokenizer,
    where: str,
    variables: Mapping[str, bool],
) -> Rendering:
    names = {**tokenizer.named_tokens, **({"cut": CUT} if card else {}), **variables}
    vision, no_vision = None, NO_VISION
    try:
        vision = load_vision(tokenizer.files.processor, card.get("vision"), tokenizer.controls)
    except UsageError as error:  # text compiles without it; a row with an image reports this
        no_vision = f"{error.where}: {error.what}"
    return Rendering(
        template=ChatTemplate(plain, names, where),
        tool_template=ChatTemplate(with_tools, names, where),
        controls=tokenizer.controls,
        control_pattern=tokenizer.control_pattern,
        stops=tokenizer.stops,
        reply_fresh=card.get("reply_start") == "fresh",
        final_stop=card.get("final_stop"),
        vision=vision,
        no_vision=no_vision,
        takes_parts=not card,
    )


def document_end(card: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """The token after a document: the card's, the family's, or the tokenizer's eos; "" where there is none."""
    eos = tokenizer.named_tokens.get("eos_token", "")
    candidates = [card.get("document_end"), registry.document_ends().get(eos), eos]
    return next((token for token in candidates if token and token in tokenizer.controls), "")
