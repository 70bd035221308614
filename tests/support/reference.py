"""A second, slow compiler, against which the laws check the product's.

`Reference` shares no code with what it checks: Jinja set up as `transformers` sets it up, Hugging Face's tokenizer
with its added tokens taken out, one weight per character, one Python loop per token. It knows which control tokens
the template wrote because it renders a *disguise* of the row, in which every control token that the row spells is
replaced by as many hieroglyphs.
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
from compiler.conversation import Conversation, Role
from compiler.encode.tokens import Encoded
from compiler.encode.weigh import EVEN, Policy
from compiler.templates.program import Program
from tests.support import families
from tests.support.conversations import conversations
from tests.support.encoded import encode_segments
from tests.support.shared import shared, tools

USER, ASSISTANT, SYSTEM, TOOL = Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL
IGNORED = -100
SIGN, CUT, PLACE = 0x13000, "\U0001303e", "\U0001303f"
"""Hieroglyphs, which no row of the tests holds. Those from SIGN on stand for control tokens that a row spells."""


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


@dataclass
class Reply:
    """Where a reply's generated text lies in the rendered text; `stop` is where its stop token begins."""

    message: int
    start: int
    stop: int
    end: int


@dataclass
class Piece:
    """A text that is encoded at once, or one control token."""

    start: int
    text: str
    control: bool
    fresh: bool


