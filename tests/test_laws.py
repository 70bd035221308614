"""The laws of masks, on random conversations, for every template that can be tried without a network.

What is expected never comes from the code under test. `Reference` below is a second, slow compiler: Jinja set up as
`transformers` sets it up, Hugging Face's tokenizer with its added tokens taken out, one weight per character, one Python
loop per token. It knows which control tokens the template wrote because it renders a *disguise* of the row, in which every
control token the row spells is as many hieroglyphs.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jinja2
import jinja2.ext
import numpy as np
import pytest
from conftest import shared, tools
from conversations import conversations, react_texts, texts
from hypothesis import HealthCheck, assume, example, given, settings
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as HFTokenizer

import registry
from compiler.conversation import Call, Conversation, Message, Role, Segment
from compiler.encode import Encoded, encode
from compiler.fit import POLICIES, fit
from compiler.templates.jinja import ChatTemplate
from compiler.templates.program import Program
from compiler.weigh import Policy, weigh
from schemas.errors import Reason, RowError

USER, ASSISTANT, SYSTEM, TOOL = Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL
IGNORED = -100
EVEN = Policy("none", {}, ())

LAWS = settings(
    deadline=None,  # the first row of a shape is dearer than the rest
    derandomize=True,
    database=None,
    max_examples=25,
    # Conversations are large for Hypothesis, and drawing one takes longer than compiling it.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
FEW = settings(LAWS, max_examples=12)


# -- the second compiler --


@dataclass
class Case:
    """A tokenizer with a template, what its conversations may hold, and the facts about it that are stated here by hand."""

    tokenizer: str
    template: str
    stop: str
    system: str = "anywhere"
    tools: bool = True
    fresh_replies: bool = False
    """A reply is a text of its own, and what it says follows a space that the template writes."""

    def __str__(self) -> str:
        return f"{self.tokenizer}/{self.template}"

    @cached_property
    def folder(self) -> Path:
        return registry.DEMO_TOKENIZER if self.tokenizer == "demo" else shared("tokenizers", self.tokenizer)

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "tokenizer_config.json").read_text())

    @cached_property
    def spec(self) -> dict[str, Any]:
        return json.loads((self.folder / "tokenizer.json").read_text())

    @cached_property
    def controls(self) -> dict[str, int]:
        return {token["content"]: token["id"] for token in self.spec["added_tokens"]}

    @cached_property
    def control(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.controls, key=len, reverse=True))))

    @property
    def sentencepiece(self) -> bool:
        return self.tokenizer == "mistral"

    @cached_property
    def official(self) -> HFTokenizer:
        return HFTokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def bare(self) -> HFTokenizer:
        """The tokenizer without added tokens, and without the space that sentencepiece puts first."""
        spec = self.spec | {"added_tokens": [], "post_processor": None}
        if self.sentencepiece:
            replace_spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
            spec["normalizer"] = replace_spaces
        return HFTokenizer.from_str(json.dumps(spec))

    @cached_property
    def _jinja(self) -> jinja2.Template:
        if self.template == "auto":
            source = self.config["chat_template"]
        else:
            source = (Path(registry.__file__).parent / "templates" / f"{self.template}.jinja").read_text()
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment.globals["raise_exception"] = refuse
        return environment.from_string(source)

    def render(self, messages: list[dict[str, Any]], tool_list: list[Any] | None, prompt: bool = False) -> str:
        named = {k: self.config[k] for k in ("bos_token", "eos_token", "unk_token", "pad_token") if self.config.get(k)}
        return self._jinja.render(messages=messages, tools=tool_list, add_generation_prompt=prompt, **named)

    def normalize(self, text: str) -> str:
        """Return what the tokenizer reads: composed for Qwen, the text itself for Mistral."""
        return text if self.sentencepiece else self.official.normalizer.normalize_str(text)

    def encode(self, text: str, fresh: bool) -> list[int]:
        """Return the ids of a text that is no control token's, whatever it spells."""
        prefixed = " " + text if fresh and self.sentencepiece else text
        return self.bare.encode(prefixed, add_special_tokens=False).ids

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes an ordinary token stands for."""
        token = self.official.id_to_token(token_id)
        if not self.sentencepiece:
            return bytes(_BYTE_OF[character] for character in token)
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of ids, controls as they are spelled; no space is added or taken away."""
        names = {number: text.encode() for text, number in self.controls.items()}
        return b"".join(names.get(i) or self.bytes_of(i) for i in map(int, ids)).decode()

    def conversations(self, **options: Any) -> st.SearchStrategy[Conversation]:
        return conversations(system=self.system, tools=self.tools, **options)

    @property
    def program(self) -> Program:
        return tools(self.tokenizer, self.template)[1].program

    def compile(self, conversation: Conversation, policy: Policy = EVEN) -> Encoded:
        """Return what the compiler makes of it: the code under test."""
        loaded, template = tools(self.tokenizer, self.template)
        segments = weigh(conversation, template.program.segments(conversation), policy)
        return encode([(conversation, segments)], loaded)[0]


