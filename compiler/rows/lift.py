"""A row's value to the conversations that will be rendered: repaired, checked, lifted, cleaned, its media looked at.

Nothing here knows a template; a row that cannot go on is a RowError or a Reject with its pointer.
"""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compiler import formats
from compiler.conversation import Conversation, Kind, Media, Role
from compiler.formats.common import check_turns
from compiler.formats.kinds import kind_of_row
from compiler.media.paths import located, resolve, state_of
from compiler.media.probe import probe_frames, probe_image, probe_video
from compiler.media.rules import Vision
from compiler.options import DatasetOptions, UnitOptions
from compiler.rows.clean import clean
from compiler.rows.mend import ROW_REPAIRS, mend
from compiler.rows.persona import substitute, warnings
from compiler.rows.react.check import check as check_react
from compiler.rows.react.dialect import to_text
from compiler.rows.react.prompt import Language
from compiler.rows.repair import REPAIRS
from compiler.rows.validate import Validator
from schemas.errors import Reason, Reject, RowError
from schemas.stores import SCHEME

_LANGUAGES: dict[str, Language] = {"react": "en", "react_zh": "zh"}
DIALECTS = ("template", *_LANGUAGES)
"""What tools and calls are written as: whatever the chat template renders, or ReAct text."""


@dataclass
class Preparer:
    """Prepares the rows of one unit; `notes` counts what happened to them, `files` the media that were read."""

    layout: DatasetOptions
    options: UnitOptions
    vision: Vision | None
    no_vision: str = ""
    """Why there is no vision."""
    notes: Counter[str] = field(default_factory=Counter)
    files: dict[str, list[Any] | None] = field(default_factory=dict)
    """The state of every media file looked for, by its path: an object made from others is stale."""

    def __post_init__(self) -> None:
        """Look the format up and make its validator."""
        self.format = formats.get(self.layout.format, "format")
        where = f"format {self.layout.format}"
        self.validator = Validator(self.format, self.layout.columns, self.layout.tags, where, self.layout.kind)

    def conversations(self, value: Any) -> list[Conversation | Reject]:
        """Return what a row makes: conversations, and rejects in place of those that cannot be, or one for all.

        A reject says which repairs would make the row good, where some would: that is tried.
        """
        made = self._made_or_not(value)
        if not any(isinstance(one, Reject) and "--repair" not in one.message for one in made):
            return made
        found = self._repairs_for(value)
        hint = f"; --repair {','.join([*self.options.repairs, *found])} would make the row good" if found else ""
        return [replace(one, message=one.message + hint) if isinstance(one, Reject) else one for one in made]

    def _repairs_for(self, value: Any) -> list[str]:
        """Return the fewest repairs by which the whole row is good; [] where it is not by all of them."""
        found = self._changed_by([*ROW_REPAIRS, *REPAIRS], value)
        alone = ([name] for name in found if len(found) > 1)
        return next((names for names in alone if self._changed_by(names, value) == names), found)

    def _changed_by(self, repairs: list[str], value: Any) -> list[str]:
        """Return those of the repairs that change a row which is good with them and those asked for; else []."""
        repairs = [name for name in repairs if name not in self.options.repairs]
        other = copy(self)
        other.options = replace(self.options, repairs=(*self.options.repairs, *repairs))
        other.notes = Counter()
        made = other._made_or_not(value)
        if any(isinstance(one, Reject) for one in made):
            return []
        changed = {name for one in made if isinstance(one, Conversation) for name in one.repairs}
        return [name for name in repairs if name in changed]

    def _made_or_not(self, value: Any) -> list[Conversation | Reject]:
        try:
            return self._made(value)
        except RowError as error:
            return [error.reject]

    def _made(self, value: Any) -> list[Conversation | Reject]:
        value, repaired = mend(value, self.options.repairs, self.layout.columns, self.layout.tags)
        reject = self.validator.check(value) or self._other_kind(value)
        if reject is not None:
            return [reject]
        if self.layout.persona:
            value = substitute(value, dict(self.layout.persona))
            self.notes.update(f"warning:{name}" for name in warnings(value, dict(self.layout.persona)))
        lifted = self.format.lift(value, self.layout.columns, self.layout.tags)
        many = [lifted] if isinstance(lifted, Conversation) else lifted
        return [self._prepared_or_not(one, repaired) for one in many]

    def _other_kind(self, value: dict[str, Any]) -> Reject | None:
        """Return the reject of a pair or a labelled row among plain ones: a reply to be unlearned is never trained."""
        if not self.layout.kind_by_rows or self.layout.kind != Kind.SFT:
            return None
        kind = kind_of_row(value)
        if kind not in (Kind.KTO, Kind.PREFERENCE) or kind not in self.format.kinds:
            return None
        return Reject(
            Reason.SCHEMA, f"expected a plain row as the first ones are, found a {kind} row; compile it apart"
        )

    def _prepared_or_not(self, one: Conversation | RowError, repaired: list[str]) -> Conversation | Reject:
        try:
            return one.reject if isinstance(one, RowError) else self._prepared(one, repaired)
        except RowError as error:
            return error.reject

    def _prepared(self, conversation: Conversation, repaired: list[str]) -> Conversation:
        conversation.repairs += repaired
        for name in self.options.repairs:
            if name in REPAIRS and REPAIRS[name](conversation):
                conversation.repairs.append(name)
        if self.layout.kind == Kind.PRETRAIN:
            return conversation
        turns = self.layout.columns.get(self.format.turns or "")
        pointer = f"/{turns}" if turns else None
        if self.layout.clean:
            conversation.repairs += clean(conversation, self.layout.clean, pointer)
        check_turns(conversation, pointer)
        self._check_react(conversation, pointer)
        self._look_at_media(conversation)
        if self.layout.kind != Kind.SFT:  # only the last reply is trained (decision 12)
            conversation.messages[:-1] = [replace(message, weight=0.0) for message in conversation.messages[:-1]]
        if self.options.tools == "template":
            return conversation
        tools = self.layout.columns.get("tools") or ""
        return to_text(conversation, _LANGUAGES[self.options.tools], turns=pointer, tools=f"/{tools}" if tools else "")

    def _check_react(self, conversation: Conversation, pointer: str | None) -> None:
        """Count what is wrong with ReAct replies; with --strict the first one rejects the row."""
        if not self.layout.react:
            return
        findings = check_react(conversation)
        for finding in findings:
            place = finding.message_index
            if conversation.places is not None:
                place = conversation.places[place]
            if self.options.strict:
                where = "" if pointer is None else f"{pointer}/{place}"
                raise RowError(Reason.REACT, f"{finding.rule}: {finding.message}", where)
        self.notes.update({f"warning:{rule}" for rule in {finding.rule for finding in findings}})

    def _look_at_media(self, conversation: Conversation) -> None:
        if conversation.loose:
            first = conversation.loose[0]
            raise RowError(
                Reason.MEDIA,
                f"expected as many {first.kind}s as <{first.kind}> marks in user and tool messages, found "
                f"{len(conversation.loose)} {first.kind}{'s' if len(conversation.loose) > 1 else ''} and no mark; "
                "--repair media-first puts them before the first user text",
                first.pointer,
            )
        if self.vision is not None and not conversation.media():
            texts = (m.content for m in conversation.messages if m.role in (Role.USER, Role.TOOL))
            if any("<image>" in text or "<video>" in text for text in texts):
                self.notes["warning:mark_without_media"] += 1
        for media in conversation.media():
            if self.vision is None:
                raise RowError(Reason.MEDIA, self.no_vision, media.pointer)
            with located(media.pointer):
                self._look_at(media)

    def _look_at(self, media: Media) -> None:
        assert self.vision is not None
        paths = [self._resolve(uri) for uri in media.frames or (media.uri,)]
        if media.kind == "image":
            media.facts = probe_image(paths[0])
            media.num_tokens = self.vision.image_tokens(media.facts)
        else:
            media.facts = probe_frames(paths) if media.frames else probe_video(paths[0])
            media.num_tokens = self.vision.video_tokens(media.facts)

    def _resolve(self, uri: str) -> Path:
        if self.layout.media.startswith(SCHEME):
            what = "images and videos are not read from object stores; copy them, and name the folder with --media-dir"
            raise RowError(Reason.MEDIA, what)
        root = Path(self.layout.media)
        if str(root / uri) not in self.files:  # the state that the first row saw: another one later is a change
            self.files[str(root / uri)] = state_of(root / uri)
        return resolve(root, uri)
