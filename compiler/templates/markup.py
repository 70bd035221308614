"""What a chat template writes: rendered text, the control tokens in it, and what stands for images and videos."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compiler.conversation import Conversation, Segment
from compiler.media.rules import Vision
from compiler.templates.guard import CUT, MEDIA_MARKS
from compiler.templates.jinja import ChatTemplate
from compiler.templates.messages import as_dict, content_parts
from schemas.errors import Reason, RowError

NO_VISION = (
    "the row has images or videos, and neither the tokenizer's folder (preprocessor_config.json) nor the template "
    "says how this model takes them; give --tokenizer DIR of a vision model, or --template cogagent"
)

KIND_OF_MARK = {mark: kind for kind, mark in MEDIA_MARKS.items()}


@dataclass
class Markup:
    """A chat template and the control tokens it may place: what it writes, split into texts and control tokens."""

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

    @cached_property
    def looked_for(self) -> list[str]:
        """The texts with a control token in them that the templates may look for."""
        return [text for text in self.sensitive_texts if self.control_pattern.search(text)]

    def render(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, generation_prompt: bool) -> str:
        """The rendered text; a conversation that the template refuses is a RowError."""
        template = self.tool_template if tools else self.template
        return template.render(messages, tools, generation_prompt=generation_prompt)

    def rendered_or_none(self, messages: list[dict[str, Any]], tools: Any) -> str | None:
        """The rendered text without the marks of a card; None where the template refuses the conversation."""
        try:
            return self.render(messages, tools, generation_prompt=False).replace(CUT, "")
        except RowError:
            return None

    def is_published(self, segments: list[Segment], conversation: Conversation) -> bool:
        """Whether the segments are what the chat template itself writes."""
        text = "".join(segment.text for segment in segments)
        written = self.published(conversation, len(conversation.messages))
        return text.replace(CUT, "") == written.replace(CUT, "")

    def published(self, conversation: Conversation, end: int, *, generation_prompt: bool = False) -> str:
        """The first messages as the chat template itself writes them, given as `transformers` gives them.

        Nothing is hidden, and a message with an image is a list of parts where the template takes those.
        """
        messages = [
            as_dict(m, str) | ({"content": content_parts(m)} if m.media and self.takes_parts else {})
            for m in conversation.messages[:end]
        ]
        text = self.render(messages, conversation.tools, generation_prompt=generation_prompt)
        if self.vision is None or not conversation.media():
            return text
        for kind, mark in MEDIA_MARKS.items():
            if self.takes_parts:
                text = self.vision.published(kind, text)
            elif mark in text:
                whole = "".join(self.names[control] for control, _ in self.layout(kind, 1))
                text = text.replace(mark, f"{self.vision.around(kind)}{whole}{self.vision.around(kind)}")
        return text

    def split(self, text: str) -> list[Segment]:
        """Split a rendered text at control tokens and where the family encodes two texts apart."""
        segments: list[Segment] = []
        for number, part in enumerate(text.split(CUT)):
            parts = self.split_controls(part)
            if number and parts and parts[0].control < 0:
                parts[0].boundary = parts[0].fresh = True
            segments += parts
        return segments

    def split_controls(self, text: str) -> list[Segment]:
        """Split a text at control tokens."""
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

    def stops_in(self, text: str) -> list[int]:
        """The stops that a text holds, in order."""
        return [part.control for part in self.split_controls(text) if part.control in self.stops]

    @cached_property
    def _separators(self) -> re.Pattern[str]:
        return re.compile("|".join((self.control_pattern.pattern, *KIND_OF_MARK)))  # a set instead would be slow

    def _control_of(self, found: str) -> int:
        """The id of a control token; a media mark gets that of its placeholder until its tokens are there."""
        if found not in KIND_OF_MARK:
            return self.controls[found]
        if self.vision is None:
            raise RowError(Reason.MEDIA, self.no_vision)
        return self.vision.pad(KIND_OF_MARK[found])

    def layout(self, kind: str, num_tokens: int) -> list[tuple[int, int]]:
        """(control id, how often) of what stands for an image or video: a mark, placeholders, a mark."""
        if self.vision is None:
            raise RowError(Reason.MEDIA, self.no_vision)
        return self.vision.layout(kind, num_tokens)
