"""The tokenizer of a checkpoint's set, and its chat template in the form that Transformers reads."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import registry
from schemas.errors import IntegrityError
from schemas.manifest import CONVERTED, Manifest, files_of
from trainer.use.checkpoint import TrainedModel

_CONVERTED = f"{CONVERTED}/"
_CALLS = re.compile(r"\{%- for tool_call in .*?\{%- endfor -%\}", re.DOTALL)
_NO_CALLS = "{%- if message.tool_calls -%}{{ raise_exception('this template cannot write calls') }}{%- endif -%}"


def copy_tokenizer(trained: TrainedModel, folder: Path, *, original: bool = False) -> str:
    """Copy the set's tokenizer files, digests checked, and a card's chat template; return a note about the template.

    Of a vocabulary file alone they are what it was converted to, unless they are to be `original`.
    """
    files = trained.manifest["files"]
    wanted = {name.removeprefix("tokenizer/"): name for name in files if name.startswith("tokenizer/")}
    converted = {name.removeprefix(_CONVERTED): name for name in files if name.startswith(_CONVERTED)}
    wanted = {name: path for name, path in wanted.items() if path not in converted.values()}
    for name, path in (wanted | ({} if original else converted)).items():
        source = files_of(trained.set, trained.manifest) / path
        data = source.read_bytes()
        if hashlib.sha256(data).hexdigest() != files[path]:
            raise IntegrityError(str(source), "is damaged or was edited", "Compile the set again.")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_switched(target.name, data, trained.manifest))
    template, note = card_template(trained.manifest)
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return note


def card_template(manifest: Manifest) -> tuple[str | None, str]:
    """The chat template that replaces the tokenizer's own (None = keep that), and a note about it.

    A card's Jinja becomes a Transformers template by leaving out its marks for where text is cut before encoding.
    """
    name = manifest["template"]["name"]
    if name == "document":
        return None, "It was trained on documents, without a chat template."
    if name == "auto":
        return None, "The chat template is the tokenizer's own." + _said(manifest)
    text = registry.template_source(registry.template(name)["chat_template"])
    said = ""
    if "python_arguments" in text:
        text = _CALLS.sub(_NO_CALLS, text)
        said = " It refuses messages with calls, which it would have to write as Python; results of tools it writes."
    # Sentencepiece puts a space before a text that it encodes alone.
    space = " " if f"{_CONVERTED}tokenizer.json" in manifest["files"] and name == "chatglm3" else ""
    if "{{ cut }}" in text and not space:
        said += " A text that begins with a line break may be encoded otherwise than in training."
    plain = _with_variables(_pictures(manifest) + text.replace("{{ cut }}", space), manifest)
    return plain, f"The chat template is the card {name}.{said}{_said(manifest)}"


_PARTS = """\
{%- set given = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is not defined or message.content is string or message.content is not iterable -%}
{%- set given.messages = given.messages + [message] -%}
{%- else -%}
{%- set said = namespace(text='') -%}
{%- for part in message.content -%}
{%- set said.text = said.text + (PICTURE if part.type == 'image' else TEXT) -%}
{%- endfor -%}
{%- set given.messages = given.messages + [dict(message, content=said.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = given.messages -%}
"""
"""Makes a text of a content that is a list of parts, with the placeholder of a picture where one stands."""


def _pictures(manifest: Manifest) -> str:
    """What a card needs to be given pictures as Transformers gives them; "" where the model takes none."""
    media = manifest.get("media")
    if media is None:
        return ""
    layout = registry.vision(media["name"])["image"]
    whole = "".join(layout[part] for part in ("open", "pad", "close") if part in layout)
    text = "(part.text | trim)" if layout.get("trims") else "part.text"
    return _PARTS.replace("PICTURE", repr(layout.get("written", whole))).replace("TEXT", text)


def _variables(manifest: Manifest) -> dict[str, bool]:
    """What the set's template was rendered with, so that it keeps the thinking of earlier replies."""
    return manifest["template"].get("variables", {})


def _said(manifest: Manifest) -> str:
    if not (variables := _variables(manifest)):
        return ""
    given = ", ".join(f"`{name}={str(value).lower()}`" for name, value in variables.items())
    return f" It keeps the thinking of earlier replies, as in training: {given} is its default here."


def _with_variables(template: str, manifest: Manifest) -> str:
    """The template with these variables as its defaults; a request may still give other values."""
    lines = [
        f"{{% set {name} = {name} | default({str(value).lower()}) %}}\n" for name, value in _variables(manifest).items()
    ]
    return "".join(lines) + template


def _switched(name: str, data: bytes, manifest: Manifest) -> bytes:
    """A file of the tokenizer, with the set's variables as defaults of the chat templates in it."""
    if not _variables(manifest) or name not in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        return data
    if name.endswith(".jinja"):
        return _with_variables(data.decode(), manifest).encode()
    config: dict[str, Any] = json.loads(data)
    found = config.get("chat_template")
    if isinstance(found, str):
        config["chat_template"] = _with_variables(found, manifest)
    elif isinstance(found, list):
        config["chat_template"] = [e | {"template": _with_variables(e["template"], manifest)} for e in found]
    return (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode()
