"""The layout `messages`: the conversations themselves, as JSON Lines in OpenAI's form, for trainers that tokenize.

    sft          {"messages": [...], "tools": [...]}
    preference   {"prompt": [...], "chosen": [reply], "rejected": [reply], "tools": [...]}
    kto          {"prompt": [...], "completion": [reply], "label": true, "tools": [...]}
    pretrain     {"text": "..."}

A set holds tokens, so the conversations are read again from its sources. The line of
every example is kept in a file without a name; memory holds about 30 bytes for each. A reply that is not trained has
OpenAI's `"weight": 0`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from compiler.cache.objects import Object
from compiler.conversation import Conversation, Message, Role
from compiler.convert.base import Bools, Columns, Job, Target
from compiler.encode.batch import Encoded
from compiler.encode.columns import Example
from compiler.sets.again import PlanAgain
from compiler.templates.messages import as_dict
from compiler.units.progress import Done, Watcher
from compiler.units.unit import examples_of
from schemas.errors import IntegrityError, UsageError
from schemas.order import Ints

_UNTRUE = {
    "cut": "rows of it were cut at --max-length in the middle of a message",
    "document_pieces": "documents of it were cut into pieces at --max-length",
}
"""Notes of units whose tokens are not those of the whole text, and what they mean."""


@dataclass(frozen=True)
class _OfFile:
    """The N examples of one source file, in the order of its rows and their parts: rows, parts int64[N]."""

    rows: Ints
    parts: Ints
    ends: Ints
    """Where each line ends in the file of lines, int64[N + 1]; the first is where the first one begins."""
    uneven: Bools
    """Whether a reply is trained in part, or a message that is no reply is trained: OpenAI's form cannot say so."""


class SourceLines:
    """The line of every example that the sources make, by where it is from."""

    def __init__(self, file: IO[bytes], files: dict[tuple[str, str], _OfFile]) -> None:
        self._file, self._files = file, files

    def lines(self, rows: pa.RecordBatch) -> pa.Array:
        """The line of each row, binary."""
        found = (one.ends[at : at + 2].tolist() for one, at in self._places(rows))
        return pa.array([os.pread(self._file.fileno(), end - start, start) for start, end in found], pa.binary())

    def uneven(self, rows: pa.RecordBatch) -> Bools:
        """Whether the line of a row leaves out which tokens of it are trained, bool[N]."""
        return np.array([one.uneven[at] for one, at in self._places(rows)], bool)

    def _places(self, rows: pa.RecordBatch) -> Iterator[tuple[_OfFile, int]]:
        keys = (rows.column(name).to_pylist() for name in ("dataset", "file", "row", "part"))
        for dataset, file, row, part in zip(*keys, strict=True):
            if (dataset, file) in self._files:
                one = self._files[dataset, file]
                low, high = np.searchsorted(one.rows, [row, row + 1])
                at = int(low + np.searchsorted(one.parts[low:high], part))
                if at < high and one.parts[at] == part:
                    yield one, at
                    continue
            raise IntegrityError(f"{file}#/{row}", "the set has an example of this row that its sources do not make")


@contextmanager
def source_lines(plan: PlanAgain, folder: Path) -> Iterator[SourceLines]:
    """Read the sources of a set again; what they say is kept in `folder` until the context ends."""
    for name, what in _UNTRUE.items():
        if any(one.notes()[name] for one in plan.compiled):
            raise UsageError("--to messages", f"{what}, and a text says more", "Compile it without --max-length.")
    found: dict[tuple[str, str], list[tuple[Ints, Ints, list[int], list[bool]]]] = {}
    units = replace(plan.units, done=Done(), watcher=Watcher()).units()
    with tempfile.TemporaryFile(dir=folder) as file:
        for one in plan.compiled:
            for record, kept, first in zip(one.records, one.loaded, one.first_rows(), strict=True):
                task = next(units)
                if task.key != record.key:
                    raise IntegrityError(record.file, "it changed while it was read", "Run again.")
                sizes, uneven = [], []
                for line, partly in _lines(list(examples_of(task)), kept, record.file, first):
                    file.write(line)
                    sizes.append(len(line))
                    uneven.append(partly)
                rows, parts = (kept.small.column(name).to_numpy() for name in ("index", "part"))
                found.setdefault((one.dataset.name, record.file), []).append((rows + first, parts, sizes, uneven))
        file.flush()
        yield SourceLines(file, _by_file(found))


