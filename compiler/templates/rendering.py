"""Conversations rendered and cut into segments: the derivation that needs no proof.

Render the conversation, and once more up to every reply with the generation prompt. What lies between a generation
prompt and the stop that ends the reply is generated; everything else is context. The control tokens are those that
the template wrote: what the row spells is hidden while it renders.

    messages.py   a message as the dictionary that templates are given
    markup.py     the template: text out, control tokens in it
    cut.py        text to segments
    checks.py     what a rendering is refused for
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import orjson

from compiler.conversation import Call, Conversation, Message, Role, Segment
from compiler.templates.checks import must_be_rendered, must_differ_without, must_not_be_looked_for
from compiler.templates.cut import cut, merge, owners_of, place
from compiler.templates.guard import MEDIA_MARKS, Guard, map_strings
from compiler.templates.markup import KIND_OF_MARK, Markup
from compiler.templates.messages import as_dict, texts_of
from schemas.errors import IntegrityError, Reason, RowError


class Rendering(Markup):
    """Conversations to segments by a chat template."""

    def segments(self, conversation: Conversation) -> list[Segment]:
        """The conversation's segments."""
        texts = texts_of(conversation)
        hidden = self.control_pattern if self.special_text != "allow" else re.compile(r"(?!)")
        guard = Guard(hidden, [*texts, self.template.source, self.tool_template.source])
        tools = map_strings(conversation.tools, guard.hide)
        plain = [as_dict(message, guard.hide) for message in conversation.messages]
        segments = cut(self, plain, tools, conversation)
        text = "".join(segment.text for segment in segments)
        if guard.changed(text):
            raise RowError(Reason.TEMPLATE_REFUSED, "the chat template changes a text that spells a control token")
        must_not_be_looked_for(self, guard.hidden, guard.restore(text), conversation)
        must_differ_without(self, plain, tools, text, conversation)
        owners, gone = owners_of(self, plain, tools, text)
        must_be_rendered(plain, text, conversation, {message for _, _, message in owners}, gone)
        placed = place(segments, owners)
        for segment in placed:
            segment.text = guard.restore(segment.text)
        return self._with_media(placed, conversation)

    @cached_property
    def takes_calls(self) -> bool:
        """Whether the template renders a reply's calls and their results."""
        call = Call("f", {"a": 1}, "abcdefghi")
        messages = [Message(Role.USER, "x"), Message(Role.ASSISTANT, "", [call]), Message(Role.TOOL, "y", name="f")]
        messages[2].call_id = call.id
        try:
            self.segments(Conversation([*messages, Message(Role.ASSISTANT, "z")]))
        except RowError as error:
            return error.reject.reason is Reason.TEMPLATE_UNSTABLE
        except IntegrityError:
            return False
        return True

    def writes_name(self, role: Role) -> bool:
        """Whether the template writes the name of a user, or of a system message, that has one."""
        if role not in self._writes_name:
            named, reply = Message(role, "x", name="abcdefghi"), Message(Role.ASSISTANT, "z")
            between = [] if role is Role.USER else [Message(Role.USER, "y")]
            try:
                segments = self.segments(Conversation([named, *between, reply]))
            except (RowError, IntegrityError):
                segments = []
            self._writes_name[role] = any("abcdefghi" in segment.text for segment in segments)
        return self._writes_name[role]

    @cached_property
    def _writes_name(self) -> dict[Role, bool]:
        return {}

    def _with_media(self, segments: list[Segment], conversation: Conversation) -> list[Segment]:
        """The segments with the mark of each image or video replaced by its control tokens."""
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
            around = self.vision.around(media[number].kind) if self.vision else ""
            beside = [replace(segment, text=around, control=-1)] if around else []
            placed += beside
            for control, count in next(layouts):
                placed.append(replace(segment, text=self.names[control], control=control, repeat=count, media=number))
            placed += [replace(one) for one in beside]
        if self.takes_parts and not self.is_published(placed, conversation):
            what = "the chat template writes other text around a picture or video that is a part of a content"
            raise RowError(Reason.TEMPLATE_REFUSED, what)
        return merge(placed)

    def spelled_controls(self, conversations: list[Conversation]) -> list[str | None]:
        """The first control token that each row's own text spells, or None.

        Plain words do not count: ChatGLM3's "sop" is in "philosophy".
        """
        return [self._spelled_control(one) if self._may_spell_control(one) else None for one in conversations]

    def _spelled_control(self, conversation: Conversation) -> str | None:
        found = (match[0] for text in texts_of(conversation) for match in self.control_pattern.finditer(text))
        return next((token for token in found if not token.isalnum()), None)

    def _may_spell_control(self, conversation: Conversation) -> bool:
        """Whether a control token may be in the row: a quick test, which most rows fail."""
        if self._spelling is None:
            return True
        begin, search, search_json = self._spelling
        values = [conversation.tools] if conversation.tools is not None else []
        for message in conversation.messages:
            content = message.content
            if begin in content and search(content):
                return True
            if message.reasoning and search(message.reasoning):
                return True
            if message.calls or message.name is not None or message.call_id is not None:
                calls = [(call.name, call.id, call.arguments) for call in message.calls]
                values.append((message.name, message.call_id, calls))
        try:
            return bool(values) and search_json(orjson.dumps(values)) is not None
        except TypeError:  # what orjson cannot write is searched in full
            return True

    @cached_property
    def _spelling(self) -> tuple[str, Callable[[str], object], Callable[[bytes], object]] | None:
        """What finds control tokens in a text and in JSON, and the character that all begin with, which is found much
        faster ("" = they have none in common); None where JSON writes one in another way."""
        tokens = [text for text in self.controls if not text.isalnum()]
        if any(orjson.dumps(text).decode() != f'"{text}"' for text in tokens):
            return None
        pattern = "|".join(map(re.escape, tokens)) or r"(?!)"
        begins = {text[:1] for text in tokens}
        begin = begins.pop() if len(begins) == 1 else ""
        return begin, re.compile(pattern).search, re.compile(pattern.encode()).search


def _is_mark(segment: Segment) -> bool:
    """Whether a segment stands for an image or video; the same character in a row's text is text."""
    return segment.control >= 0 and segment.text in KIND_OF_MARK
