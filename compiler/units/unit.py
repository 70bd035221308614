"""One unit compiled: rows -> conversations -> runs of text -> columns -> one object in the cache.

`run_unit` is pure: its object depends on the task alone, not on the worker, the engine or what ran before.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from compiler.cache import objects
from compiler.conversation import Conversation, Kind
from compiler.encode import length
from compiler.encode.batch import Encoded
from compiler.encode.columns import Example, columns_of, within
from compiler.encode.sequences import SequenceMaker
from compiler.encode.shapes import Owner, Rendered
from compiler.encode.tokens import encode
from compiler.encode.weigh import Policy
from compiler.media.embedded import without_base64
from compiler.read import FileKind, Row, lines_of_items, read
from compiler.rows.lift import Preparer
from compiler.rows.overlap import check_with
from compiler.rows.secrets import FIRST, kinds_in, quotes
from compiler.rows.where import where
from compiler.templates.load import Template, load_template
from compiler.templates.program import SkeletonMismatch
from compiler.tokenizer.encoders import version_of
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units.task import Outcome, Setup, Task, Trouble
from schemas.arrow import OBJECT, OBJECT_NEAR
from schemas.errors import IntegrityError, Reason, Reject, RowError
from schemas.memory import without_collections

BATCH = 512
"""Rows encoded in one call: enough for the tokenizer, small enough to bound memory."""


@lru_cache(maxsize=2)
def tools_of(setup: Setup) -> tuple[Tokenizer, Template]:
    """The tokenizer and template of a setup, loaded once in each process."""
    tokenizer = Tokenizer.load(Path(setup.tokenizer))
    template = load_template(
        setup.template,
        tokenizer,
        special_text=setup.options.special_text,
        skeletons=setup.skeletons,
        documents=setup.documents,
        thinking=setup.options.thinking,
    )
    if (tokenizer.digest, template.digest) != (setup.tokenizer_digest, setup.template_digest):
        raise IntegrityError(
            setup.tokenizer, "the tokenizer or its chat template is not the one that the run was planned with",
            "It was changed meanwhile, or this machine has another one there; run again with one for all.",
        )  # fmt: skip
    return tokenizer, template


@lru_cache(maxsize=4)
def _maker(setup: Setup, card: str) -> SequenceMaker:
    """What makes sequences with a weights policy, a JSON text; the shapes that it has met serve later units too."""
    policy = Policy.from_card(json.loads(card))
    return SequenceMaker(*tools_of(setup), policy, setup.options.system == "merge")


def run_unit(task: Task) -> Outcome:
    """Compile the unit into the cache, unless the outcome says why that must be done in another way."""
    compiler = _UnitCompiler(task)
    try:
        with without_collections():
            compiler.run()
    except SkeletonMismatch:
        return Outcome(Trouble.SKELETON)
    samples = compiler.tokenizer.pop_samples()
    made = objects.store(Path(task.cache), task.key, compiler.table(), compiler.info(len(samples)))
    return Outcome(object=made, samples=samples)


def examples_of(task: Task) -> Iterator[Example]:
    """Yield the examples of the unit, in the order of its object, which does not hold their conversations."""
    for kept in _UnitCompiler(task).examples():
        yield from kept


@dataclass(slots=True)
class _Pending:
    """A conversation on its way to an example, with its sequences."""

    row: Row
    part: int
    conversation: Conversation
    sequences: list[Rendered]


class _UnitCompiler:
    """The state of compiling one unit: columns so far, rejects, counts.

    Counts are of examples: a row that makes several counts once as read and the rest as "expanded".
    """

    def __init__(self, task: Task) -> None:
        self.task, self.options, self.read_as = task, task.setup.options, task.read_as
        self.tokenizer, self.template = tools_of(task.setup)
        rendering = self.template.program.rendering
        self.preparer = Preparer(
            self.read_as, self.options, rendering.vision, rendering.no_vision, lambda: rendering.takes_calls,
            partial(objects.keep_file, Path(task.cache)), rendering.writes_name,
        )  # fmt: skip
        self.rejects: list[dict[str, Any]] = []
        self.lines: list[tuple[int, int]] = []
        """The runs of rows that begin on consecutive lines: number of the first row, and its line within the unit."""
        self.items = 0
        """The number of items of a session, whose lines are noted in place of the row's."""
        self.counts: Counter[str] = Counter(read=0)
        self.notes = self.preparer.notes
        self.maker = _maker(task.setup, json.dumps(self.read_as.policy))
        self.batches: list[pa.RecordBatch] = []
        self.owners: dict[Owner, int] = {}
        self.checked = check_with(self.options, task.setup.benchmarks)
        self.secrets: dict[str, list[int]] = {}
        """The first rows with each kind of secret."""

    def run(self) -> None:
        for kept in self.examples():
            if kept:
                self.batches.append(columns_of(kept, self.task.unit, self.owners, near=self.task.setup.near))

    def examples(self) -> Iterator[list[Example]]:
        """Yield the examples of each batch of rows."""
        rows = read(self.task.unit)
        for first in rows:
            yield self._compile(self._noted(chain([first], islice(rows, BATCH - 1))))

    def _noted(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass rows on, count them, and note where they, or a session's items, do not begin on consecutive lines."""
        gap = self.lines[-1][1] - self.lines[-1][0] if self.lines else None
        for row in rows:
            self.counts["read"] += 1
            begun = [] if row.line is None else [(row.index, row.line)]
            if self.task.unit.kind is FileKind.SESSION:
                begun = list(enumerate(lines_of_items(row)))
                self.items = len(begun)
            for number, line in begun:
                if line - number != gap:
                    gap = line - number
                    self.lines.append((number, line))
            yield row

    def _compile(self, rows: Iterable[Row]) -> list[Example]:
        """Compile a batch of rows: to conversations, to sequences, to tokens, to examples.

        Rows are read one by one: each may hold images, which are gone from memory once it is a conversation.
        """
        if self.read_as.where:
            rows = self._chosen(list(rows))
        found = [(row, one) for row in rows for one in self._conversations(row)]
        made = iter(self.maker.make([one for _, one in found if isinstance(one, Conversation)], self.notes))
        ready: list[_Pending] = []
        before, part = None, 0
        for row, one in found:
            part = part if row is before else 0
            before = row
            examples = one if isinstance(one, Reject) else next(made)
            if isinstance(examples, Reject):
                self._reject(row, examples)
                part += 1
                continue
            self.counts["expanded"] += len(examples) - 1
            ready += [_Pending(row, part + n, conversation, some) for n, (conversation, some) in enumerate(examples)]
            part += len(examples)
        encoded = iter(self._encoded([sequence for one in ready for sequence in one.sequences]))
        kept: list[Example] = []
        for pending in ready:
            sides = [next(encoded) for _ in pending.sequences]
            try:
                kept += self._examples(pending, sides)
            except RowError as error:
                self._reject(pending.row, error.reject)
        return kept

    def _chosen(self, rows: list[Row]) -> list[Row]:
        """The rows that meet the condition, and those that are no objects, which become rejects."""
        condition = where(self.read_as.where)
        objects_ = [row.value if isinstance(row.value, dict) else None for row in rows]
        for name in condition.columns:
            self.counts[f"where:{name}"] += sum(value is not None and name in value for value in objects_)
        keeps = iter(condition.keeps([value for value in objects_ if value is not None]))
        kept = [row for row, value in zip(rows, objects_, strict=True) if value is None or next(keeps)]
        self.counts["left_out"] += len(rows) - len(kept)
        return kept

    def _conversations(self, row: Row) -> list[Conversation | Reject]:
        """What the row makes: at least one conversation or reject."""
        if row.reject is not None:
            return [row.reject]
        if row.not_json is not None:
            needed = next((reject for key, reject in row.not_json.items() if self.preparer.reads(key)), None)
            if needed is not None:
                return [needed]
            self.notes["not_a_number"] += 1
        found = self.preparer.conversations(row.value)
        if self.options.decontaminate:
            found = [self.checked(one) for one in found]
        row.value = None
        self.counts["expanded"] += len(found) - 1
        return found

    def _examples(self, one: _Pending, sides: list[Encoded]) -> list[Example]:
        """The example at its final length; several only where a document is longer than --max-length."""
        conversation, found, note = self._fitted(one.conversation, sides)
        if not all(side.num_trained for sides in found for side in sides):
            raise RowError(Reason.NOTHING_TRAINED, "no token of it would be trained")
        if any(other and np.array_equal(first.ids, other[0].ids) for first, *other in found):
            raise RowError(Reason.NOTHING_TRAINED, "both replies are the same, so there is nothing to prefer")
        self.counts["expanded"] += len(found) - 1
        if note or conversation.repairs or conversation.notes:
            repairs = [f"repair:{name}" for name in conversation.repairs]
            self.notes.update([*([note] if note else []), *repairs, *conversation.notes])
        if self.options.scan_secrets:
            self._place_secrets(one.row, conversation)
        return [
            Example(one.row, one.part + n, conversation, first, rejected=other[0] if other else None, piece=n)
            for n, (first, *other) in enumerate(found)
        ]

    def _fitted(
        self, conversation: Conversation, sides: list[Encoded]
    ) -> tuple[Conversation, list[list[Encoded]], str]:
        """Apply the length policy: the conversation, the sequences of each example made of it, and a note."""
        limit, policy = self.options.max_length, self.options.overlength
        document = self.read_as.kind == Kind.PRETRAIN
        if document and policy in ("turns", "last-turns"):
            parts = length.pieces(sides[0], limit or len(sides[0].ids))
            return conversation, [[part] for part in parts], "document_pieces" if len(parts) > 1 else ""
        note = ""
        if limit is not None and length.longest(sides) > limit:
            conversation, sides = length.fit(conversation, sides, limit, policy, self._again)
            note = "cut" if policy == "cut" else "shortened"
        if document:
            sides = length.pieces(sides[0], len(sides[0].ids))
        return conversation, [sides], note

    def _again(self, shorter: Conversation) -> list[Encoded]:
        return self._encoded(self.maker.sequences(shorter))

    def _encoded(self, sequences: list[Rendered]) -> list[Encoded]:
        return encode(sequences, self.tokenizer, self.task.encoder)

    # -- what is left --

    def _place_secrets(self, row: Row, conversation: Conversation) -> None:
        for kind in kinds_in(conversation):
            rows = self.secrets.setdefault(kind, [])
            if len(rows) < FIRST and row.index not in rows:
                rows.append(row.index)

    def _reject(self, row: Row, reject: Reject) -> None:
        self.counts[f"rejected:{reject.reason}"] += 1
        message = reject.message
        try:
            raw = {"raw": without_base64(row.raw.decode())}
        except UnicodeDecodeError:
            raw = {"raw_hex": row.raw.hex()}
        if self.options.redact:
            if quotes(message, row.raw.decode(errors="replace") if row.value is None else row.value):
                message = "--redact leaves the message out, because it quotes a secret of the row"
            raw = {"raw_left_out": "--redact"}
        self.rejects.append(
            {
                "index": row.index,
                "offset": within(row.offset, self.task.unit),
                "length": row.length,
                "pointer": reject.pointer,
                "reason": str(reject.reason),
                "message": message,
                **raw,
            }
        )

    def table(self) -> pa.Table:
        """The compiled rows."""
        return pa.Table.from_batches(self.batches, OBJECT_NEAR if self.task.setup.near else OBJECT)

    def info(self, compared: int) -> dict[str, Any]:
        """Counts, rejects and the name of the encoder, as the object's record keeps them."""
        self.rejects.sort(key=lambda reject: reject["index"])
        found: dict[str, Any] = {"counts": dict(self.counts), "notes": dict(self.notes), "rejects": self.rejects}
        found |= {"unread": dict(self.preparer.unread), "ignored": dict(self.preparer.ignored)}
        found |= {"dataset": self.task.dataset, "owners": list(self.owners)}
        found |= {"files": dict(sorted(self.preparer.media.files.items()))}
        found |= {"embedded": dict(sorted(self.preparer.media.embedded.items()))}
        if self.options.scan_secrets:
            found["secrets"] = self.secrets
        found |= {"encoder": f"{self.task.encoder} {version_of(self.task.encoder)}", "texts_compared": compared}
        return found | {"lines": self.lines, "items": self.items}
