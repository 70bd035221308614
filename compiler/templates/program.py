"""A chat template lowered to segments, in two ways that must agree.

1. `by_rendering`: render the conversation, and once more up to every reply with the generation prompt. What lies
   between a generation prompt and the stop that ends the reply is generated; everything else is context. The
   control tokens are those that the template wrote: what the row spells is hidden while it renders.
2. `by_skeleton`: render the *shape* of a conversation (roles, calls, number of tools) once with slots for its texts,
   cut that the same way, and fill the slots of every later row by a join. A template may treat some texts
   differently from others; a skeleton is probed for that when it is made, never used for texts the template
   looks into, and compared with the rendering on the first rows of a shape and on a sample of the rest.

Cost on Qwen2.5's template: a rendering 100-300 us a row, a join about 10 us.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from compiler.conversation import Conversation, Message, Role, Segment
from compiler.templates.guard import CUT, SLOT_PATTERN, Guard, map_strings, slot, slot_number
from compiler.templates.jinja import ChatTemplate, Slot, to_json
from schemas.errors import IntegrityError, Reason, RowError

PROVE_FIRST, PROVE_EVERY = 2, 64
"""How often a join is compared with the rendering: the first rows of a shape in a unit, then every n-th."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")
_PROBES = ("q\"uo'te\\ <&> {x} [y] é\n中", "  \n padded \n ")
"""Texts a skeleton is tried with: what JSON and HTML escape, and white space at both ends."""

_REQUIRED = ("content", "call", "arguments", "tool")
"""The slots that must show up in a rendering; ids and names of results may go unused."""

Shape = tuple[Any, ...]


class SkeletonMismatch(Exception):
    """A join did not equal the rendering: the run must do without skeletons."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One part of a skeleton: a literal text, a control token, or a slot (`fill` is then not None)."""

    text: str
    control: int
    message: int
    generated: bool
    boundary: bool
    fresh: bool
    fill: tuple[str, int, int] | None = None


@dataclass(slots=True)
class _Skeleton:
    pieces: list[_Piece]
    trims: bool
    """True where the template changes white space around a content: such rows are rendered."""


