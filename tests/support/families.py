"""Tokenizer folders of model families that have no copy here: a real vocabulary with the family's control tokens.

Official chat templates are read from the `trl` package where it is installed (it is never imported: that needs
accelerate), and rendered by a Jinja environment of its own, set up as `transformers` sets it up.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

import registry
from compiler.conversation import Conversation
from compiler.templates.load import Template, load_template
from compiler.tokenizer.files import TokenizerFiles
from compiler.tokenizer.tokenizer import Tokenizer
from tests.support.shared import shared


def family_folder(
    tmp: Path,
    template: str,
    tokens: list[str],
    eos: str,
    bos: str | None,
    base: Path,
    *,
    marks: Collection[str] = (),
    swallow: Collection[str] = (),
) -> Path:
    """Write a tokenizer's folder into `tmp`: the vocabulary of `base`, with `tokens` as its only control tokens.

    `template` is the tokenizer's own chat template ("" = it has none). Of `tokens`, `marks` are not special (as
    `<tool_call>` is not in Qwen2.5), and `swallow` swallow the white space after them (as `<|user|>` does in Phi-3).
    A token that the vocabulary has keeps its number; the others are numbered on from its end.
    """
    spec = TokenizerFiles.find(base).spec()
    vocabulary: dict[str, int] = spec["model"]["vocab"]
    new = [token for token in tokens if token not in vocabulary]
    numbers = vocabulary | {token: max(vocabulary.values()) + 1 + i for i, token in enumerate(new)}
    added: list[dict[str, Any]] = [
        {
            "id": numbers[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": token in swallow,
            "normalized": False,
            "special": token not in marks,
        }
        for token in tokens
    ]
    added.sort(key=lambda token: token["id"])
    made = spec | {"added_tokens": added, "post_processor": None}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "bos_token": bos}
    if template:
        config["chat_template"] = template
    tmp.mkdir(parents=True, exist_ok=True)
    (tmp / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    (tmp / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    return tmp


@dataclass(frozen=True)
class Family:
    """The control tokens of a family, stated by hand. `base` is "demo" or a folder of ../shared/tokenizers."""

    tokens: str
    eos: str
    bos: str | None = None
    marks: str = ""
    swallow: str = ""
    base: str = "demo"

    def tokenizer(self, template: str = "") -> Tokenizer:
        """The family's tokenizer, with this text as its own chat template."""
        base = registry.DEMO_TOKENIZER if self.base == "demo" else shared("tokenizers", self.base)
        with tempfile.TemporaryDirectory() as folder:
            made = family_folder(
                Path(folder),
                template,
                self.tokens.split(),
                self.eos,
                self.bos,
                base,
                marks=self.marks.split(),
                swallow=self.swallow.split(),
            )
            return Tokenizer.load(made)


_DEEPSEEK_TOOLS = " ".join(
    f"<｜tool▁{name}｜>"
    for name in (
        "calls▁begin", "calls▁end", "call▁begin", "call▁end", "outputs▁begin", "outputs▁end", "output▁begin",
        "output▁end", "sep",
    )
)  # fmt: skip

FAMILIES = {
    "llama2": Family("<unk> <s> </s>", "</s>", "<s>", base="mistral"),
    "llama3": Family(
        "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|python_tag|>",
        "<|eot_id|>",
        "<|begin_of_text|>",
    ),
    "gemma": Family("<pad> <eos> <bos> <start_of_turn> <end_of_turn>", "<eos>", "<bos>"),
    "phi3": Family(
        "<unk> <s> </s> <|endoftext|> <|assistant|> <|system|> <|end|> <|user|>", "<|endoftext|>", "<s>"
    ),
    "deepseek": Family(
        f"<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> {_DEEPSEEK_TOOLS}",
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        marks=f"<｜User｜> <｜Assistant｜> {_DEEPSEEK_TOOLS}",
    ),
    "deepseek_llm": Family(
        "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"
    ),
    "llava": Family("<unk> <s> </s> <image>", "</s>", "<s>"),
    "internlm2": Family("<unk> <s> </s> <|im_end|> <|im_start|>", "</s>", "<s>"),
    "yi": Family("<|startoftext|> <|endoftext|> <|im_start|> <|im_end|>", "<|im_end|>", "<|startoftext|>"),
    "baichuan2": Family("<unk> <s> </s> <reserved_106> <reserved_107>", "</s>", "<s>"),
    "qwen": Family(
        "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|> "
        "<tool_call> </tool_call>",
        "<|im_end|>",
        marks="<tool_call> </tool_call>",
    ),
    "qwen3": Family(
        "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|> "
        "<tool_call> </tool_call> <tool_response> </tool_response> <think> </think>",
        "<|im_end|>",
        marks="<tool_call> </tool_call> <tool_response> </tool_response> <think> </think>",
    ),
    "glm4": Family(
        "<|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>", "<|endoftext|>"
    ),
}  # fmt: skip


@cache
def card_tools(card: str) -> tuple[Tokenizer, Template]:
    """A tokenizer of the card's family without a chat template, and the card."""
    loaded = FAMILIES[card].tokenizer()
    return loaded, load_template(card, loaded)


def _official_folder() -> Path:
    spec = importlib.util.find_spec("trl")
    for folder in [] if spec is None else spec.submodule_search_locations or ():
        if (Path(folder) / "chat_templates").is_dir():
            return Path(folder) / "chat_templates"
    pytest.skip("needs trl's collection of chat templates: pip install --no-deps trl")


def official_names() -> list[str]:
    """The names of the official chat templates in trl's collection. Skips the test where trl is not installed."""
    return sorted(path.stem for path in _official_folder().glob("*.jinja"))


def official_source(name: str) -> str:
    """An official chat template from trl's collection. Skips the test where trl is not installed."""
    path = _official_folder() / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"trl's collection has no {name}.jinja")
    return path.read_text(encoding="utf-8")


def jinja_environment() -> ImmutableSandboxedEnvironment:
    """Jinja as `transformers` sets it up."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, **({"ensure_ascii": False} | how))
    return environment


@cache
def _compiled(source: str) -> jinja2.Template:
    return jinja_environment().from_string(source)


def official_text(
    source: str,
    conversation: Conversation,
    family: Family,
    *,
    stop: int | None = None,
    prompt: bool = False,
    arguments_as_text: bool = False,
) -> str:
    """What an official template writes for the first messages; `arguments_as_text`: as JSON text, like OpenAI."""
    messages: list[dict[str, Any]] = []
    for message in conversation.messages[:stop]:
        entry: dict[str, Any] = {"role": message.role.value, "content": message.content}
        if message.calls:
            calls = [(call.name, call.arguments) for call in message.calls]
            entry["tool_calls"] = [
                {
                    "type": "function",
                    "function": {
                        "name": name,
                        "arguments": json.dumps(given, ensure_ascii=False) if arguments_as_text else given,
                    },
                }
                for name, given in calls
            ]
        if message.name is not None:
            entry["name"] = message.name
        messages.append(entry)
    names = {"eos_token": family.eos} | ({"bos_token": family.bos} if family.bos else {})
    rendered: str = _compiled(source).render(
        messages=messages, tools=conversation.tools, add_generation_prompt=prompt, **names
    )
    return rendered
