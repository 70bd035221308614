"""One unit compiled: rows -> conversations -> segments -> columns -> one object in the cache.

`run_unit` is pure: its object depends on the task alone, not on the worker, the engine or what ran before. It is what
every engine calls.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

import registry
from compiler import fit, formats, objects
from compiler.columns import columns_of, within
from compiler.conversation import Conversation
from compiler.encode import Encoded, encode
from compiler.formats.common import check_turns
from compiler.persona import substitute
from compiler.read import Row, Unit, read
from compiler.repair import REPAIRS, merge_system
from compiler.templates.load import Template, load_template
from compiler.templates.program import SkeletonMismatch
from compiler.tokenizer import Tokenizer
from compiler.validate import Validator
from compiler.weigh import Policy, weigh
from schemas.arrow import OBJECT
from schemas.errors import Reason, Reject, RowError

BATCH = 512
"""Rows encoded in one call: enough for the tokenizer, small enough to bound memory."""


@dataclass(frozen=True)
class Settings:
    """What a run asks of every unit, and what decides the objects besides the input."""

    tokenizer: str
    tokenizer_digest: str
    template: str
    template_digest: str
    special_text: str
    max_length: int | None
    overlength: str
    merge_system: bool
    repairs: tuple[str, ...]
    skeletons: bool = True


@dataclass(frozen=True)
class Layout:
    """How the rows of one dataset are read: format, names of columns and tags, weights policy, substitutions."""

    format: str
    columns: formats.Names
    tags: formats.Names
    weights: str
    persona: tuple[tuple[str, str], ...] = ()
    """(placeholder with its language, value) pairs of the self-cognition pool; see compiler/persona.py."""


@dataclass(frozen=True)
class Task:
    """A unit and everything that decides its object. Picklable."""

    unit: Unit
    layout: Layout
    settings: Settings
    cache: str
    dataset: str
    """Its name, for progress only."""
    key: str
    """The object's name, worked out once by whoever plans the run."""


def object_key(unit: Unit, layout: Layout, settings: Settings) -> str:
    """Return the name of the object that a unit compiled this way becomes."""
    asked = asdict(settings)
    del asked["tokenizer"]  # where the files are does not matter, only what they say
    read_as = asdict(layout) | {"policy": registry.weights(layout.weights)}
    return objects.key_of(unit.kind, unit.digest, list(unit.header), read_as, asked)


@lru_cache(maxsize=2)
def _tools(settings: Settings) -> tuple[Tokenizer, Template]:
    """Return the tokenizer and template of the settings, loaded once in each process."""
    tokenizer = Tokenizer.load(Path(settings.tokenizer))
    template = load_template(
        settings.template, tokenizer, special_text=settings.special_text, skeletons=settings.skeletons
    )
    return tokenizer, template


def run_unit(task: Task) -> str | None:
    """Compile the unit into the cache. Return None, or the reason why the run must be done without skeletons."""
    compiler = _UnitCompiler(task)
    try:
        compiler.run()
    except SkeletonMismatch:
        return "a skeleton did not reproduce the chat template's rendering"
    objects.store(Path(task.cache), task.key, compiler.table(), compiler.info())
    return None


