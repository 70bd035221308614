"""Messages made of items, where a reply has an item for its reasoning, its text and each call."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Call, Conversation, Media, Message, Role
from schemas.errors import Reason, RowError


class Thread:
    """The messages so far, with the place of each in the row's list. Pieces of one reply become one message."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.places: list[int] = []
        self.notes: list[str] = []

    def add(self, message: Message, place: int) -> Message:
        """Add a message."""
        self.messages.append(message)
        self.places.append(place)
        return message

    def reason(self, text: str, place: int, pointer: str, weight: float | None = None) -> None:
        """Add reasoning to the reply that is being made. It comes before the text and the calls."""
        if not text:
            return
        reply = self._reply(place, weight)
        if reply.content or reply.calls:
            what = "expected reasoning before the text and the calls of its reply, found it after them"
            raise RowError(Reason.TURN_ORDER, what, pointer)
        reply.reasoning = (reply.reasoning or "") + text

    def say(self, text: str, place: int, pointer: str, weight: float | None = None, *, more: bool = False) -> None:
        """Add the text of a reply. `more` continues a text; without it, a second text is a reply of its own."""
        if not more and self._last_says():
            self.add(Message(Role.ASSISTANT, text, weight=weight), place)
            return
        reply = self._reply(place, weight)
        if reply.calls and text:
            what = "expected the text of a reply before its calls, found it after them"
            raise RowError(Reason.TURN_ORDER, what, pointer)
        reply.content += text

    def call(self, call: Call, place: int, weight: float | None = None) -> None:
        """Add a call to the reply that is being made."""
        self._reply(place, weight).calls.append(call)

    def hide(self) -> None:
        """Note reasoning that is only there in encrypted form."""
        self.notes.append("hidden_reasoning")

    def conversation(self, system: str | None, tools: list[Any] | None, first: int = -1) -> Conversation:
        """The conversation. A system text goes first, from the place `first`, unless a system message is there."""
        if system and not (self.messages and self.messages[0].role is Role.SYSTEM):
            self.messages.insert(0, Message(Role.SYSTEM, system))
            self.places.insert(0, first)
        return Conversation(self.messages, tools, places=self.places, notes=sorted(set(self.notes)))

    def _last_says(self) -> bool:
        last = self.messages[-1] if self.messages else None
        return last is not None and last.role is Role.ASSISTANT and bool(last.content) and not last.calls

    def _reply(self, place: int, weight: float | None) -> Message:
        """The reply that is being made, or a new one."""
        if self.messages and self.messages[-1].role is Role.ASSISTANT:
            return self.messages[-1]
        return self.add(Message(Role.ASSISTANT, "", weight=weight), place)


def add_parts(message: Message, parts: Any, pointer: str) -> Message:
    """Fill in a content: a text, or parts with `text` or an image. Texts are joined as they are.

    An image is `image_url` as OpenAI has it, or `source` as Anthropic has it: a URL, a path, or data in base64.
    """
    if not isinstance(parts, list):
        message.content += parts or ""
        return message
    for i, part in enumerate(parts):
        if "text" in part:
            message.content += part["text"]
        elif message.role not in (Role.USER, Role.TOOL):
            what = f"expected text in a message of the {message.role}, found {part['type']!r}"
            raise RowError(Reason.MEDIA, what, f"{pointer}/{i}")
        else:
            message.media.append(Media("image", _uri(part), at=len(message.content), pointer=f"{pointer}/{i}"))
    return message


def text_of(parts: Any) -> str | None:
    """The text of a text or of parts that are all texts."""
    return "".join(part["text"] for part in parts) if isinstance(parts, list) else parts


def _uri(part: dict[str, Any]) -> str:
    found = part["source"] if "source" in part else part["image_url"]
    if isinstance(found, str):
        return found
    if "data" in found:
        return f"data:{found['media_type']};base64,{found['data']}"
    return str(found["url"] if "url" in found else found["path"])