@dataclass
class Program:
    """A chat template and the control tokens it may place; see the module's docstring."""

    template: ChatTemplate
    tool_template: ChatTemplate
    """The template used for conversations with tools; the same one for most tokenizers."""
    controls: dict[str, int]
    control_pattern: re.Pattern[str]
    stops: frozenset[int]
    """The control tokens that may end a reply."""
    reply_fresh: bool = False
    """Whether a reply's first text is a text of its own to the tokenizer."""
    final_stop: str | None = None
    """Where the next role token ends a reply: what ends the last one. None = replies carry their own stop."""
    special_text: str = "text"
    """What to do with text that spells a control token: "text" (keep it text), "reject", "allow"."""
    skeletons: bool = True
    _shapes: dict[Shape, _Skeleton | None] = field(default_factory=dict)
    _uses: dict[Shape, int] = field(default_factory=dict)
    _sensitive: re.Pattern[str] | None = None

    def __post_init__(self) -> None:
        texts = {*self.template.sensitive_texts(), *self.tool_template.sensitive_texts()}
        self._sensitive = re.compile("|".join(map(re.escape, sorted(texts)))) if texts else None

    def start_unit(self) -> None:
        """Begin the proofs anew, so that what is compared does not depend on which worker had which unit before."""
        self._uses.clear()

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Return the conversation's segments, by skeleton where that is proven to be the same."""
        skeleton = self._skeleton_for(conversation) if self.skeletons else None
        if skeleton is None:
            return self.by_rendering(conversation)
        segments = self._fill(skeleton, conversation)
        shape = _shape(conversation)
        uses = self._uses[shape] = self._uses.get(shape, 0) + 1
        if (uses <= PROVE_FIRST or uses % PROVE_EVERY == 0) and segments != self.by_rendering(conversation):
            raise SkeletonMismatch
        return segments

    def spells_control(self, conversation: Conversation) -> str | None:
        """Return the first control token that the row's own text spells, or None."""
        for text in _texts(conversation):
            if match := self.control_pattern.search(text):
                return match[0]
        return None

    # -- by rendering --

    def by_rendering(self, conversation: Conversation) -> list[Segment]:
        """Return the segments by rendering the conversation itself: the derivation that needs no proof."""
        guard = Guard(self.control_pattern if self.special_text != "allow" else re.compile(r"(?!)"))
        tools = map_strings(conversation.tools, guard.hide)
        plain = [as_dict(message, guard.hide) for message in conversation.messages]
        segments = self._cut(plain, tools, conversation)
        text = "".join(segment.text for segment in segments)
        owners = self._owners(plain, tools, text, conversation)
        _must_name_calls(plain, tools, text)
        placed = _place(segments, owners)
        for segment in placed:
            segment.text = guard.restore(segment.text)
        return placed

    def _owners(
        self, plain: list[dict[str, Any]], tools: list[Any] | None, text: str, conversation: Conversation
    ) -> list[tuple[int, int, int]]:
        """Return (start, end, message) for every content in the rendered text.

        Found by rendering once more with a mark before and after each content. Where the marks change what the
        template writes, a content's place is not known: it stays "template text", which is right for ids and
        masks and only less telling for `inspect`; but a content that must be trained then is a reject.
        """
        marked = [
            message | {"content": slot(2 * i) + message["content"] + slot(2 * i + 1)} if message["content"] else message
            for i, message in enumerate(plain)
        ]
        owners: list[tuple[int, int, int]] = []
        try:
            pieces = SLOT_PATTERN.split(self._render(marked, tools, generation_prompt=False).replace(CUT, ""))
            rendered = "".join(pieces[::2])
        except RowError:
            rendered = ""
        if rendered == text:
            position, open_at = 0, dict[int, int]()
            for piece, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
                position += len(piece)
                if mark and (number := slot_number(mark)) % 2 == 0:
                    open_at[number // 2] = position
                elif mark and number // 2 in open_at:
                    owners.append((open_at[number // 2], position, number // 2))
        known = {message for _, _, message in owners}
        for i, (message, source) in enumerate(zip(plain, conversation.messages, strict=True)):
            if i not in known:
                _must_be_rendered(i, source, message["content"], text, rendered == text)
        return owners

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, generation_prompt: bool) -> str:
        template = self.tool_template if tools else self.template
        return template.render(messages, tools, generation_prompt=generation_prompt)

    def _cut(self, messages: list[dict[str, Any]], tools: list[Any] | None, source: Conversation) -> list[Segment]:
        """Return the rendered text cut at generation prompts, stops and control tokens."""
        full = self._render(messages, tools, generation_prompt=False)
        segments: list[Segment] = []
        done = 0
        for i, message in enumerate(source.messages):
            if message.role is not Role.ASSISTANT:
                continue
            prompt = self._render(messages[:i], tools, generation_prompt=True)
            reply_end = self._reply_end(full, self._render(messages[: i + 1], tools, generation_prompt=False))
            if not (full.startswith(reply_end) and reply_end.startswith(prompt) and len(prompt) >= done):
                raise RowError(
                    Reason.TEMPLATE_UNSTABLE,
                    f"the chat template renders the turns before message {i + 1} differently once later ones follow",
                )
            segments += self._split(full[done : len(prompt)])
            reply = self._split(full[len(prompt) : len(reply_end)])
            stop = max((j for j, part in enumerate(reply) if part.control in self.stops), default=None)
            if stop is None:
                raise IntegrityError(
                    "chat template", f"the reply of message {i + 1} ends without a stop token",
                    "A model trained on it would never stop. Use a template card that declares the stop.",
                )  # fmt: skip
            reply[0].boundary, reply[0].fresh = True, reply[0].fresh or self.reply_fresh
            for part in reply[: stop + 1]:
                part.generated, part.message = True, i
            segments += reply
            done = len(reply_end)
        return segments + self._split(full[done:])

    def _reply_end(self, full: str, rendered: str) -> str:
        """Return the rendering up to the end of its last reply, the stop included.

        Where the next role token is the stop, it takes the place of the final stop that the rendering ends with.
        """
        if self.final_stop is None or not rendered.endswith(self.final_stop):
            return rendered
        body = rendered.removesuffix(self.final_stop)
        following = self.control_pattern.match(full, len(body))
        return body + following[0] if following else rendered

    def _split(self, text: str) -> list[Segment]:
        """Return text and control tokens apart, and texts that the family encodes apart."""
        segments: list[Segment] = []
        position = 0
        for match in [*self.control_pattern.finditer(text), None]:
            end = match.start() if match else len(text)
            for number, part in enumerate(text[position:end].split(CUT)):
                if part:
                    segments.append(Segment(part, boundary=number > 0, fresh=number > 0))
            if match:
                segments.append(Segment(match[0], control=self.controls[match[0]]))
                position = match.end()
        return segments

    # -- by skeleton --

    def _skeleton_for(self, conversation: Conversation) -> _Skeleton | None:
        shape = _shape(conversation)
        if shape not in self._shapes:
            self._shapes[shape] = self._make_skeleton(conversation)
        skeleton = self._shapes[shape]
        return skeleton if skeleton is not None and self._fits(skeleton, conversation) else None

    def _fits(self, skeleton: _Skeleton, conversation: Conversation) -> bool:
        for message in conversation.messages:
            text = message.content
            if skeleton.trims and text != text.strip():
                return False
            if self._sensitive and self._sensitive.search(text):
                return False
            names = [
                message.name,
                message.call_id,
                *(name for call in message.calls for name in (call.name, call.id)),
            ]
            if not all(_PLAIN_NAME.fullmatch(name) for name in names if name is not None):
                return False
        return True

    def _make_skeleton(self, conversation: Conversation) -> _Skeleton | None:
        """Return the skeleton of the conversation's shape; None where the template cannot be cut that way."""
        slots: list[tuple[str, int, int]] = []

        def new(kind: str, i: int, j: int = 0) -> str:
            slots.append((kind, i, j))
            return slot(len(slots) - 1)

        messages: list[dict[str, Any]] = []
        for i, message in enumerate(conversation.messages):
            named = as_dict(message, lambda text: text)
            if message.content:
                named["content"] = new("content", i)
            for key in ("name", "tool_call_id"):
                if key in named:
                    named[key] = new(key, i)
            for j, call in enumerate(named.get("tool_calls", ())):
                call["function"] = {"name": new("call", i, j), "arguments": Slot(new("arguments", i, j))}
                if "id" in call:
                    call["id"] = new("id", i, j)
            messages.append(named)
        tools = None if conversation.tools is None else [Slot(new("tool", j)) for j in range(len(conversation.tools))]
        try:
            segments = self._cut(messages, tools, conversation)
        except RowError:
            return None
        pieces = [piece for segment in segments for piece in _pieces(segment, slots)]
        filled = {piece.fill for piece in pieces}
        if any(what not in filled for what in slots if what[0] in _REQUIRED):
            return None
        return self._probed(_Skeleton(pieces, trims=False), conversation)

    def _probed(self, skeleton: _Skeleton, conversation: Conversation) -> _Skeleton | None:
        for probe in _PROBES:
            tried = _with_contents(conversation, probe)
            try:
                same = self._fill(skeleton, tried) == self.by_rendering(tried)
            except RowError:
                same = False
            if not same and probe == _PROBES[0]:
                return None
            skeleton.trims |= not same
        return skeleton

    def _fill(self, skeleton: _Skeleton, conversation: Conversation) -> list[Segment]:
        segments = []
        for piece in skeleton.pieces:
            text = piece.text if piece.fill is None else _value(conversation, piece.fill)
            if self.special_text == "allow" and piece.fill is not None:
                parts = self._split(text)
                for n, part in enumerate(parts):
                    part.message, part.generated = piece.message, piece.generated
                    part.boundary, part.fresh = piece.boundary and n == 0, piece.fresh and n == 0
                segments += parts
            else:
                segments.append(
                    Segment(text, piece.control, piece.message, piece.generated, piece.boundary, piece.fresh)
                )
        return merge(segments)


def merge(segments: list[Segment]) -> list[Segment]:
    """Return the segments with neighbours of the same kind joined, so that two derivations can be compared."""
    merged: list[Segment] = []
    for segment in segments:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.control < 0
            and segment.control < 0
            and (last.message, last.generated) == (segment.message, segment.generated)
            and not segment.boundary
        ):
            last.text += segment.text
        else:
            merged.append(segment)
    return merged


def _must_be_rendered(index: int, message: Message, hidden: str, text: str, exact: bool) -> None:
    """Raise if a content is missing from the rendering, or must be trained and has no known place."""
    if not message.content:
        return
    where = f"message {index + 1} ({message.role})"
    if message.content.strip() and (exact or hidden.strip() not in text):
        raise RowError(Reason.TEMPLATE_REFUSED, f"the chat template leaves out the content of {where}")
    if message.role is not Role.ASSISTANT and message.weight:
        raise RowError(
            Reason.TEMPLATE_UNSTABLE, f"the chat template changes the text of {where}, which is to be trained"
        )


def _must_name_calls(messages: list[dict[str, Any]], tools: list[Any] | None, text: str) -> None:
    """Raise if the template knows nothing of tools: training on what is left would be training on another row."""
    for tool in tools or ():
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name not in text and to_json(name)[1:-1] not in text:
            raise RowError(
                Reason.TEMPLATE_REFUSED,
                f"the chat template leaves out the tools ({name!r} is not in its text)",
            )
    for message in messages:
        for call in message.get("tool_calls", ()):
            name = call["function"]["name"]
            if name not in text and to_json(name)[1:-1] not in text:
                raise RowError(Reason.TEMPLATE_REFUSED, f"the chat template leaves out the call of {name!r}")


def _place(segments: list[Segment], owners: list[tuple[int, int, int]]) -> list[Segment]:
    """Return the segments cut where a content begins or ends, context texts given to their message."""
    cuts = sorted({edge for start, end, _ in owners for edge in (start, end)})
    starts = {start: (end, message) for start, end, message in owners if end > start}
    placed: list[Segment] = []
    position, inside = 0, (0, -1)
    for segment in segments:
        end = position + len(segment.text)
        edges = [edge for edge in cuts if position < edge < end] if segment.control < 0 else []
        for left, right in zip([position, *edges], [*edges, end], strict=True):
            inside = starts.get(left, inside)
            owner = inside[1] if left < inside[0] else -1
            text = segment.text[left - position : right - position]
            message = segment.message if segment.generated or owner == -1 else owner
            first = left == position
            boundary, fresh = segment.boundary and first, segment.fresh and first
            placed.append(Segment(text, segment.control, message, segment.generated, boundary, fresh))
        position = end
    return merge(placed)


def _pieces(segment: Segment, slots: list[tuple[str, int, int]]) -> list[_Piece]:
    """Return a segment of a rendered shape as literals and slots."""
    pieces: list[_Piece] = []
    boundary = segment.boundary
    for i, part in enumerate(SLOT_PATTERN.split(segment.text)):
        if not part:
            continue
        fill = slots[slot_number(part)] if i % 2 else None
        message = segment.message
        if fill and not segment.generated:
            message = fill[1] if fill[0] == "content" else -1
        fresh = boundary and segment.fresh
        pieces.append(_Piece("" if fill else part, segment.control, message, segment.generated, boundary, fresh, fill))
        boundary = False
    return pieces


def _value(conversation: Conversation, fill: tuple[str, int, int]) -> str:
    kind, i, j = fill
    if kind == "content":
        return conversation.messages[i].content
    if kind == "tool":
        assert conversation.tools is not None
        return to_json(conversation.tools[i])
    if kind in ("name", "tool_call_id"):
        message = conversation.messages[i]
        return (message.name if kind == "name" else message.call_id) or ""
    call = conversation.messages[i].calls[j]
    if kind == "arguments":
        return to_json(call.arguments)
    return call.name if kind == "call" else call.id or ""


def _shape(conversation: Conversation) -> Shape:
    """Return what a skeleton depends on: roles, calls, what is empty or absent, how many tools."""
    turns = tuple(
        (m.role, not m.content, m.name is None, m.call_id is None, tuple(call.id is None for call in m.calls))
        for m in conversation.messages
    )
    return (-1 if conversation.tools is None else len(conversation.tools), turns)


def _with_contents(conversation: Conversation, text: str) -> Conversation:
    """Return the conversation with every content that is not empty replaced, each by another text."""
    messages = [
        Message(m.role, f"{text}{i}{text}" if m.content else "", m.calls, m.name, m.call_id)
        for i, m in enumerate(conversation.messages)
    ]
    return Conversation(messages, conversation.tools)


def as_dict(message: Message, change: Callable[[str], str]) -> dict[str, Any]:
    """Return a message as chat templates expect it, with `change` applied to the row's own strings."""
    entry: dict[str, Any] = {"role": str(message.role), "content": change(message.content)}
    if message.name is not None:
        entry["name"] = change(message.name)
    if message.call_id is not None:
        entry["tool_call_id"] = change(message.call_id)
    if message.calls:
        entry["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": change(call.name), "arguments": map_strings(call.arguments, change)},
                **({"id": change(call.id)} if call.id is not None else {}),
            }
            for call in message.calls
        ]
    return entry


def _texts(conversation: Conversation) -> list[str]:
    """Return every string of the row that a template may write."""
    texts: list[str] = []

    def collect(text: str) -> str:
        texts.append(text)
        return text

    for message in conversation.messages:
        as_dict(message, collect)
    map_strings(conversation.tools, collect)
    return texts