def _by_file(
    found: dict[tuple[str, str], list[tuple[Ints, Ints, list[int], list[bool]]]],
) -> dict[tuple[str, str], _OfFile]:
    made, end = {}, 0
    for key, units in found.items():
        rows, parts, sizes, uneven = (np.concatenate([unit[i] for unit in units]) for i in range(4))
        ends = end + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        end = int(ends[-1])
        made[key] = _OfFile(rows, parts, ends, uneven.astype(bool))
    return made


def _lines(examples: list[Example], kept: Object, file: str, first: int) -> Iterator[tuple[bytes, bool]]:
    """The line of each example of a unit, and whether a message in it is trained in part."""
    prints = kept.small.column("fingerprint").to_pylist()
    if [one.conversation.fingerprint() for one in examples] != prints:
        raise IntegrityError(file, "its conversations are not those that were compiled", "Run again.")
    for one in examples:
        if not _is_openai(one.conversation.tools):
            what = "its tools are texts, and OpenAI's form has objects"
            raise UsageError(f"--to messages: {file}#/{first + one.row.index}", what, "Give the tools as JSON objects.")
        trained = [_trained(side) for side in (one.encoded, one.rejected) if side is not None]
        roles = [message.role for message in one.conversation.messages]
        partly = any(_says_too_little(roles[i], share) for side in trained for i, share in side.items())
        row = row_of(one.conversation, {place for place, share in trained[0].items() if share > 0})
        yield json.dumps(row, ensure_ascii=False).encode() + b"\n", partly


def _trained(side: Encoded) -> dict[int, float]:
    """For each message with tokens that a model produces: the share of them that is trained."""
    total, trained = dict[int, int](), dict[int, int]()
    ends = accumulate(stretch.length for stretch in side.stretches)
    for stretch, end in zip(side.stretches, ends, strict=True):
        learned = int((side.weights[end - stretch.length : end] > 0).sum())
        if stretch.message >= 0 and (stretch.generated or learned):
            total[stretch.message] = total.get(stretch.message, 0) + stretch.length
            trained[stretch.message] = trained.get(stretch.message, 0) + learned
    return {message: trained[message] / length for message, length in total.items()}


def _is_openai(tools: Any) -> bool:
    """Whether tools are objects, as OpenAI's form has them; or none."""
    return tools is None or (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools))


def _says_too_little(role: Role, trained: float) -> bool:
    """Whether OpenAI's form cannot say that this share of a message is trained."""
    if role is Role.DOCUMENT:  # only its first token is not, which nothing predicts
        return False
    return trained not in (0, 1) if role is Role.ASSISTANT else trained > 0


def row_of(conversation: Conversation, trained: set[int]) -> dict[str, Any]:
    """The row that says this conversation, of whose messages these are trained."""
    messages = conversation.messages
    if messages[0].role is Role.DOCUMENT:
        return {"text": messages[0].content}
    tools = {} if conversation.tools is None else {"tools": conversation.tools}
    *prompt, reply = map(_message, messages)
    if conversation.rejected is not None:
        return {"prompt": prompt, "chosen": [reply], "rejected": [_message(conversation.rejected)], **tools}
    if conversation.desirable is not None:
        return {"prompt": prompt, "completion": [reply], "label": conversation.desirable, **tools}
    for place, one in enumerate([*prompt, reply]):
        if one["role"] == Role.ASSISTANT and place not in trained:
            one["weight"] = 0
    return {"messages": [*prompt, reply], **tools}


def _message(message: Message) -> dict[str, Any]:
    """A message in OpenAI's form, in which arguments are JSON text."""
    found = as_dict(message, str)
    for call in found.get("tool_calls", ()):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return found


def _columns(rows: pa.RecordBatch, after: pa.RecordBatch, job: Job) -> Columns:  # noqa: ARG001
    assert job.lines is not None
    return {"line": job.lines.lines(rows)}


MESSAGES = Target(
    name="messages",
    readers="ms-swift, verl, TRL and other trainers that take conversations as text",
    kinds=("sft", "pretrain", "preference", "kto"),
    takes_packs=False,
    columns=_columns,
    file="{split}.jsonl",
    splits={"train": "train", "val": "validation", "test": "test"},
    use='datasets.load_dataset("FOLDER")',
    from_sources=True,
)