class _UnitCompiler:
    """The state of compiling one unit: columns so far, rejects, counts."""

    def __init__(self, task: Task) -> None:
        self.task, self.settings, self.layout = task, task.settings, task.layout
        self.format = formats.get(self.layout.format, "format")
        self.tokenizer, self.template = _tools(self.settings)
        self.policy = Policy.from_card(registry.weights(self.layout.weights))
        where = f"format {self.layout.format}"
        self.validator = Validator(self.format, self.layout.columns, self.layout.tags, where)
        self.rejects: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.batches: list[pa.RecordBatch] = []

    def run(self) -> None:
        self.template.program.start_unit()
        pending: list[tuple[Row, Conversation]] = []
        for row in read(self.task.unit):
            self.counts["read"] += 1
            reject = row.reject or self.validator.check(row.value)
            if reject is None:
                try:
                    pending.append((row, self._lift(row.value)))
                except RowError as error:
                    reject = error.reject
            if reject is not None:
                self._reject(row, reject)
            if len(pending) == BATCH:
                self._encode(pending)
                pending = []
        if pending:
            self._encode(pending)

    def _lift(self, value: Any) -> Conversation:
        if self.layout.persona:
            value = substitute(value, dict(self.layout.persona))
        conversation = self.format.lift(value, self.layout.columns, self.layout.tags)
        for name in self.settings.repairs:
            if REPAIRS[name](conversation):
                conversation.repairs.append(name)
        turns = self.layout.columns.get(self.format.turns or "")
        check_turns(conversation, f"/{turns}" if turns else None)
        return conversation

    def _segments(self, conversation: Conversation) -> list[Any]:
        """Return the weighed segments."""
        return weigh(conversation, self.template.program.segments(conversation), self.policy)

    def _encode(self, pending: list[tuple[Row, Conversation]]) -> None:
        ready: list[tuple[Row, Conversation, list[Any]]] = []
        for row, conversation in pending:
            try:
                self._look_for_controls(conversation)
                ready.append((row, conversation, self._segments_or_merged(conversation)))
            except RowError as error:
                self._reject(row, error.reject)
        encoded = self._run_encoder([(conversation, segments) for _, conversation, segments in ready])
        kept = []
        for (row, conversation, _), example in zip(ready, encoded, strict=True):
            try:
                kept.append((row, conversation, self._fit(conversation, example)))
            except RowError as error:
                self._reject(row, error.reject)
        if kept:
            self.batches.append(columns_of(kept, self.task.unit))

    def _segments_or_merged(self, conversation: Conversation) -> list[Any]:
        try:
            return self._segments(conversation)
        except RowError as error:
            refused = error.reject.reason is Reason.TEMPLATE_REFUSED
            if not (refused and self.settings.merge_system and merge_system(conversation)):
                if refused and conversation.messages[0].role == "system" and not self.settings.merge_system:
                    hint = "; if it takes no system message, --system merge puts it before the first user message"
                    raise RowError(error.reject.reason, error.reject.message + hint) from error
                raise
            conversation.repairs.append("system_merge")
            return self._segments(conversation)

    def _look_for_controls(self, conversation: Conversation) -> None:
        found = self.template.program.rendering.spells_control(conversation)
        if found is None:
            return
        if self.settings.special_text == "reject":
            raise RowError(Reason.SPECIAL_TEXT, f"the text spells the control token {found!r}")
        self.notes["special_text"] += 1

    def _run_encoder(self, batch: list[tuple[Conversation, list[Any]]]) -> list[Encoded]:
        return encode(batch, self.tokenizer) if batch else []

    def _fit(self, conversation: Conversation, example: Encoded) -> Encoded:
        def again(shorter: Conversation) -> Encoded:
            return self._run_encoder([(shorter, self._segments(shorter))])[0]

        if self.settings.max_length is not None and len(example.ids) > self.settings.max_length:
            example = fit.fit(conversation, example, self.settings.max_length, self.settings.overlength, again)
            self.notes["shortened"] += 1
        if not (example.weights > 0).any():
            raise RowError(Reason.NOTHING_TRAINED, "no token of it would be trained")
        for name in conversation.repairs:
            self.notes[f"repair:{name}"] += 1
        return example

    def _reject(self, row: Row, reject: Reject) -> None:
        self.counts[f"rejected:{reject.reason}"] += 1
        try:
            raw = {"raw": row.raw.decode()}
        except UnicodeDecodeError:
            raw = {"raw_hex": row.raw.hex()}
        self.rejects.append(
            {
                "index": row.index,
                "offset": within(row.offset, self.task.unit),
                "length": row.length,
                "pointer": reject.pointer,
                "reason": str(reject.reason),
                "message": reject.message,
                **raw,
            }
        )

    def table(self) -> pa.Table:
        """Return the compiled rows."""
        return pa.Table.from_batches(self.batches, OBJECT)

    def info(self) -> dict[str, Any]:
        """Return counts and rejects, as the object's record keeps them."""
        self.rejects.sort(key=lambda reject: reject["index"])
        return {"counts": dict(self.counts), "notes": dict(self.notes), "rejects": self.rejects}
