"""A conversion: checks, batches one after the other, the card. Memory holds two batches, however large the set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from compiler.convert.base import Bools, Job, RowLines, Target
from compiler.convert.card import card
from compiler.convert.columns import edges
from compiler.convert.files import SplitFiles
from compiler.convert.folder import refuse_foreign, written
from schemas.arrow import IGNORED, SPLITS
from schemas.errors import UsageError
from schemas.manifest import has_media
from schemas.order import Ints
from schemas.packs import unpacked
from schemas.reader import CompiledSet, SplitReader

VERSION = 1
"""Of what `cli convert --json` prints, and of conversion.json."""


@dataclass(frozen=True)
class Choices:
    """What a conversion was asked for."""

    splits: Sequence[str] = ()
    """() = all that have rows."""
    drop_weights: bool = False
    unpack: bool = False


def convert(
    opened: CompiledSet,
    target: Target,
    out: Path,
    asked: Choices,
    done: Callable[[int, int], None],
    lines: Callable[[Path], AbstractContextManager[RowLines]] | None = None,
) -> dict[str, Any]:
    """Write the set for the target to `out`; return what was written, as `cli convert --json` prints it.

    `done` is told how many rows of all are written. `lines` reads the sources again for a target that is made from
    them; it may write into the folder that it is given. Problems leave nothing behind.
    """
    job, splits = _job(opened, target, asked), _splits(opened, asked)
    if isinstance(opened.folder, Path) and out.resolve().is_relative_to(opened.folder.resolve()):
        raise UsageError(f"-o {out}", "it is in the folder of the set", "Choose a folder beside it.")
    refuse_foreign(out)
    counts: dict[str, Any] = {}
    result: dict[str, Any] = {
        "version": VERSION, "target": target.name, "kind": opened.kind, "packed": job.packed, "splits": counts,
        "set": opened.manifest["digest"], "dropped_weights": 0,
    }  # fmt: skip
    total = sum(opened.manifest["splits"][split]["rows"] for split in splits)
    with written(out, result) as folder, ExitStack() as stack:
        before = 0
        if target.from_sources and lines is not None:
            job = replace(job, lines=stack.enter_context(lines(folder)))
        for split in splits:
            rows = 0
            with SplitFiles(folder, target.file, target.splits[split]) as files:
                for read, batch, after in _batches(opened.split(split), job, follows=opened.kind == "kto"):
                    result["dropped_weights"] += _weighted(batch, job, asked)
                    files.write(target.columns(batch, after, job))
                    rows, before = rows + batch.num_rows, before + read
                    done(before, total)
            counts[files.split] = {"rows": rows, "files": len(files.files)}
            if target.finish and files.schema:
                target.finish(folder, files.split, files.files, files.schema, opened.manifest["digest"])
        if target.close:
            target.close(folder, list(counts))
        (folder / "README.md").write_text(card(opened.manifest, target, result), encoding="utf-8")
    return result | {"out": str(out)}


def _job(opened: CompiledSet, target: Target, asked: Choices) -> Job:
    """The conversion, after the checks that need no rows."""
    to = f"--to {target.name}"
    if opened.kind not in target.kinds:
        raise UsageError(to, f"{target.readers} take no {opened.kind} sets this way", _others(opened.kind))
    for kind in ("image", "video"):
        if has_media(opened.manifest, kind):
            what = f"the set has {kind}s, which this layout does not carry"
            raise UsageError(to, what, "Train it with cli train, or convert a set of texts alone.")
    if opened.is_packed and not target.takes_packs and not asked.unpack:
        what = "the set is packed, and readers of this layout would take a pack for one example"
        raise UsageError(to, what, "Add --unpack to write its examples one by one.")
    if asked.unpack and not opened.is_packed:
        raise UsageError("--unpack", "the set is not packed", "Leave it out.")
    if asked.drop_weights and opened.kind in ("preference", "kto") and not target.from_sources:
        what = f"weights decide which tokens of a {opened.kind} set count, never how much, and that is kept"
        raise UsageError("--drop-weights", what, "Leave it out.")
    return Job(opened, opened.is_packed and not asked.unpack)


def _others(kind: str) -> str:
    from compiler.convert.targets import TARGETS

    return f"For {kind} sets: {', '.join(f'--to {name}' for name, one in TARGETS.items() if kind in one.kinds)}."


def _splits(opened: CompiledSet, asked: Choices) -> list[str]:
    found = [name for name in SPLITS if opened.shards(name)]
    for name in asked.splits:
        if name not in found:
            raise UsageError(f"--split {name}", "it is empty in this set", f"Splits with rows: {', '.join(found)}.")
    if not found:
        raise UsageError(str(opened.folder), "the set has no rows", "Compile some.")
    return [name for name in found if not asked.splits or name in asked.splits]


def _batches(split: SplitReader, job: Job, *, follows: bool) -> Iterator[tuple[int, pa.RecordBatch, pa.RecordBatch]]:
    """Yield (rows read, rows, for each the row after it); the row after the last is the first."""
    if not follows:
        for batch in split.batches():
            rows = unpacked(batch, job.kind) if job.opened.is_packed and not job.packed else batch
            yield batch.num_rows, rows, rows
        return
    first, batches = split.batch(0).slice(0, 1), split.batches()
    batch = next(batches)
    while batch is not None:
        after = next(batches, None)
        ends = pa.Table.from_batches([batch.slice(1), first if after is None else after.slice(0, 1)])
        yield batch.num_rows, batch, ends.combine_chunks().to_batches()[0]
        batch = after


def _weighted(batch: pa.RecordBatch, job: Job, asked: Choices) -> int:
    """The number of rows whose weights the layout cannot carry; UsageError unless these may be dropped."""
    uneven = _with_weights(batch, job)
    what = "it has loss weights other than 1"
    if job.lines is not None:
        uneven |= job.lines.uneven(batch)
        what += ", or a message of which a part is trained"
    found: Ints = np.flatnonzero(uneven)
    if len(found) and not asked.drop_weights:
        hint = "Add --drop-weights to train all trained tokens alike, or compile without weights."
        if job.lines is not None:
            hint = "Add --drop-weights to leave the replies to the reader's own rules, or compile without weights."
        raise UsageError(_place(batch, int(found[0]), job), f"{what}, which this layout does not carry", hint)
    return len(found)


def _with_weights(batch: pa.RecordBatch, job: Job) -> Bools:
    """Whether rows have weights other than 1 on trained tokens, bool[N]."""
    found, weights = np.zeros(batch.num_rows, bool), batch.column("loss_weights")
    if weights.null_count == len(weights) or job.kind in ("preference", "kto"):
        return found
    numbers: Ints = np.flatnonzero(np.asarray(weights.is_valid()))
    labels = batch.column("labels").take(pa.array(numbers))
    uneven = (labels.flatten().to_numpy() != IGNORED) & (weights.flatten().to_numpy() != 1)
    found[numbers] = np.diff(np.append(0, np.cumsum(uneven))[edges(labels)]) > 0
    return found


def _place(batch: pa.RecordBatch, number: int, job: Job) -> str:
    """Where a row is from; of a pack, the first example in it."""
    found = [batch.column(name)[number].as_py() for name in ("dataset", "file", "row")]
    dataset, file, row = (value[0] for value in found) if job.packed else found
    return f"{'pack with ' if job.packed else ''}{dataset} {job.opened.places.place(dataset, file, row)}"
