"""`--assert NAME:0`: no token of a role or policy key is trained in any row of any split. Nothing is decoded."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from compiler.conversation import Role
from compiler.encode.shapes import TEMPLATE
from compiler.encode.weigh import KEYWORD, Policy
from compiler.inspect.choose import LIMIT
from compiler.inspect.rows import SplitExamples
from compiler.inspect.vocabulary import TokenBytes
from compiler.templates.guard import MEDIA_MARKS
from schemas.arrow import IGNORED, SPLITS
from schemas.errors import UsageError, nearest
from schemas.manifest import Manifest
from schemas.order import Ints
from schemas.reader import CompiledSet


@dataclass
class Check:
    """`NAME:0`: no token of these roles or policy keys may be trained. Counts are over all rows of all splits."""

    given: str
    roles: list[str]
    keys: list[str]
    tokens: int = 0
    trained: int = 0
    rows: int = 0
    violations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if none of these tokens is trained."""
        return not self.trained

    def as_json(self) -> dict[str, Any]:
        """The check as JSON: {assert, ok, roles, keys, tokens, trained, rows, violations}, counted over all rows."""
        return {"assert": self.given, "ok": self.ok} | {k: v for k, v in asdict(self).items() if k != "given"}

    @property
    def what(self) -> str:
        """The checked tokens in words, such as "role tool or key 'Observation:'"."""
        return " or ".join([f"role {role}" for role in self.roles] + [f"key {key!r}" for key in self.keys])


def parse_check(given: str, manifest: Manifest) -> Check:
    """Parse `NAME:0`. NAME is a role or a policy key; case does not matter, and the colon of a key may be left out."""
    name, colon, number = given.rpartition(":")
    if not colon or not name or not re.fullmatch(r"[-+]?[\d.]+%?", number):
        raise UsageError(f"--assert {given}", "expected ROLE:0 or KEY:0", "--assert tool:0 --assert Observation:0")
    if number != "0":
        raise UsageError(f"--assert {given}", "only 0 is supported: no token may be trained", f"--assert {name}:0")
    roles = [*map(str, Role), TEMPLATE[0]]
    policies = [Policy.from_card(entry["policy"]) for entry in manifest["datasets"]]
    keys = list(dict.fromkeys([*MEDIA_MARKS, KEYWORD, *(key for policy in policies for key in policy.keys)]))

    def same(known: str) -> bool:
        return known.casefold().removesuffix(":") == name.casefold().removesuffix(":")

    check = Check(given, list(filter(same, roles)), list(filter(same, keys)))
    if not check.what:
        raise UsageError(f"--assert {given}", "no such role or policy key", nearest(name, [*roles, *keys]))
    return check


def run_checks(opened: CompiledSet, checks: list[Check]) -> int:
    """Count over every row of every split, into the checks; return the number of rows."""
    splits = [SplitExamples(opened, name) for name in SPLITS]
    for split in splits:
        for start, batch in split.scan():
            sides = ("", "rejected_")[: 1 + ("rejected_spans" in batch.schema.names)]
            spans = [_Spans(split, start, batch, side) for side in sides]
            for check in checks:
                check.rows += len({row for side in spans for row in side.count(check)})
    violations = [entry for check in checks for entry in check.violations]
    if violations:  # only these need the tokenizer
        vocabulary = TokenBytes(opened)
        for entry in violations:
            pieces = vocabulary.pieces(pa.array(entry["text"], pa.int32())).to_pylist()
            entry["text"] = b"".join(pieces).decode("utf-8", "backslashreplace")
    return sum(split.num_rows for split in splits)


class _Spans:
    """The S spans of a batch's rows, one after the other. Together they cover all tokens of the batch."""

    def __init__(self, split: SplitExamples, start: int, batch: pa.RecordBatch, side: str) -> None:
        self._split, self._start, self._batch = split, start, batch
        spans, labels = batch.column(f"{side}spans"), batch.column(f"{side}labels")
        self._role, self._key = spans.values.field("role"), spans.values.field("key")
        self._labels: Ints = labels.values.to_numpy()
        lengths = spans.values.field("num_tokens").to_numpy()
        # int64[S + 1]: the first token of each span, and the end.
        self._edges: Ints = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        # int64[N + 1]: the first span and the first token of each row, and the end.
        self._first_span, self._first_token = spans.offsets.to_numpy(), labels.offsets.to_numpy()
        if not np.array_equal(self._edges[self._first_span], self._first_token):
            raise split.opened.damage(f"{split.name}: the spans of a row do not cover its tokens")
        before = np.concatenate([[0], np.cumsum(self._labels != IGNORED)])
        # int64[S]: the trained tokens of each span.
        self._trained: Ints = np.diff(before[self._edges])

    def count(self, check: Check) -> list[int]:
        """Add these spans to the counts of a check; return the rows with a violation, and note the first of each."""
        mine = _is_in(self._role, check.roles) | _is_in(self._key, check.keys)
        check.tokens += int(np.diff(self._edges)[mine].sum())
        check.trained += int(self._trained[mine].sum())
        wrong = np.flatnonzero(mine & (self._trained > 0))
        rows, firsts = np.unique(np.searchsorted(self._first_span, wrong, side="right") - 1, return_index=True)
        room = LIMIT - len(check.violations)
        for row, first in zip(rows[:room].tolist(), wrong[firsts][:room].tolist(), strict=True):
            check.violations.append(self._violation(row, first))
        found: list[int] = rows.tolist()
        return found

    def _violation(self, row: int, span: int) -> dict[str, Any]:
        """Where the trained tokens of a span begin, and their ids up to the next untrained one."""
        labels = self._labels[self._edges[span] : self._edges[span + 1]]
        at = int(np.argmax(labels != IGNORED))
        dataset, file, source_row = (self._batch.column(name)[row].as_py() for name in ("dataset", "file", "row"))
        return {
            "row": self._start + row,
            "split": self._split.name,
            "file": file,
            "source_row": source_row,
            "place": self._split.opened.places.place(dataset, file, source_row),
            "token": int(self._edges[span] + at - self._first_token[row]),
            "text": list(takewhile(lambda label: label != IGNORED, labels[at:].tolist())),
        }


def _is_in(names: pa.Array, wanted: list[str]) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.is_in(names, pa.array(wanted, pa.string())))
