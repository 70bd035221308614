"""The slow derivation (`compiler/reference.py`) with the facts of real models: what the laws hold the fast way against.

The facts share no code with what is checked: Jinja set up as `transformers` sets it up, and Hugging Face's tokenizer
with its added tokens taken out.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jinja2
import jinja2.ext
import numpy as np
from hypothesis import assume
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as HFTokenizer

import registry
from compiler import reference
from compiler.conversation import Conversation, Role
from compiler.encode.batch import Encoded
from compiler.encode.weigh import EVEN, Policy
from compiler.reference import CUT
from compiler.templates.program import Program
from tests.support import families
from tests.support.conversations import conversations
from tests.support.encoded import encode_segments
from tests.support.shared import shared, tools

USER, ASSISTANT, SYSTEM, TOOL = Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL
IGNORED = -100


def jinja_environment() -> ImmutableSandboxedEnvironment:
    """Jinja as `transformers` sets it up, with ChatGLM3's way of writing arguments."""
    environment = families.jinja_environment()
    environment.filters["python_arguments"] = lambda given: ", ".join(f"{k}={python_text(v)}" for k, v in given.items())
    return environment


def tokenizer_folder(name: str) -> Path:
    return registry.DEMO_TOKENIZER if name == "demo" else shared("tokenizers", name)


@cache
def tokenizer_spec(name: str) -> dict[str, Any]:
    """A parsed tokenizer.json. Where a family has none, the one that the compiler makes (see tests/test_convert.py)."""
    file = tokenizer_folder(name) / "tokenizer.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else tools(name, name)[0].files.spec()
    return found


@cache
def official_tokenizer(name: str) -> HFTokenizer:
    return HFTokenizer.from_str(json.dumps(tokenizer_spec(name)))


@cache
def bare_tokenizer(name: str) -> HFTokenizer:
    """A tokenizer without added tokens, and without the space that sentencepiece puts first."""
    spec = tokenizer_spec(name) | {"added_tokens": [], "post_processor": None}
    if spec["decoder"]["type"] != "ByteLevel":
        spec["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return HFTokenizer.from_str(json.dumps(spec))


@dataclass
class Case:
    """A tokenizer with a template, what its conversations may hold, and facts about it that are stated here by hand."""

    tokenizer: str
    template: str
    stop: str
    """What ends a reply; with `next_role`, what ends the last one."""
    system: str = "anywhere"
    tools: bool = True
    opens: str = ""
    """What the template writes in a reply before the row's own words."""
    fresh_replies: bool = False
    """A reply is encoded separately from what precedes it."""
    next_role: bool = False
    """The token of the next role ends a reply."""

    def __str__(self) -> str:
        return f"{self.tokenizer}/{self.template}"

    @cached_property
    def folder(self) -> Path:
        return tokenizer_folder(self.tokenizer)

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "tokenizer_config.json").read_text())

    @cached_property
    def controls(self) -> dict[str, int]:
        return {token["content"]: token["id"] for token in tokenizer_spec(self.tokenizer)["added_tokens"]}

    @cached_property
    def control_ids(self) -> frozenset[int]:
        return frozenset(self.controls.values())

    @cached_property
    def control(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.controls, key=len, reverse=True))))

    @property
    def sentencepiece(self) -> bool:
        return self.tokenizer in ("mistral", "chatglm3")

    @property
    def official(self) -> HFTokenizer:
        return official_tokenizer(self.tokenizer)

    @cached_property
    def source(self) -> str:
        """The chat template."""
        if self.template == "auto":
            return self.config["chat_template"]
        return (Path(registry.__file__).parent / "templates" / f"{self.template}.jinja").read_text()

    @cached_property
    def _jinja(self) -> jinja2.Template:
        return jinja_environment().from_string(self.source)

    def render(self, messages: list[dict[str, Any]], tool_list: list[Any] | None, prompt: bool = False) -> str:
        """The official rendering, with a `CUT` where a card says that two texts are encoded separately."""
        named = {k: self.config[k] for k in ("bos_token", "eos_token") if self.config.get(k)}
        return self._jinja.render(messages=messages, tools=tool_list, add_generation_prompt=prompt, cut=CUT, **named)

    def normalize(self, text: str) -> str:
        """The text as the tokenizer reads it: composed for Qwen, unchanged for Mistral."""
        return self.official.normalizer.normalize_str(text) if "qwen" in self.tokenizer or self is DEMO else text

    def encode(self, text: str, fresh: bool) -> list[int]:
        """The ids of a text in which no control token is recognised."""
        prefixed = " " + text if fresh and self.sentencepiece else text
        return bare_tokenizer(self.tokenizer).encode(prefixed, add_special_tokens=False).ids

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes an ordinary token stands for."""
        token = self.official.id_to_token(token_id) or ""
        if not self.sentencepiece:
            return bytes(_BYTE_OF[character] for character in token)
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens as they are spelled. No space is added or removed."""
        names = {number: text.encode() for text, number in self.controls.items()}
        return b"".join(names.get(i) or self.bytes_of(i) for i in map(int, ids)).decode()

    def conversations(self, **options: Any) -> st.SearchStrategy[Conversation]:
        return conversations(system=self.system, tools=self.tools, **options)

    @property
    def program(self) -> Program:
        return tools(self.tokenizer, self.template)[1].program

    @cached_property
    def facts(self) -> reference.ModelFacts:
        """The same as functions, for the slow derivation."""
        return reference.ModelFacts(
            render=self.render,
            encode=self.encode,
            bytes_of=self.bytes_of,
            normalize=self.normalize,
            controls=self.controls,
            stop=self.stop,
            next_role=self.next_role,
            prefix=self.sentencepiece,
            fresh_replies=self.fresh_replies,
            opens=self.opens,
        )

    def compile(self, conversation: Conversation, policy: Policy = EVEN) -> Encoded:
        """The result of the code under test."""
        loaded, template = tools(self.tokenizer, self.template)
        return encode_segments(conversation, template.program.joined(conversation), loaded, policy)


