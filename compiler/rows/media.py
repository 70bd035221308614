"""The images and videos of a row: each found under the media folder, or in the row, measured, and counted in tokens."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.conversation import Conversation, Media, MediaFacts, Role
from compiler.media.embedded import data_of, facts_of, is_data_url
from compiler.media.paths import located, resolve, state_of
from compiler.media.probe import probe_frames, probe_image, probe_video
from compiler.media.rules import Vision
from compiler.rows.objects import write_objects
from schemas.errors import Reason, RowError
from schemas.stores import SCHEME

Keep = Callable[[str, bytes], None]
"""Keeps a file under the uri that it has in the set."""


class MediaOfRows:
    """Looks at the media of the rows of one unit."""

    def __init__(self, folder: str, vision: Vision | None, no_vision: str, keep: Keep) -> None:
        self.folder, self.vision, self._keep = folder, vision, keep
        self.no_vision = no_vision
        """Why there is no vision."""
        self.files: dict[str, list[Any] | None] = {}
        """The state of every file looked for, by its path: an object made from others is stale."""
        self.embedded: dict[str, int] = {}
        """The size of every file that was made of an image in a row, by its uri."""
        self._known: dict[str, tuple[MediaFacts, str]] = {}

    def look(self, conversation: Conversation, notes: Counter[str]) -> None:
        """Measure all media and write the objects, or raise the RowError of the first that cannot be."""
        if conversation.loose:
            first = conversation.loose[0]
            raise RowError(
                Reason.MEDIA,
                f"expected as many {first.kind}s as <{first.kind}> marks in user and tool messages, found "
                f"{len(conversation.loose)} {first.kind}{'s' if len(conversation.loose) > 1 else ''} and no mark; "
                "--repair media-first puts them before the first user text",
                first.pointer,
            )
        media = conversation.media()
        if self.vision is not None and not media:
            texts = (m.content for m in conversation.messages if m.role in (Role.USER, Role.TOOL))
            if any("<image>" in text or "<video>" in text for text in texts):
                notes["warning:mark_without_media"] += 1
        for one in media:
            if self.vision is None:
                raise RowError(Reason.MEDIA, self.no_vision, one.pointer)
            with located(one.pointer):
                self._measure(one, self.vision)
        if self.vision is not None and self.vision.trims:
            _trim(conversation)
        if conversation.objects is not None:
            write_objects(conversation, conversation.objects, self.vision, self.no_vision)

    def _measure(self, media: Media, vision: Vision) -> None:
        if media.embedded is not None or any(map(is_data_url, media.frames or (media.uri,))):
            self._take_out(media, vision)
            return
        paths = [self._resolve(uri) for uri in media.frames or (media.uri,)]
        if media.kind == "image":
            media.facts = probe_image(paths[0])
            media.num_tokens = vision.image_tokens(media.facts)
        else:
            media.facts = probe_frames(paths) if media.frames else probe_video(paths[0])
            media.num_tokens = vision.video_tokens(media.facts)

    def _take_out(self, media: Media, vision: Vision) -> None:
        """Measure an image that the row holds, and make a file of it. Equal ones in a unit are looked at once."""
        if media.kind != "image":
            what = f"expected a {media.kind} as a file, found its bytes in the row; save them, and give the path"
            raise RowError(Reason.MEDIA, what)
        if media.embedded is not None:
            data, sha256 = media.embedded.data, media.embedded.sha256
        else:
            data = data_of(media.uri)
            sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self._known:
            self._known[sha256] = facts_of(data, sha256)
        media.facts, uri = self._known[sha256]
        media.num_tokens = vision.image_tokens(media.facts)
        if uri not in self.embedded:
            self._keep(uri, data)
            self.embedded[uri] = len(data)
        media.uri, media.embedded = uri, None

    def _resolve(self, uri: str) -> Path:
        if self.folder.startswith(SCHEME):
            what = "images and videos are not read from object stores; copy them, and name the folder with --media-dir"
            raise RowError(Reason.MEDIA, what)
        root = Path(self.folder)
        if str(root / uri) not in self.files:  # the state that the first row saw; a later one is a change
            self.files[str(root / uri)] = state_of(root / uri)
        return resolve(root, uri)


def _trim(conversation: Conversation) -> None:
    """Take white space from the ends of the texts beside media, as the chat template does with parts of a content."""
    for message in conversation.messages:
        if message.media:
            message.content, places = message.changed(str.strip)
            for media, at in zip(message.media, places, strict=True):
                media.at = at
