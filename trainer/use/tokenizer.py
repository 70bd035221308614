"""The tokenizer of a checkpoint's set, and its chat template in the form that Transformers reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import registry
from schemas.errors import IntegrityError
from schemas.manifest import Manifest, files_of
from trainer.use.checkpoint import TrainedModel


def copy_tokenizer(trained: TrainedModel, folder: Path) -> str:
    """Copy the set's tokenizer files, digests checked, and a card's chat template; return a note about the template."""
    for name, digest in trained.manifest["files"].items():
        if name.startswith("tokenizer/"):
            source = files_of(trained.set, trained.manifest) / name
            data = source.read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise IntegrityError(str(source), "is damaged or was edited", "Compile the set again.")
            target = folder / name.removeprefix("tokenizer/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    template, note = card_template(trained.manifest)
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return note


def card_template(manifest: Manifest) -> tuple[str | None, str]:
    """The chat template that replaces the tokenizer's own (None = keep that, "" = none at all), and a note about it.

    A card's Jinja becomes a Transformers template by leaving out its marks for where text is cut before encoding.
    """
    name = manifest["template"]["name"]
    if name == "document":
        return None, "It was trained on documents, without a chat template."
    if name == "auto":
        return None, "The chat template is the tokenizer's own."
    text = registry.template_source(registry.template(name)["chat_template"])
    if "python_arguments" in text:
        note = f"No chat template was written: {name} writes calls as Python, which Transformers' templates cannot."
        return "", note
    plain = text.replace("{{ cut }}", "")
    cut = " A text that begins with a line break may be encoded otherwise than in training." if plain != text else ""
    return plain, f"The chat template is the card {name}.{cut}"