def python_text(value: Any) -> str:
    """A value's repr, with the characters of plane 16, which the compiler uses as marks, unescaped."""
    escape = re.compile(r"(?<!\\)((?:\\\\)*)\\U0010([0-9a-f]{4})")
    return escape.sub(lambda match: match[1] + chr(int("10" + match[2], 16)), repr(value))


def _byte_of() -> dict[str, int]:
    """GPT-2's table of printable characters for bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_of()


class Reference(reference.Reference):
    """The slow derivation of one conversation's columns, with the facts of a case, and what laws ask of it besides."""

    def __init__(
        self,
        case: Case,
        conversation: Conversation,
        policy: Callable[[str, int], list[float]] = lambda reply, _: [1.0] * len(reply),
    ) -> None:
        super().__init__(conversation, case.facts, policy)

    @cached_property
    def emitted(self) -> list[str]:
        """The control tokens that the template wrote, in order."""
        return self.control.findall(self.disguised)

    @cached_property
    def replies(self) -> list[reference.Generated]:
        found = super().replies
        for i, start, stop, _ in found:
            alone = self.render(i + 1).replace(CUT, "")
            assert self.disguised.startswith(alone[:stop])
            assert alone.startswith(self.render(i, prompt=True).replace(CUT, ""))
            assert start <= stop
            assert not self.model.next_role or alone.endswith(self.model.stop)
        return found

    def encode(self, run: reference.TextRun) -> list[tuple[int, float]]:
        """No test of weights composes characters of two weights."""
        if not run.control:
            weights = self.weights[run.start : run.start + len(run.text)]
            groups = itertools.groupby(zip(weights, run.text, strict=True), key=lambda pair: pair[0])
            apart = "".join(self.model.normalize("".join(c for _, c in group)) for _, group in groups)
            assume(apart == self.model.normalize(run.text))
        return super().encode(run)

    @property
    def columns(self) -> list[tuple[int, float]]:
        """What the two columns should be, at the precision they have."""
        return [(i, float(np.float32(weight))) for i, weight in self.tokens]

    def decoded(self, start: int = 0, end: int | None = None) -> str:
        """The text that ids decode to, with a space before each text that sentencepiece encodes as a new one."""
        return "".join(
            (" " if run.fresh and not run.control and self.model.prefix else "") + run.text
            for run in self.runs
            if start <= run.start < (len(self.text) if end is None else end)
        )

    @property
    def generated(self) -> list[int]:
        """The reply that each token belongs to, or -1. No token belongs to two."""
        found: list[int] = []
        for run in self.runs:
            owner = next((r.message for r in self.replies if r.start <= run.start < r.end), -1)
            found += [owner] * (1 if run.control else len(self.model.encode(run.text, run.fresh)))
        return found


def react_weights(reply: str, begin: int) -> list[float]:
    """One weight per character of a reply, line by line: only what opens a line can be a keyword."""
    keywords = registry.weights("react")["keywords"]
    weights = [1.0] * begin
    content = 1.0
    for line in re.split("(?<=\n)", reply[begin:]):
        found = next((word for word in sorted(keywords, key=len, reverse=True) if line.startswith(word)), "")
        if found:
            weights += [keywords[found]["keyword"]] * len(found)
            content = keywords[found]["content"]
        weights += [content] * (len(line) - len(found))
    return weights


CASES = [
    Case("demo", "auto", "<|im_end|>"),
    Case("qwen2.5", "auto", "<|im_end|>"),
    Case("qwen2.5", "chatml", "<|im_end|>"),
    Case("qwen2.5", "qwen", "<|im_end|>", tools=False),
    Case("mistral", "auto", "</s>", system="none", tools=False),
    Case("mistral", "mistral", "</s>", system="first", opens=" ", fresh_replies=True),
]
ROLE_STOPS = [
    Case("chatglm3", "chatglm3", "</s>", opens="\n", fresh_replies=True, next_role=True),
    Case("glm4", "glm4", "<|user|>", opens="\n", fresh_replies=True, next_role=True),
]
DEMO = CASES[0]