@dataclass
class Reference:
    """The slow derivation of one conversation's columns; see the module's docstring."""

    case: Case
    conversation: Conversation
    policy: Callable[[str, int], list[float]] = lambda reply, _: [1.0] * len(reply)
    """Gives one weight for each character of a reply; the number is that of the row's own first character."""

    def messages(self, stop: int | None = None, placed: int = -1) -> list[dict[str, Any]]:
        """The first messages as templates expect them, disguised. The content of message `placed` is PLACE."""
        found = []
        for i, message in enumerate(self.conversation.messages[:stop]):
            entry: dict[str, Any] = {
                "role": str(message.role.value),
                "content": PLACE if i == placed else self.disguise(message.content),
            }
            if message.name is not None:
                entry["name"] = self.disguise(message.name)
            if message.calls:
                entry["tool_calls"] = [
                    {
                        "type": "function",
                        "function": {"name": self.disguise(c.name), "arguments": self._value(c.arguments)},
                    }
                    for c in message.calls
                ]
            found.append(entry)
        return found

    @cached_property
    def _signs(self) -> dict[str, str]:
        return {text: chr(SIGN + n) * len(text) for n, text in enumerate(self.case.controls)}

    def disguise(self, text: str) -> str:
        return self.case.control.sub(lambda match: self._signs[match[0]], text)

    def reveal(self, text: str) -> str:
        for spelled, signs in self._signs.items():
            text = text.replace(signs, spelled)
        return text

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.disguise(value)
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if isinstance(value, dict):
            return {self.disguise(key): self._value(item) for key, item in value.items()}
        return value

    @cached_property
    def tools(self) -> Any:
        return self._value(self.conversation.tools)

    def render(self, stop: int | None = None, prompt: bool = False) -> str:
        return self.case.render(self.messages(stop), self.tools, prompt)

    @cached_property
    def _rendered(self) -> str:
        return self.render()

    @cached_property
    def disguised(self) -> str:
        return self._rendered.replace(CUT, "")

    @cached_property
    def cuts(self) -> list[int]:
        """The positions where two texts are encoded separately."""
        lengths = [len(part) for part in self._rendered.split(CUT)]
        return list(itertools.accumulate(lengths[:-1]))

    @cached_property
    def text(self) -> str:
        """The official rendering, character for character where `disguised` is."""
        return self.reveal(self.disguised)

    @cached_property
    def emitted(self) -> list[str]:
        """The control tokens that the template wrote, in order."""
        return self.case.control.findall(self.disguised)

    @cached_property
    def replies(self) -> list[Reply]:
        found = []
        for i, message in enumerate(self.conversation.messages):
            if message.role is ASSISTANT:
                prompt = self.render(i, prompt=True).replace(CUT, "")
                end = self.render(i + 1).replace(CUT, "")
                stop = end.rindex(self.case.stop)
                if self.case.next_role:
                    assert end.endswith(self.case.stop)
                    following = self.case.control.match(self.disguised, stop)
                    end = end[:stop] + (following[0] if following else "")
                assert self.disguised.startswith(end)
                assert end.startswith(prompt)
                stopped = self.case.control.match(end, stop)
                assert stopped
                found.append(Reply(i, len(prompt), stop, stopped.end()))
        return found

    @cached_property
    def pieces(self) -> list[Piece]:
        """The text cut at the template's control tokens and where a reply begins."""
        starts = {reply.start for reply in self.replies}
        edges = {0, len(self.disguised), *starts, *self.cuts}
        spans = [match.span() for match in self.case.control.finditer(self.disguised)]
        edges |= {edge for span in spans for edge in span}
        found = []
        for a, b in itertools.pairwise(sorted(edges)):
            fresh = self.case.fresh_replies or a not in starts or any(end == a for _, end in spans) or a in self.cuts
            found.append(Piece(a, self.text[a:b], (a, b) in spans, fresh))
        return found

    @cached_property
    def weights(self) -> list[float]:
        """One weight for each character."""
        found = [0.0] * len(self.text)
        for reply in self.replies:
            asked = self.conversation.messages[reply.message].weight
            body = self.text[reply.start : reply.stop]
            if asked is None:
                said = self.conversation.messages[reply.message]
                indent = len(self.case.opens) if said.content or not said.calls else 0
                found[reply.start : reply.stop] = self.policy(body, indent)
                found[reply.stop : reply.end] = [1.0] * (reply.end - reply.stop)
            else:
                found[reply.start : reply.end] = [asked] * (reply.end - reply.start)
        for i, message in enumerate(self.conversation.messages):
            if message.role is not ASSISTANT and message.weight and message.content:
                start = self.place(i)
                found[start : start + len(message.content)] = [message.weight] * len(message.content)
        return found

    def place(self, message: int) -> int:
        """The position where a message's content begins, found by rendering PLACE instead of it."""
        return self.case.render(self.messages(placed=message), self.tools).replace(CUT, "").index(PLACE)

    @cached_property
    def tokens(self) -> list[tuple[int, float]]:
        """(id, weight) of every token: the smallest weight of the characters it covers."""
        found: list[tuple[int, float]] = []
        for piece in self.pieces:
            if piece.control:
                covered = self.weights[piece.start : piece.start + len(piece.text)]
                found.append((self.case.controls[piece.text], min(covered)))
                continue
            ids = self.case.encode(piece.text, piece.fresh)
            weights = self._normal_weights(piece)
            prefix = 1 if piece.fresh and self.case.sentencepiece else 0
            owners = [
                max(0, n - prefix)  # the prefix counts for the character it stands before
                for n, character in enumerate(" " * prefix + self.case.normalize(piece.text))
                for _ in character.encode()
            ]
            at = 0
            for token in ids:
                length = len(self.case.bytes_of(token))
                found.append((token, min(weights[n] for n in owners[at : at + length])))
                at += length
            assert at == len(owners)
        return found

    @property
    def columns(self) -> list[tuple[int, float]]:
        """What the two columns should be, at the precision they have."""
        return [(i, float(np.float32(weight))) for i, weight in self.tokens]

    def decoded(self, start: int = 0, end: int | None = None) -> str:
        """The text that ids decode to, with a space before each text that sentencepiece encodes as a new one."""
        return "".join(
            (" " if piece.fresh and not piece.control and self.case.sentencepiece else "") + piece.text
            for piece in self.pieces
            if start <= piece.start < (len(self.text) if end is None else end)
        )

    @property
    def generated(self) -> list[int]:
        """The reply that each token belongs to, or -1. No token belongs to two."""
        found: list[int] = []
        for piece in self.pieces:
            owner = next((r.message for r in self.replies if r.start <= piece.start < r.end), -1)
            found += [owner] * (1 if piece.control else len(self.case.encode(piece.text, piece.fresh)))
        return found

    def _normal_weights(self, piece: Piece) -> list[float]:
        """A weight for each normalized character. No test composes characters of different weights."""
        weights: list[float] = []
        normal = ""
        for weight, group in itertools.groupby(range(len(piece.text)), lambda n: self.weights[piece.start + n]):
            part = self.case.normalize("".join(piece.text[n] for n in group))
            weights += [weight] * len(part)
            normal += part
        assume(normal == self.case.normalize(piece.text))
        return weights

    @property
    def ids(self) -> list[int]:
        return [
            i
            for piece in self.pieces
            for i in ([self.case.controls[piece.text]] if piece.control else self.case.encode(piece.text, piece.fresh))
        ]


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
