"""What the compiler computes, slowly and plainly: one conversation to token ids and weights. Read this first.

Everything else in `compiler/templates` and `compiler/encode` is a fast way to this result, and the laws of the tests
(`tests/test_laws.py`) hold it against this file on random conversations. In five steps:

1. **Render** the conversation with the chat template. Where the row itself spells a control token, it is disguised
   while it renders, so that the control tokens found afterwards are those that the template wrote.
2. **Find the replies**: what lies between a generation prompt and the stop after it is what the model must generate.
3. **Weigh** every character: 1 in a reply, or what its message or the weights policy says; 0 elsewhere.
4. **Cut** the text into runs: at control tokens, and where generation begins, as inference does.
5. **Encode** each run. A token weighs the smallest weight among the characters it covers; it is trained if that is
   above 0: its label is then its id, else -100.

Left out: images, reasoning, preference pairs and documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

from compiler.conversation import Conversation, Role

SIGN = 0x13000
"""The first of the hieroglyphs that stand for control tokens which a row spells; no row here says one."""
CUT, PLACE = "\U0001303e", "\U0001303f"
"""What a template card writes (as `cut`) where it wants two texts encoded apart; what stands for a sought content."""


class Generated(NamedTuple):
    """Where a reply lies in the rendered text, in characters: its text [start, stop), its stop token [stop, end)."""

    message: int
    start: int
    stop: int
    end: int


class TextRun(NamedTuple):
    """What is encoded at once: a text, or one control token. `fresh`: it is a text of its own to the tokenizer."""

    start: int
    text: str
    control: bool
    fresh: bool


@dataclass(frozen=True)
class ModelFacts:
    """A model's chat template and tokenizer, as plain functions of their published files."""

    render: Callable[[list[dict[str, Any]], Any, bool], str]
    """(messages, tools, with the generation prompt?) -> text, with CUT where a card wants two texts encoded apart."""
    encode: Callable[[str, bool], list[int]]
    """(text, fresh?) -> ids, none of them a control token's, whatever the text spells."""
    bytes_of: Callable[[int], bytes]
    """The text that an id stands for."""
    normalize: Callable[[str], str]
    """What the tokenizer does to a text before it encodes."""
    controls: dict[str, int]
    stop: str
    """The control token that ends a reply; with `next_role`, the one that ends the last reply."""
    next_role: bool = False
    """Whether the token of the next role ends a reply."""
    prefix: bool = False
    """Whether the tokenizer puts a space before a fresh text (sentencepiece)."""
    fresh_replies: bool = False
    """Whether a reply is a fresh text."""
    opens: str = ""
    """What the template writes in a reply before the message's own text."""


