"""A conversation rendered, and the rendering cut into segments: the derivation that needs no proof.

Render the conversation, and once more up to every reply with the generation prompt. What lies between a generation
prompt and the stop that ends the reply is generated; everything else is context. The control tokens are those that
the template wrote: what the row spells is hidden while it renders.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

import orjson

from compiler.conversation import Conversation, Message, Role, Segment
from compiler.media.rules import Vision
from compiler.templates.guard import CUT, MAX_SLOTS, MEDIA_MARKS, SLOT_PATTERN, Guard, map_strings, slot, slot_number
from compiler.templates.jinja import ChatTemplate
from schemas.errors import IntegrityError, Reason, RowError

NO_VISION = (
    "the row has images or videos, and neither the tokenizer's folder (preprocessor_config.json) nor the template "
    "says how this model takes them; give --tokenizer DIR of a vision model, or --template cogagent"
)


@dataclass
class Rendering:
    """A chat template and the control tokens it may place."""

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
    vision: Vision | None = None
    """How images and videos are laid out as tokens; None = this model takes none, as far as its files say."""
    no_vision: str = ""
    """Why there is no vision."""
    takes_parts: bool = False
    """Whether the template is the model's own, which takes an image as a part of a content; a card sees its mark."""

    @cached_property
    def _separators(self) -> re.Pattern[str]:
        return re.compile(f"{self.control_pattern.pattern}|[{''.join(_MARKS)}]")

    def _control_of(self, found: str) -> int:
        """Return the id of a control token; a media mark gets that of its placeholder until its tokens are there."""
        if found not in _MARKS:
            return self.controls[found]
        return self.layout(_MARKS[found], 1)[1][0]

    def layout(self, kind: str, num_tokens: int) -> list[tuple[int, int]]:
        """Return (control id, how often) of what stands for an image or video: a mark, placeholders, a mark."""
        if self.vision is None:
            raise RowError(Reason.MEDIA, self.no_vision)
        return self.vision.layout(kind, num_tokens)

    @cached_property
    def names(self) -> dict[int, str]:
        """The texts of the control tokens, by id."""
        return {control: text for text, control in self.controls.items()}

    @cached_property
    def thinks(self) -> bool:
        """Whether the template takes a reply's reasoning apart from its text."""
        return "reasoning_content" in self.template.source

    @cached_property
    def sensitive_texts(self) -> list[str]:
        """The texts that the templates may look for in a content."""
        return sorted({*self.template.sensitive_texts(), *self.tool_template.sensitive_texts()})

    def spelled_controls(self, conversations: list[Conversation]) -> list[str | None]:
        """The first control token that each row's own text spells, or None.

        Plain words do not count: ChatGLM3's "sop" is in "philosophy".
        """
        return [self._spelled_control(one) if self._may_spell_control(one) else None for one in conversations]

    def _spelled_control(self, conversation: Conversation) -> str | None:
        found = (match[0] for text in texts_of(conversation) for match in self.control_pattern.finditer(text))
        return next((token for token in found if not token.isalnum()), None)

    @cached_property
    def _beginnings(self) -> list[str]:
        """How control tokens begin; [""] where one begins with what JSON text does not show as it is."""
        found = sorted({text[:2] for text in self.controls if not text.isalnum()})
        plain = all(orjson.dumps(text).decode() == f'"{text}"' for text in found)
        return found if plain else [""]

    def _may_spell_control(self, conversation: Conversation) -> bool:
        """Return whether the beginning of a control token is anywhere in the row: quick, and mostly not so."""
        texts = []
        for message in conversation.messages:
            texts.append(message.content)
            texts += [text for text in (message.reasoning, message.name, message.call_id) if text is not None]
            texts += [text for call in message.calls for text in (call.name, call.id) if text is not None]
        values = [conversation.tools, *(call.arguments for message in conversation.messages for call in message.calls)]
        try:
            texts += [orjson.dumps(value).decode() for value in values if value is not None]
        except TypeError:  # what orjson cannot write is looked through
            return True
        joined = "\n".join(texts)
        return any(beginning in joined for beginning in self._beginnings)

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Return the conversation's segments."""
        texts = texts_of(conversation)
        hidden = self.control_pattern if self.special_text != "allow" else re.compile(r"(?!)")
        guard = Guard(hidden, [*texts, self.template.source, self.tool_template.source])
        tools = map_strings(conversation.tools, guard.hide)
        plain = [as_dict(message, guard.hide) for message in conversation.messages]
        segments = self.cut(plain, tools, conversation)
        text = "".join(segment.text for segment in segments)
        if guard.changed(text):
            raise RowError(Reason.TEMPLATE_REFUSED, "the chat template changes a text that spells a control token")
        self._must_not_be_looked_for(guard.hidden, guard.restore(text), conversation)
        self._must_differ_without(plain, tools, text, conversation)
        owners = self._owners(plain, tools, text, conversation)
        placed = _place(segments, owners)
        for segment in placed:
            segment.text = guard.restore(segment.text)
        return self._with_media(placed, conversation)

    def is_published(self, segments: list[Segment], conversation: Conversation) -> bool:
        """Return whether the segments are what the chat template itself writes."""
        text = "".join(segment.text for segment in segments)
        written = self.published(conversation, len(conversation.messages))
        return text.replace(CUT, "") == written.replace(CUT, "")

    def published(self, conversation: Conversation, end: int, *, generation_prompt: bool = False) -> str:
        """Return what the chat template itself writes of the first messages, given as `transformers` is given them.

        Nothing is hidden, and a message with an image is a list of parts where the template takes those.
        """
        messages = [
            as_dict(m, str) | ({"content": _parts(m)} if m.media and self.takes_parts else {})
            for m in conversation.messages[:end]
        ]
        text = self._render(messages, conversation.tools, generation_prompt=generation_prompt)
        for kind, mark in MEDIA_MARKS.items():
            if not self.takes_parts and mark in text and conversation.media():
                text = text.replace(mark, "".join(self.names[control] for control, _ in self.layout(kind, 1)))
        return text

    def _with_media(self, segments: list[Segment], conversation: Conversation) -> list[Segment]:
        """Return the segments with the mark of each image or video replaced by its control tokens."""
        media = conversation.media()
        marks = [segment for segment in segments if _is_mark(segment)]
        if [segment.text for segment in marks] != [MEDIA_MARKS[one.kind] for one in media]:
            raise RowError(Reason.TEMPLATE_REFUSED, "the chat template leaves out, repeats or moves a picture or video")
        if not media:
            return segments
        layouts = iter([self.layout(one.kind, one.num_tokens) for one in media])
        placed: list[Segment] = []
        number = -1
        for segment in segments:
            if not _is_mark(segment):
                placed.append(segment)
                continue
            number += 1
            for control, count in next(layouts):
                placed.append(replace(segment, text=self.names[control], control=control, repeat=count, media=number))
        if self.takes_parts and not self.is_published(placed, conversation):
            what = "the chat template writes other text around a picture or video that is a part of a content"
            raise RowError(Reason.TEMPLATE_REFUSED, what)
        return placed

    def _must_not_be_looked_for(self, hidden: list[str], text: str, conversation: Conversation) -> None:
        """Raise where the template treats what was hidden from it in its own way: it would have found it.

        Known by rendering the row as it is: the template may look for such texts in replies alone, say.
        """
        spelled = [token for token in hidden if token in self.controls]
        if not spelled:
            return
        messages = [as_dict(message, str) for message in conversation.messages]
        written = self._render(messages, conversation.tools, generation_prompt=False)
        if written.replace(CUT, "") != text.replace(CUT, ""):
            found = [token for token in spelled if token in self.looked_for] or spelled
            raise RowError(
                Reason.TEMPLATE_REFUSED,
                f"the chat template treats texts with {' and '.join(map(repr, found[:3]))} in its own way, and here "
                "that is a control token; --special-text allow takes it as one",
            )

    @cached_property
    def looked_for(self) -> list[str]:
        """The texts with a control token in them that the templates may look for."""
        return [text for text in self.sensitive_texts if self.control_pattern.search(text)]

    def _must_differ_without(
        self, plain: list[dict[str, Any]], tools: Any, text: str, conversation: Conversation
    ) -> None:
        """Raise if the template leaves out tools, calls or reasoning: the rest would be another row."""
        if tools and self._rendered_or_none(plain, None) == text:
            raise RowError(Reason.TEMPLATE_REFUSED, "the chat template leaves out the tools")

        def is_same_without(i: int, key: str) -> bool:
            without = {name: value for name, value in plain[i].items() if name != key}
            return self._rendered_or_none([*plain[:i], without, *plain[i + 1 :]], tools) == text

        for i, message in enumerate(plain):
            if "tool_calls" in message and is_same_without(i, "tool_calls"):
                raise RowError(Reason.TEMPLATE_REFUSED, f"the chat template leaves out the calls of message {i + 1}")
            reasoning = "" if conversation.is_history(i) else message.get("reasoning_content", "").strip()
            if reasoning and (reasoning not in text or is_same_without(i, "reasoning_content")):
                what = f"the chat template leaves out the reasoning of message {i + 1}"
                raise RowError(Reason.TEMPLATE_REFUSED, what)

    def _rendered_or_none(self, messages: list[dict[str, Any]], tools: Any) -> str | None:
        try:
            return self._render(messages, tools, generation_prompt=False).replace(CUT, "")
        except RowError:
            return None

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
            for i, message in enumerate(plain[: MAX_SLOTS // 2])
        ] + plain[MAX_SLOTS // 2 :]
        owners: list[tuple[int, int, int]] = []
        seen: set[int] = set()
        pieces = SLOT_PATTERN.split(self._rendered_or_none(marked, tools) or "")
        rendered = "".join(pieces[::2])
        if rendered == text:
            position, open_at = 0, dict[int, int]()
            for piece, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
                position += len(piece)
                if mark:
                    seen.add(slot_number(mark) // 2)
                if mark and (number := slot_number(mark)) % 2 == 0:
                    open_at[number // 2] = position
                elif mark and number // 2 in open_at:
                    owners.append((open_at[number // 2], position, number // 2))
        known = {message for _, _, message in owners}
        for i, (message, source) in enumerate(zip(plain, conversation.messages, strict=True)):
            if i not in known and not conversation.is_history(i):
                _must_be_rendered(i, source, message["content"], text, rendered == text and i not in seen)
        return owners

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, generation_prompt: bool) -> str:
        template = self.tool_template if tools else self.template
        return template.render(messages, tools, generation_prompt=generation_prompt)

    def cut(self, messages: list[dict[str, Any]], tools: list[Any] | None, source: Conversation) -> list[Segment]:
        """Return the rendered text cut at generation prompts, stops and control tokens."""
        full = self._render(messages, tools, generation_prompt=False)
        segments: list[Segment] = []
        done = 0
        for i, message in enumerate(source.messages):
            if message.role is not Role.ASSISTANT or source.is_history(i):
                continue
            prompt = self._render(messages[:i], tools, generation_prompt=True)
            reply_end = self._reply_end(full, self._without_closing(messages[: i + 1], tools, prompt))
            if not reply_end.startswith(prompt):
                raise RowError(
                    Reason.TEMPLATE_UNSTABLE,
                    f"the chat template does not begin message {i + 1} with its own generation prompt",
                )
            if not (full.startswith(reply_end) and len(prompt) >= done):
                raise RowError(
                    Reason.TEMPLATE_UNSTABLE,
                    f"the chat template renders the turns before message {i + 1} differently once later ones follow",
                )
            segments += self.split(full[done : len(prompt)])
            reply = self.split(full[len(prompt) : len(reply_end)])
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
        return segments + self.split(full[done:])

    def _without_closing(self, messages: list[dict[str, Any]], tools: list[Any] | None, prompt: str) -> str:
        """Return the rendering without what is written only because nothing follows: Phi-3's last <|endoftext|>.

        A reply has one stop. Where several follow it, what the template writes before a further message tells which
        one it is; a template that begins the next reply unasked (the first one of Llama 3) is refused.
        """
        rendered = self._render(messages, tools, generation_prompt=False)
        if self.final_stop is not None or len(self._stops_in(rendered.removeprefix(prompt))) < 2:
            return rendered
        ends = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(rendered), reversed(prompt), strict=False))
        if len(self._stops_in("".join(character for character, _ in ends)[::-1])) > 1:
            raise IntegrityError(
                "chat template", "it writes the header of a next reply after every reply, asked for or not",
                "Masks cannot be told from it. Use a template card, or a newer chat template of the model.",
            )  # fmt: skip
        mark = slot(0)
        marked = [*messages[:-1], messages[-1] | {"content": mark}]
        alone, followed = (
            self.split_controls((self._rendered_or_none(said, tools) or "").removeprefix(prompt.replace(CUT, "")))
            for said in (marked, [*marked, {"role": "user", "content": "x"}])
        )
        shared = next((n for n, (a, b) in enumerate(zip(alone, followed, strict=False)) if a != b), len(alone))
        closing, rest = ("".join(part.text for part in parts[shared:]) for parts in (alone, followed))
        known = mark not in closing + rest and any(part.control in self.stops for part in alone[:shared])
        return rendered.removesuffix(closing) if known else rendered

    def _stops_in(self, text: str) -> list[int]:
        return [part.control for part in self.split_controls(text) if part.control in self.stops]

    def _reply_end(self, full: str, rendered: str) -> str:
        """Return the rendering up to the end of its last reply, the stop included.

        Where the next role token is the stop, it takes the place of the final stop that the rendering ends with.
        """
        if self.final_stop is None or not rendered.endswith(self.final_stop):
            return rendered
        body = rendered.removesuffix(self.final_stop)
        following = self.control_pattern.match(full, len(body))
        return body + following[0] if following else rendered

    def split(self, text: str) -> list[Segment]:
        """Return a rendered text's control tokens and texts apart, and texts that the family encodes apart."""
        segments: list[Segment] = []
        for number, part in enumerate(text.split(CUT)):
            parts = self.split_controls(part)
            if number and parts and parts[0].control < 0:
                parts[0].boundary = parts[0].fresh = True
            segments += parts
        return segments

    def split_controls(self, text: str) -> list[Segment]:
        """Return control tokens and texts apart."""
        segments: list[Segment] = []
        position = 0
        for match in self._separators.finditer(text):
            if match.start() > position:
                segments.append(Segment(text[position : match.start()]))
            segments.append(Segment(match[0], control=self._control_of(match[0])))
            position = match.end()
        if position < len(text):
            segments.append(Segment(text[position:]))
        return segments


_MARKS = {mark: kind for kind, mark in MEDIA_MARKS.items()}


def _is_mark(segment: Segment) -> bool:
    """Return whether a segment stands for an image or video; the same character in a row's text is text."""
    return segment.control >= 0 and segment.text in _MARKS


def merge(segments: list[Segment]) -> list[Segment]:
    """Return the segments with neighbours of the same kind joined, so that two derivations can be compared."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and are_one(merged[-1], segment):
            merged[-1].text += segment.text
        else:
            merged.append(segment)
    return merged


def are_one(first: Segment, second: Segment) -> bool:
    """Return whether neighbours are texts of one kind, so that they can be one segment."""
    return (
        first.control < 0
        and second.control < 0
        and (first.message, first.generated) == (second.message, second.generated)
        and not second.boundary
    )


def _must_be_rendered(index: int, message: Message, hidden: str, text: str, gone: bool) -> None:
    """Raise if a content is missing from the rendering, or must be trained and has no known place."""
    if not message.content:
        return
    where = f"message {index + 1} ({message.role})"
    if message.content.strip() and (gone or hidden.strip() not in text):
        raise RowError(Reason.TEMPLATE_REFUSED, f"the chat template leaves out the content of {where}")
    if message.role is not Role.ASSISTANT and message.weight:
        raise RowError(
            Reason.TEMPLATE_UNSTABLE, f"the chat template changes the text of {where}, which is to be trained"
        )


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


def as_dict(message: Message, change: Callable[[str], str]) -> dict[str, Any]:
    """Return a message as chat templates expect it, with `change` applied to the row's own strings."""
    entry: dict[str, Any] = {"role": str(message.role), "content": _content(message, change)}
    if message.reasoning is not None:
        entry["reasoning_content"] = change(message.reasoning)
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


def _parts(message: Message) -> list[dict[str, str]]:
    """Return a message's content as parts, as `transformers` is given it."""
    parts, at = [], 0
    for media in message.media:
        text = message.content[at : media.at]
        parts += [*([{"type": "text", "text": text}] if text else []), {"type": media.kind}]
        at = media.at
    rest = message.content[at:]
    return [*parts, {"type": "text", "text": rest}] if rest else parts


def _content(message: Message, change: Callable[[str], str]) -> str:
    """Return a message's text with the marks of its media in it."""
    if not message.media:
        return change(message.content)
    pieces, at = [], 0
    for media in message.media:
        pieces += [change(message.content[at : media.at]), MEDIA_MARKS[media.kind]]
        at = media.at
    return "".join([*pieces, change(message.content[at:])])


def texts_of(conversation: Conversation) -> list[str]:
    """Return every string of the row that a template may write."""
    texts: list[str] = []

    def collect(text: str) -> str:
        texts.append(text)
        return text

    for message in conversation.messages:
        as_dict(message, collect)
    map_strings(conversation.tools, collect)
    return texts