def _byte_of() -> dict[str, int]:
    """Return GPT-2's table of printable characters for bytes."""
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
    """What is encoded at once: a text, or one control token."""

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
    """Gives one weight for each character of a reply; the row's own words begin at the character whose number it is told."""

    def messages(self, stop: int | None = None, **contents: str) -> list[dict[str, Any]]:
        """Return the first messages as templates expect them, disguised; `contents` by "m0", "m1", ... replace some."""
        found = []
        for i, message in enumerate(self.conversation.messages[:stop]):
            entry: dict[str, Any] = {
                "role": str(message.role.value),
                "content": contents.get(f"m{i}", self.disguise(message.content)),
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
        return {text: chr(0x13000 + n) * len(text) for n, text in enumerate(self.case.controls)}

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

    @cached_property
    def disguised(self) -> str:
        return self.case.render(self.messages(), self.tools)

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
                prompt = self.case.render(self.messages(i), self.tools, prompt=True)
                end = self.case.render(self.messages(i + 1), self.tools)
                assert self.disguised.startswith(end)
                assert end.startswith(prompt)
                stop = end.rindex(self.case.stop)
                found.append(Reply(i, len(prompt), stop, stop + len(self.case.stop)))
        return found

    @cached_property
    def pieces(self) -> list[Piece]:
        """The text cut at the template's control tokens and where a reply begins."""
        edges = {0, len(self.disguised)} | {reply.start for reply in self.replies}
        spans = [match.span() for match in self.case.control.finditer(self.disguised)]
        edges |= {edge for span in spans for edge in span}
        starts = {reply.start for reply in self.replies}
        found = []
        for a, b in itertools.pairwise(sorted(edges)):
            fresh = self.case.fresh_replies or a not in starts or any(end == a for _, end in spans)
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
                indent = int(self.case.fresh_replies and bool(said.content or not said.calls))
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
        """Return where a message's content begins: where another content in its place would."""
        return self.case.render(self.messages(**{f"m{message}": "\x01"}), self.tools).index(
            "\x01", self._before(message)
        )

    def _before(self, message: int) -> int:
        """Return a position before the message's content and after what the row itself says before it."""
        earlier = [reply.end for reply in self.replies if reply.message < message]
        return earlier[-1] if earlier else 0

    @cached_property
    def tokens(self) -> list[tuple[int, float]]:
        """(id, weight) of every token: the smallest weight of the characters it covers."""
        found: list[tuple[int, float]] = []
        for piece in self.pieces:
            if piece.control:
                found.append((self.case.controls[piece.text], self.weights[piece.start]))
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

    @property
    def generated(self) -> list[int]:
        """For every token the reply that it is part of, or -1; no token is part of two."""
        found: list[int] = []
        for piece in self.pieces:
            owner = next((r.message for r in self.replies if r.start <= piece.start < r.end), -1)
            found += [owner] * (1 if piece.control else len(self.case.encode(piece.text, piece.fresh)))
        return found

    def _normal_weights(self, piece: Piece) -> list[float]:
        """Return a weight for each normalized character; no test of weights composes characters of two weights."""
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
    """Return one weight per character of a reply, line by line: only what opens a line can be a keyword."""
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
    Case("mistral", "mistral", "</s>", system="first", fresh_replies=True),
]
DEMO = CASES[0]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Every template in turn; skipped where the shared tokenizers are not beside the project."""
    found: Case = request.param
    tools(found.tokenizer, found.template)
    return found


def sections(ids: Sequence[int], case: Case) -> list[list[int]]:
    """Return ids cut at the control tokens, which are left out."""
    found: list[list[int]] = [[]]
    for i in map(int, ids):
        if i in case.controls.values():
            found.append([])
        else:
            found[-1].append(i)
    return found


def position(ids: Sequence[int], case: Case, number: int) -> int:
    """Return the position of the `number`-th control token."""
    return [n for n, i in enumerate(map(int, ids)) if i in case.controls.values()][number]


def columns_of(encoded: Encoded) -> list[tuple[int, float]]:
    return list(zip(encoded.ids.tolist(), encoded.weights.tolist(), strict=True))


def generated_of(encoded: Encoded) -> list[int]:
    return [s.message if s.generated else -1 for s in encoded.stretches for _ in range(s.length)]


def count_controls(text: str, case: Case) -> int:
    return len(case.control.findall(text))


# -- the laws --


@LAWS
@given(data=st.data())
def test_law_1_columns_have_one_length_and_spans_cover_it(case: Case, data: st.DataObject) -> None:
    encoded = case.compile(data.draw(case.conversations()))
    assert len(encoded.ids) == len(encoded.labels) == len(encoded.weights)
    assert sum(stretch.length for stretch in encoded.stretches) == len(encoded.ids)
    assert all(stretch.length > 0 for stretch in encoded.stretches)


@LAWS
@given(data=st.data())
def test_laws_2_and_3_labels_copy_ids_where_weights_are_positive_and_never_first(
    case: Case, data: st.DataObject
) -> None:
    encoded = case.compile(data.draw(case.conversations()))
    pairs = zip(encoded.ids.tolist(), encoded.weights.tolist(), strict=True)
    assert encoded.labels.tolist() == [i if weight > 0 else IGNORED for i, weight in pairs]
    assert encoded.labels[0] == IGNORED


@LAWS
@given(data=st.data())
def test_law_4_a_reply_starts_right_after_the_generation_prompt_as_inference_encodes_it(
    case: Case, data: st.DataObject
) -> None:
    conversation = data.draw(case.conversations(spelled=False))
    reference = Reference(case, conversation)
    ids = case.compile(conversation).ids.tolist()
    for n, reply in enumerate(reference.replies):
        prompt = reference.text[: reply.start]
        official = case.official.encode(prompt, add_special_tokens=False).ids
        header = sections(official, case)[-1]
        start = position(ids, case, count_controls(prompt, case) - 1) + 1 + len(header)
        if n == 0:
            assert ids[:start] == official
        assert ids[start - len(header) : start] == header
        generated = reference.text[reply.start : reply.end]
        stop = position(ids, case, count_controls(reference.text[: reply.stop], case))
        written = case.text_of(ids[start : stop + 1])
        assert case.normalize(written.removeprefix(" ") if case.fresh_replies else written) == case.normalize(generated)


@LAWS
@given(data=st.data())
def test_law_5_a_reply_ends_with_a_trained_stop_and_neither_header_nor_newline_is_trained(
    case: Case, data: st.DataObject
) -> None:
    conversation = data.draw(case.conversations())
    reference = Reference(case, conversation)
    encoded = case.compile(conversation)
    for reply in reference.replies:
        before = count_controls(reference.disguised[: reply.stop], case)
        stop = position(encoded.ids, case, before)
        trained = conversation.messages[reply.message].weight != 0
        assert encoded.ids[stop] == case.controls[case.stop]
        assert (encoded.labels[stop] == case.controls[case.stop]) == trained
        assert stop + 1 == len(encoded.ids) or encoded.labels[stop + 1] == IGNORED
        opening = position(encoded.ids, case, count_controls(reference.disguised[: reply.start], case) - 1)
        header = reference.text[: reply.start].rpartition("\n" if case.sentencepiece else "<|im_start|>")[2]
        if not case.sentencepiece:
            assert header == "assistant\n"
            assert encoded.labels[opening : opening + 3].tolist() == [IGNORED] * 3


@LAWS
@given(data=st.data())
def test_law_6_trained_tokens_decode_to_exactly_the_generated_text_of_trained_replies(
    case: Case, data: st.DataObject
) -> None:
    conversation = data.draw(case.conversations())
    for message in conversation.messages:
        message.weight = message.weight if message.role is ASSISTANT else None
    reference = Reference(case, conversation)
    encoded = case.compile(conversation)
    trained = encoded.labels[encoded.labels != IGNORED].tolist()
    expected = ""
    for reply in reference.replies:
        if conversation.messages[reply.message].weight != 0:
            body = reference.text[reply.start : reply.end]
            prefix = " " if case.fresh_replies and reference.disguised[reply.start :].find(case.stop) != 0 else ""
            expected += prefix + body
    assert case.normalize(case.text_of(trained)) == case.normalize(expected)


@LAWS
@given(data=st.data())
def test_law_7_text_equals_the_official_rendering_and_ids_the_official_encoding_of_it(
    case: Case, data: st.DataObject
) -> None:
    conversation = data.draw(case.conversations(spelled=False))
    reference = Reference(case, conversation)
    segments = case.program.segments(conversation)
    assert "".join(segment.text for segment in segments) == reference.text
    ids = case.compile(conversation).ids.tolist()
    official = case.official.encode(reference.text, add_special_tokens=False).ids
    opened = [reference.text[reply.start : reply.start + 1] for reply in reference.replies]
    if not case.sentencepiece and not any(first.isspace() for first in opened):
        assert ids == official
    touched = {count_controls(reference.text[: reply.start], case) for reply in reference.replies}
    ours, theirs = sections(ids, case), sections(official, case)
    assert len(ours) == len(theirs)
    assert all(a == b for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if n not in touched)


@LAWS
@given(data=st.data())
def test_law_8_control_tokens_are_those_the_template_wrote_whatever_the_row_spells(
    case: Case, data: st.DataObject
) -> None:
    conversation = data.draw(case.conversations())
    emitted = [case.controls[text] for text in Reference(case, conversation).emitted]
    ids = case.compile(conversation).ids.tolist()
    assert [i for i in ids if i in case.controls.values()] == emitted


@LAWS
@given(data=st.data())
def test_law_9_what_is_fitted_obeys_the_laws_and_turns_keeps_the_longest_prefix(
    case: Case, data: st.DataObject
) -> None:
    conversation = data.draw(case.conversations())
    whole = case.compile(conversation)
    length = len(whole.ids)
    limit = data.draw(st.integers(1, length + 1), label="max_length")
    policy = data.draw(st.sampled_from(POLICIES), label="policy")
    result: Encoded | Reason
    try:
        result = fit(conversation, whole, limit, policy, case.compile)
    except RowError as error:
        result = error.reject.reason
    candidates = _fitting_candidates(case, conversation, policy)
    expected = next((found for found in candidates if len(found.ids) <= limit), None)
    if policy == "cut":
        assert isinstance(result, Encoded)
        assert result.ids.tolist() == whole.ids[:limit].tolist()
        assert result.weights.tolist() == whole.weights[:limit].tolist()
    elif expected is None:
        assert result is Reason.TOO_LONG
        return
    else:
        assert isinstance(result, Encoded)
        assert result.ids.tolist() == expected.ids.tolist()
        assert result.weights.tolist() == expected.weights.tolist()
    assert len(result.ids) <= limit
    assert len(result.ids) == len(result.weights) == sum(stretch.length for stretch in result.stretches)
    assert result.labels.tolist() == [
        i if w > 0 else IGNORED for i, w in zip(result.ids.tolist(), result.weights.tolist(), strict=True)
    ]
    assert result.labels[0] == IGNORED


def _fitting_candidates(case: Case, conversation: Conversation, policy: str) -> list[Encoded]:
    """Return what a policy may keep, the best first, each from a conversation of its own."""
    messages = conversation.messages
    kept = [messages]
    if policy == "turns":
        ends = [i for i, message in enumerate(messages) if message.role is ASSISTANT]
        kept = [messages[: end + 1] for end in reversed(ends)]
    elif policy == "last-turns":
        lead = list(itertools.takewhile(lambda message: message.role is SYSTEM, messages))
        starts = [i for i, message in enumerate(messages) if message.role is USER][1:]
        kept += [[*lead, *messages[start:]] for start in starts]
    found = []
    for part in kept:
        tokens = Reference(case, replace(conversation, messages=part)).tokens
        ids, weights = (np.array(column) for column in zip(*tokens, strict=True))
        found.append(Encoded(ids.astype(np.int32), weights.astype(np.float32), []))
    return found


@LAWS
@given(data=st.data())
def test_law_10_the_skeleton_and_the_rendering_agree_on_segments_and_ids(case: Case, data: st.DataObject) -> None:
    conversation = data.draw(case.conversations())
    joined, rendered = case.program.segments(conversation), case.program.by_rendering(conversation)
    assert joined == rendered
    loaded, _ = tools(case.tokenizer, case.template)
    encoded = [
        encode([(conversation, weigh(conversation, segments, EVEN))], loaded)[0] for segments in (joined, rendered)
    ]
    assert columns_of(encoded[0]) == columns_of(encoded[1])
    assert encoded[0].stretches == encoded[1].stretches


PATTERNS = (
    "e",
    ".",
    "[a-z]{2}",
    "(?<=.).+(?=.)",
    "\n",
    " +",
    "[^a-z]",
    "<",
    "\u200d",
    "[\U0001f000-\U0010ffff]",
    "</?tool_call>",
)
"""Where nobody would put weights: inside words, on single characters, between the parts of one emoji."""


def policies() -> st.SearchStrategy[Policy]:
    """The shipped policies, and made ones."""
    shipped = [Policy.from_card(registry.weights(name)) for name in ("none", "react", "hermes")]
    weighed = st.tuples(st.sampled_from(PATTERNS), st.sampled_from((0, 0.5, 3)))
    made = weighed.map(
        lambda p: Policy.from_card({"name": "made", "patterns": {"it": {"pattern": p[0], "weight": p[1]}}})
    )
    return st.sampled_from(shipped) | made


@LAWS
@given(data=st.data())
def test_law_11_weights_never_change_ids(case: Case, data: st.DataObject) -> None:
    conversation = data.draw(case.conversations(replies=texts() | react_texts()))
    policy = data.draw(policies(), label="policy")
    bare = Conversation([replace(message, weight=None) for message in conversation.messages], conversation.tools)
    ids = Reference(case, bare).ids
    assert case.compile(bare).ids.tolist() == ids
    assert case.compile(bare, policy).ids.tolist() == ids
    assert case.compile(conversation, policy).ids.tolist() == ids


@settings(LAWS, max_examples=60)
@given(data=st.data())
def test_law_12_a_token_weighs_what_its_lightest_character_weighs(case: Case, data: st.DataObject) -> None:
    conversation = data.draw(case.conversations(replies=react_texts()))
    encoded = case.compile(conversation, Policy.from_card(registry.weights("react")))
    assert columns_of(encoded) == Reference(case, conversation, react_weights).columns


@LAWS
@given(data=st.data())
def test_law_12_holds_for_weights_in_the_middle_of_words_and_characters(case: Case, data: st.DataObject) -> None:
    conversation = data.draw(case.conversations())
    pattern = data.draw(st.sampled_from(PATTERNS), label="pattern")
    weight = data.draw(st.sampled_from((0.0, 0.5, 3.0)), label="weight")

    def weights(reply: str, _: int) -> list[float]:
        found = [1.0] * len(reply)
        for match in re.finditer(pattern, reply, re.DOTALL):
            found[match.start() : match.end()] = [weight] * len(match[0])
        return found

    policy = Policy.from_card({"name": "made", "patterns": {"it": {"pattern": pattern, "weight": weight}}})
    assert columns_of(case.compile(conversation, policy)) == Reference(case, conversation, weights).columns


@LAWS
@given(data=st.data())
def test_law_13_ids_decode_to_the_rendered_text(case: Case, data: st.DataObject) -> None:
    conversation = data.draw(case.conversations())
    encoded = case.compile(conversation)
    reference = Reference(case, conversation)
    expected = "".join(
        " " * (piece.fresh and not piece.control and case.sentencepiece) + piece.text for piece in reference.pieces
    )
    assert case.normalize(case.text_of(encoded.ids.tolist())) == case.normalize(expected)
    if not case.sentencepiece:
        official = case.official.decode(encoded.ids.tolist(), skip_special_tokens=False)
        assert unicodedata.normalize("NFC", official) == unicodedata.normalize("NFC", reference.text)


@LAWS
@given(data=st.data())
def test_law_14_loss_on_a_user_message_trains_exactly_the_tokens_inside_its_content(
    case: Case, data: st.DataObject
) -> None:
    conversation = data.draw(case.conversations(weights=False))
    asked = data.draw(
        st.sampled_from([i for i, m in enumerate(conversation.messages) if m.role is USER and m.content] or [-1])
    )
    assume(asked >= 0)
    silent = [replace(m, weight=0.0 if m.role is ASSISTANT else None) for m in conversation.messages]
    silent[asked].weight = 1.0
    conversation = Conversation(silent, conversation.tools)
    encoded = case.compile(conversation)
    reference = Reference(case, conversation)
    start = reference.place(asked)
    end = start + len(silent[asked].content)
    trained = []
    for piece in reference.pieces:
        if piece.control:
            trained.append(False)
            continue
        parts = [
            piece.text[: max(0, start - piece.start)],
            piece.text[max(0, start - piece.start) : max(0, end - piece.start)],
        ]
        low = len(case.normalize(parts[0]).encode())
        high = low + len(case.normalize(parts[1]).encode())
        assume(case.normalize(piece.text).startswith(case.normalize(parts[0]) + case.normalize(parts[1])))
        prefix = 1 if piece.fresh and case.sentencepiece else 0
        at = -prefix
        for token in case.encode(piece.text, piece.fresh):
            length = len(case.bytes_of(token))
            trained.append(low <= at and at + length <= high and high > low)
            at += length
    assert (encoded.labels != IGNORED).tolist() == trained


@LAWS
@given(data=st.data())
def test_every_token_weight_and_speaker_equals_the_slow_derivation(case: Case, data: st.DataObject) -> None:
    conversation = data.draw(case.conversations())
    encoded = case.compile(conversation)
    reference = Reference(case, conversation)
    assert columns_of(encoded) == reference.columns
    assert generated_of(encoded) == reference.generated
