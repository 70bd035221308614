"""A row's value to the conversations that will be rendered, step by step:

    unpack    lists given as JSON text, nulls that unions add          unpack.py
    mend      repairs of the row as it is in the file (--repair)       mend.py
    validate  the row against the schema of its format                 validate.py
    account   for the keys that the format does not read               keys.py
    fill in   who the model is, in rows about that                     persona.py
    lift      the format's own function: one or more conversations     compiler/formats
    repair    repairs of a conversation (--repair)                     repair.py
    clean     the rules of the dataset's card                          clean.py
    join      calls in consecutive messages, and in blocks of text    calls.py
    redact    secrets in texts, or only count them (--scan-secrets)   secrets.py
    check     the order of turns; ReAct replies                        formats/turns.py, react/check.py
    look      at images and videos                                     media.py
    rewrite   tools and calls as ReAct text (--tools react)            react/dialect.py

Nothing here knows a template. A row that cannot go on is a reject with its pointer; hints.py adds what would help.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from operator import attrgetter
from typing import Any

from compiler import formats
from compiler.conversation import ASSISTANT, Conversation, Kind, Message, Role
from compiler.formats.common import UNREAD
from compiler.formats.kinds import KIND_KEYS, columns_of_row, kind_of_row
from compiler.formats.openai import NAMED
from compiler.formats.turns import check_turns, take_turns
from compiler.media.rules import Vision
from compiler.options import DatasetOptions, Names, UnitOptions
from compiler.rows.calls import has_blocks, join_calls, take_out_blocks
from compiler.rows.checks import checks
from compiler.rows.clean import clean
from compiler.rows.hints import Hints
from compiler.rows.keys import MOST, OTHERS
from compiler.rows.media import Keep, MediaOfRows
from compiler.rows.mend import mend
from compiler.rows.persona import substitute, warnings
from compiler.rows.react.check import check as check_react
from compiler.rows.react.check import is_react
from compiler.rows.react.dialect import to_text
from compiler.rows.react.prompt import Language
from compiler.rows.repair import repair
from compiler.rows.secrets import look
from compiler.rows.texts import is_empty, markers_in, remarks_on
from compiler.rows.unpack import check_without_nulls, held_columns, unpack
from compiler.rows.where import where as condition
from schemas.errors import Reason, Reject, RowError

_LANGUAGES: dict[str, Language] = {"react": "en", "react_zh": "zh"}
DIALECTS = ("template", *_LANGUAGES)
"""How tools and calls are written: as the chat template does, or as ReAct text."""
_WORDS = {kind: "plain" if kind == Kind.SFT else str(kind) for kind in Kind}
_BY_THEMSELVES = "compile such rows by themselves, or say with --kind what all rows are"
_content_of, _media_of, _role_of = attrgetter("content"), attrgetter("media"), attrgetter("role")


class Preparer:
    """Prepares the rows of one unit for rendering; `notes` counts what happened to them.

    `unread` counts the rows with a key that nothing reads, `ignored` those with one that --ignore lists.
    """

    def __init__(
        self,
        dataset: DatasetOptions,
        options: UnitOptions,
        vision: Vision | None,
        no_vision: str = "",
        takes_calls: Callable[[], bool] = lambda: True,
        keep: Keep = lambda uri, data: None,  # noqa: ARG005
        writes_name: Callable[[Role], bool] = lambda role: False,  # noqa: ARG005
    ) -> None:
        self.dataset, self.options = dataset, options
        self._takes_calls = takes_calls if options.tools == "template" else lambda: True
        """Whether the template has a place for calls and results; asked only where a row has them as text."""
        self._writes_name = writes_name
        """Whether the template writes the name of a speaker of a role; asked only where a row has one."""
        self.notes: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.media = MediaOfRows(dataset.media, vision, no_vision, keep)
        self._columns, self._tags, self._persona = dataset.columns, dataset.tags, dict(dataset.persona)
        self._format = formats.get(dataset.format, "format")
        more = (*(("tag",) if self._persona else ()), *(condition(dataset.where).columns if dataset.where else ()))
        self._validator, self._keys = checks(dataset, options.ignore, more)
        self._held = held_columns(self._format, self._columns)
        turns, tools = (self._columns.get(name) for name in (self._format.turns or "", "tools"))
        listed = "" if self._format.bare else None
        self._turns, self._tools = f"/{turns}" if turns else listed, f"/{tools}" if tools else ""
        self._kind_keys = frozenset(dataset.kind_keys) if dataset.kind == Kind.SFT else frozenset()
        """The keys that a row among plain ones has only if it is of another kind, and a reject."""
        self._others = dataset.other_names
        self._telling = self._kind_keys | self._others.keys()
        self._variants: dict[tuple[str | None, ...], Preparer] = {}
        """For rows under other names of columns."""
        parts = [dataset.policy, *dataset.policy.get("then", ())] if options.tools == "template" else []
        self._plain, self._documents = dataset.kind == Kind.SFT, dataset.kind == Kind.PRETRAIN
        self._react = any(part.get("only_react") or part.get("replies") == "final" for part in parts)
        """Whether the weights tell ReAct text from other text, so that each row is looked at."""
        self._says_plain = any(part.get("only_react") and part.get("replies") != "final" for part in parts)
        """Whether other text is trained whole under weights for ReAct text, which is counted."""
        self._knows_react = dataset.weights != "none" or options.tools != "template"
        """Whether ReAct text in replies is weighed, or written by us: then there is nothing to remark on it."""
        self._hints = Hints(self._attempt, options.repairs, self._columns, self._tags)

    def reads(self, key: str) -> bool:
        """Whether a key of a row may be read: it is a column, or the schema of the format or the kind names it."""
        named = self._validator.schema.get("properties", ())
        return key in named or key in KIND_KEYS or key in self._format.columns or key in self._columns.values()

    def becomes(self, key: str) -> tuple[str, str]:
        """What becomes of a key of a row, and as which column it is read, or why it is not."""
        columns = {name: column for column, name in self._columns.items() if name is not None} | self._others
        return ("read", columns[key]) if key in columns else self._keys.becomes(key)

    def conversations(self, value: Any) -> list[Conversation | Reject]:
        """What a row makes: conversations, and rejects in place of those that cannot be, or one reject for all.

        A reject says which repairs would make the row good, where some would: that is tried.
        """
        made = self._made(value)
        for one in made:
            if one.__class__ is Reject:
                return self._hints.add(value, made)
        return made

    def _attempt(self, value: Any, repairs: Sequence[str]) -> list[Conversation | Reject]:
        """What a row would make with more repairs; it leaves no trace in the notes."""
        other = copy(self)
        other.options = replace(self.options, repairs=(*self.options.repairs, *repairs))
        other.notes, other.unread, other.ignored = Counter(), Counter(), Counter()
        return other._made(value)

    def _made(self, value: Any) -> list[Conversation | Reject]:
        mended: list[str] = []
        try:
            if (telling := self._tells(value)) and not self._others.keys().isdisjoint(value):
                columns = columns_of_row(self._format, self.dataset.kind, value, self._columns, self._others)
                if columns != self._columns:
                    return self._variant(columns)._made(value)
            if (held := unpack(value, self._held)) is not value:
                value = held
                self.notes["json_text"] += 1
            if self.options.repairs:
                value, mended = mend(value, self.options.repairs, self._columns, self._tags)
                telling = self._tells(value)
            if (reject := self._validator.check(value)) is not None:
                value, reject = check_without_nulls(value, self._held, self._validator, reject)
                if reject is not None:
                    return [self._of_other_kind(value, reject)]
            if telling and not self._kind_keys.isdisjoint(value):
                self._check_kind(value)
            if not self._keys.covers(value):
                self._account(value)
            if self._persona:
                value = substitute(value, self._persona)
                self.notes.update(f"warning:{name}" for name in warnings(value, self._persona))
            lifted = self._format.lift(value, self._columns, self._tags)
        except RowError as error:
            return [error.reject]
        if isinstance(lifted, Conversation):
            return [self._finished(lifted, mended)]
        return [one.reject if isinstance(one, RowError) else self._finished(one, mended) for one in lifted]

    def _tells(self, value: Any) -> bool:
        """Whether a row has a key by which it says that it is not read like most of them."""
        return isinstance(value, dict) and not self._telling.isdisjoint(value)

    def _variant(self, columns: Names) -> Preparer:
        """The same for rows that call columns otherwise; what it counts is counted here."""
        key = tuple(columns.values())
        if key not in self._variants:
            dataset = replace(self.dataset, columns=columns, other_names={})
            self._variants[key] = Preparer(
                dataset, self.options, self.media.vision, takes_calls=self._takes_calls, writes_name=self._writes_name
            )
        made = self._variants[key]
        made.notes, made.unread, made.ignored = self.notes, self.unread, self.ignored
        made.media, made.options = self.media, self.options
        return made

    def _check_kind(self, value: dict[str, Any]) -> None:
        """Refuse a pair or a labelled row among plain ones: a reply to be unlearned is never trained."""
        kind = kind_of_row(value, self._kind_keys)
        if kind in (Kind.KTO, Kind.PREFERENCE) and kind in self._format.kinds:
            raise RowError(Reason.SCHEMA, f"{self._like_the_first(kind)}; {_BY_THEMSELVES}")

    def _of_other_kind(self, value: Any, reject: Reject) -> Reject:
        """What is wrong with a row; where it is of another kind than the first rows, that it is."""
        if not self.dataset.kind_keys or not isinstance(value, dict):
            return reject
        kind = kind_of_row(value, self.dataset.kind_keys)
        if kind in (self.dataset.kind, Kind.PRETRAIN) or self.dataset.kind == Kind.PRETRAIN:
            return reject
        return replace(reject, message=f"{self._like_the_first(kind)} ({reject.message}); {_BY_THEMSELVES}")

    def _like_the_first(self, kind: Kind) -> str:
        return f"expected a {_WORDS[Kind(self.dataset.kind)]} row like the first ones, found a {_WORDS[kind]} row"

    def _account(self, value: dict[str, Any]) -> None:
        """Count the keys of a row that nothing reads."""
        found = self._keys.unread(value)
        for name in found.names:
            self.unread[name if name in self.unread or len(self.unread) < MOST else OTHERS] += 1
        self.ignored.update(found.ignored)

    def _count_what_was_left_out(self, conversation: Conversation) -> None:
        """Count the keys that the lift left out, and names that are left out here, instead of noting them."""
        paths = {note.removeprefix(UNREAD) for note in conversation.notes if note.startswith(UNREAD)}
        if NAMED in conversation.notes and self._leave_out_names(conversation):
            paths.add(f"{self._columns[self._format.turns]}[].name" if self._format.turns else "name")
        conversation.notes = [note for note in conversation.notes if note != NAMED and not note.startswith(UNREAD)]
        for path in paths:
            asked = self._keys.ignored(path.rpartition(".")[2], path)
            self.ignored.update(asked)
            self.unread.update([] if asked else [path])

    def _leave_out_names(self, conversation: Conversation) -> bool:
        """Leave out the names of speakers that the template does not write; whether there were any.

        A reply's name would stand before the reply, where inference puts none.
        """
        unread = False
        for message in conversation.said:
            if message.name is not None and message.role is not Role.TOOL:
                if message.role is not Role.ASSISTANT and self._writes_name(message.role):
                    continue
                message.name, unread = None, True
        return unread

    def _finished(self, conversation: Conversation, mended: list[str]) -> Conversation | Reject:
        """A lifted conversation after the steps that follow, or the reject of the one that it cannot pass."""
        try:
            if self.options.repairs:
                conversation.repairs += [*mended, *repair(conversation, self.options.repairs)]
            if self._documents:
                conversation.notes = markers_in(conversation.messages[0].content)
                return look(conversation, redact=self.options.redact) if self.options.scan_secrets else conversation
            if self.dataset.clean:
                conversation.repairs += clean(conversation, self.dataset.clean, self._turns)
            if conversation.notes:
                self._count_what_was_left_out(conversation)
            texts = list(map(_content_of, conversation.said))
            text = "\n".join(texts)
            blocks = "<" in text and "<tool_" in text and has_blocks(conversation.said) and self._takes_calls()
            conversation = self._in_turns(conversation, blocks=blocks)
            said = conversation.said
            if blocks or not all(map(str.strip, texts)):
                self._check_replies(conversation, said)
            vision = self.media.vision is not None
            if found := remarks_on(said, text, empty="" in texts, vision=vision, react=self._knows_react):
                conversation.notes = [*conversation.notes, *found]
            if self._react or self.dataset.react:
                self._check_react(conversation, said)
            if (
                self.media.vision
                or conversation.loose
                or conversation.objects
                or any(map(_media_of, conversation.messages))
            ):
                self.media.look(conversation, self.notes)
            if not self._plain:  # only the last reply is trained (decision 12)
                conversation.messages[:-1] = [replace(message, weight=0.0) for message in conversation.messages[:-1]]
            if self.options.tools == "template":
                return conversation
            return to_text(conversation, _LANGUAGES[self.options.tools], turns=self._turns, tools=self._tools)
        except RowError as error:
            return error.reject

    def _in_turns(self, conversation: Conversation, *, blocks: bool) -> Conversation:
        """The conversation with its calls joined, those in blocks of text too; its turns are in order."""
        if blocks:
            take_out_blocks(conversation)
        in_turns = take_turns(tuple(map(_role_of, conversation.messages)))
        if not in_turns:  # nowhere else do replies follow one another
            join_calls(conversation)
        if self.options.scan_secrets:
            conversation = look(conversation, redact=self.options.redact)
        if not in_turns:
            check_turns(conversation, self._turns)
        return conversation

    def _check_replies(self, conversation: Conversation, said: list[Message]) -> None:
        """Refuse a reply with nothing in it that would be trained (decision 29)."""
        last = conversation.rejected
        for i, message in enumerate(said):
            if message.role is not ASSISTANT or message.content.strip() or not is_empty(message):
                continue
            if message.weight == 0:
                continue
            place = -1 if message is last else conversation.places[i] if conversation.places else i
            if self.dataset.kind != Kind.SFT and message is not last and message is not conversation.messages[-1]:
                continue  # history, which is not trained
            if not self.options.allow_empty:
                where = "" if self._turns is None or place < 0 else f"{self._turns}/{place}"
                what = "expected a reply with a text or calls, found nothing in it, and only its stop would be trained"
                raise RowError(Reason.EMPTY_REPLY, f"{what}; --allow-empty trains it", where)
            conversation.notes = sorted({*conversation.notes, "empty_reply"})

    def _check_react(self, conversation: Conversation, said: list[Message]) -> None:
        """Count what is wrong with ReAct replies; with --strict the first finding rejects the row."""
        if self._react and not is_react(said):
            conversation.plain = True
            conversation.notes = [*conversation.notes, *(["not_react"] if self._says_plain else [])]
            return
        findings = check_react(conversation) if self.dataset.react else []
        if findings and self.options.strict:
            first = findings[0]
            place = first.message_index if conversation.places is None else conversation.places[first.message_index]
            where = "" if self._turns is None else f"{self._turns}/{place}"
            raise RowError(Reason.REACT, f"{first.rule}: {first.message}", where)
        if findings:
            self.notes.update({f"warning:{finding.rule}" for finding in findings})