@dataclass(frozen=True)
class Reference:
    """One conversation, derived step by step."""

    conversation: Conversation
    model: ModelFacts
    policy: Callable[[str, int], list[float]] = lambda reply, _: [1.0] * len(reply)
    """The weight of each character of a reply; the number is that of the message's own first character."""

    # 1. Render.

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Any control token; of two that begin alike, the longer one."""
        return re.compile("|".join(map(re.escape, sorted(self.model.controls, key=len, reverse=True))))

    @cached_property
    def signs(self) -> dict[str, str]:
        """The disguise of each control token: as many hieroglyphs as it has characters."""
        return {text: chr(SIGN + n) * len(text) for n, text in enumerate(self.model.controls)}

    def disguise(self, value: Any) -> Any:
        """Disguise every control token that the strings of a JSON value spell."""
        if isinstance(value, str):
            return self.control.sub(lambda match: self.signs[match[0]], value)
        if isinstance(value, list):
            return [self.disguise(item) for item in value]
        if isinstance(value, dict):
            return {self.disguise(key): self.disguise(item) for key, item in value.items()}
        return value

    def render(self, end: int | None = None, prompt: bool = False, placed: int = -1) -> str:
        """Render the first messages, disguised; PLACE stands for the content of message `placed`."""
        messages = []
        for i, message in enumerate(self.conversation.messages[:end]):
            entry = {"role": message.role.value, "content": PLACE if i == placed else self.disguise(message.content)}
            if message.name is not None:
                entry["name"] = self.disguise(message.name)
            if message.calls:
                functions = [{"name": call.name, "arguments": call.arguments} for call in message.calls]
                entry["tool_calls"] = [{"type": "function", "function": self.disguise(one)} for one in functions]
            messages.append(entry)
        return self.model.render(messages, self.disguise(self.conversation.tools), prompt)

    @cached_property
    def disguised(self) -> str:
        """The rendered text, in which every control token is the template's."""
        return self.render().replace(CUT, "")

    @cached_property
    def text(self) -> str:
        """The rendered text as the row and the template have it."""
        text = self.disguised
        for spelled, sign in self.signs.items():
            text = text.replace(sign, spelled)
        return text

    # 2. Find the replies.

    @cached_property
    def replies(self) -> list[Generated]:
        """What the model must generate: from the generation prompt to the end of the stop."""
        found = []
        for i, message in enumerate(self.conversation.messages):
            if message.role is not Role.ASSISTANT:
                continue
            start = len(self.render(i, prompt=True).replace(CUT, ""))
            stop = self.render(i + 1).replace(CUT, "").rindex(self.model.stop)
            token = self.control.match(self.disguised, stop)  # the next role's, where that is the stop
            assert token, "the reply ends without a stop"
            found.append(Generated(i, start, stop, token.end()))
        return found

    # 3. Weigh.

    @cached_property
    def weights(self) -> list[float]:
        """The weight of each character of the text."""
        found = [0.0] * len(self.text)
        for i, start, stop, end in self.replies:
            message = self.conversation.messages[i]
            if message.weight is not None:
                found[start:end] = [message.weight] * (end - start)
                continue
            own = len(self.model.opens) if message.content or not message.calls else 0
            found[start:end] = [*self.policy(self.text[start:stop], own), *[1.0] * (end - stop)]
        for i, message in enumerate(self.conversation.messages):
            if message.role is not Role.ASSISTANT and message.weight and message.content:
                start = self.place(i)
                found[start : start + len(message.content)] = [message.weight] * len(message.content)
        return found

    def place(self, message: int) -> int:
        """Find where a message's content begins in the text: where another content in its place would."""
        return self.render(placed=message).replace(CUT, "").index(PLACE)

    # 4. Cut.

    @cached_property
    def runs(self) -> list[TextRun]:
        """The text cut at control tokens, where replies begin, and where a card wants it."""
        cuts = set(accumulate(map(len, self.render().split(CUT)[:-1])))
        tokens = [match.span() for match in self.control.finditer(self.disguised)]
        starts = {reply.start for reply in self.replies}
        edges = {0, len(self.text), *starts, *cuts, *(edge for token in tokens for edge in token)}
        after_token = {end for _, end in tokens}
        found = []
        for start, end in pairwise(sorted(edges)):
            fresh = start not in starts or self.model.fresh_replies or start in after_token or start in cuts
            found.append(TextRun(start, self.text[start:end], (start, end) in tokens, fresh))
        return found

    # 5. Encode.

    @cached_property
    def tokens(self) -> list[tuple[int, float]]:
        """(id, weight) of every token."""
        return [token for run in self.runs for token in self.encode(run)]

    @property
    def ids(self) -> list[int]:
        """The id of every token."""
        return [token for token, _ in self.tokens]

    @property
    def labels(self) -> list[int]:
        """The id of every token that is trained, -100 for the others."""
        return [token if weight > 0 else -100 for token, weight in self.tokens]

    def encode(self, run: TextRun) -> list[tuple[int, float]]:
        """Encode one run: each token with the smallest weight among the characters it covers."""
        weights = self.weights[run.start : run.start + len(run.text)]
        if run.control:
            return [(self.model.controls[run.text], min(weights))]
        of_bytes = [
            weight
            for weight, group in groupby(zip(weights, run.text, strict=True), key=lambda pair: pair[0])
            for _ in self.model.normalize("".join(character for _, character in group)).encode()
        ]
        if self.model.prefix and run.fresh:
            of_bytes.insert(0, of_bytes[0])  # the space before a text counts for its first character
        found, at = [], 0
        for token in self.model.encode(run.text, run.fresh):
            length = len(self.model.bytes_of(token))
            found.append((token, min(of_bytes[at : at + length])))
            at += length
        assert at == len(of_bytes), "the tokens do not spell the text"
        return found
