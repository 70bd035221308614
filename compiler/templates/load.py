"""Which template to use: the tokenizer's own chat template, or a card by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import registry
from compiler.templates.guard import CUT
from compiler.templates.jinja import ChatTemplate
from compiler.templates.program import Program
from compiler.templates.rendering import Rendering
from compiler.tokenizer import Tokenizer
from schemas.errors import UsageError, nearest


@dataclass
class Template:
    """A program with its name, where it came from and how a reply's text starts."""

    name: str
    program: Program
    reply_start: str
    digest: str
    provenance: str


def load_template(name: str, tokenizer: Tokenizer, *, special_text: str = "text", skeletons: bool = True) -> Template:
    """Return the template called `name`; "auto" is the tokenizer's own chat template."""
    if name == "auto":
        sources = tokenizer.chat_templates
        if not sources:
            raise UsageError(
                f"--tokenizer {tokenizer.folder}", "it has no chat template",
                f"Name a template card with --template; {nearest('', registry.template_names())}",
            )  # fmt: skip
        plain = sources.get("default") or next(iter(sources.values()))
        with_tools = sources.get("tool_use", plain)
        provenance, reply_start, final_stop = "the tokenizer's chat template", "continued", None
    else:
        card = registry.template(name)
        missing = [token for token in card["needs"] if token not in tokenizer.controls]
        if missing:
            raise UsageError(
                f"--template {name}", f"the tokenizer has no token {missing[0]!r}",
                "Choose the tokenizer of a model that was trained with this template, or another template.",
            )  # fmt: skip
        plain = with_tools = registry.template_source(card["chat_template"])
        provenance, reply_start = card["provenance"], card["reply_start"]
        final_stop = card.get("final_stop")
    where = f"template {name} of {tokenizer.folder}"
    names = tokenizer.named_tokens if name == "auto" else {**tokenizer.named_tokens, "cut": CUT}
    rendering = Rendering(
        template=ChatTemplate(plain, names, where),
        tool_template=ChatTemplate(with_tools, names, where),
        controls=tokenizer.controls,
        control_pattern=tokenizer.control_pattern,
        stops=tokenizer.stops,
        reply_fresh=reply_start == "fresh",
        final_stop=final_stop,
        special_text=special_text,
    )
    digest = hashlib.sha256("\0".join([plain, with_tools, reply_start, final_stop or ""]).encode()).hexdigest()
    return Template(name, Program(rendering, skeletons), reply_start, digest, provenance)
