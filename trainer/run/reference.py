"""The log-probabilities of the reference where training changes the model itself: computed before the first step.

With LoRA the reference is the model without its adapter, at any time. With full fine-tuning and a prefix, the replies
that a run will see are scored once by the model as it was loaded, and the values are kept beside the run. KTO's
mismatched pairs are among them: the order of rows is known for all epochs. A resumed run reads the file; what it lacks,
say because more epochs are asked for, is computed by the base model, which is loaded before the checkpoint's state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.digests import content_digest
from schemas.errors import UsageError
from schemas.order import Ints
from trainer.data.collate import Collator, tensors
from trainer.data.order import following
from trainer.data.reference import FILE, Floats, Place, ReferenceLogProbs
from trainer.data.stream import Row, SplitRows
from trainer.models.wrappers import evaluating, unwrapped
from trainer.objectives.log_probs import row_log_probs
from trainer.progress import Heartbeat, clock
from trainer.run.evaluate import Evaluator
from trainer.run.log import Log
from trainer.run.plan import RunPlan


def attach(
    plan: RunPlan, wrapped: Any, collate: Collator, evaluators: dict[str, Evaluator | None], beat: Heartbeat,
    shown: Log | None,
) -> None:  # fmt: skip
    """Give the rows of the plan's splits their reference log-probabilities. All processes call it together.

    `wrapped` is the model before training: no checkpoint's state was loaded yet.
    """
    evaluated = {name: one for name, one in evaluators.items() if one}
    splits = {"train": plan.train} | {name: one.split for name, one in evaluated.items()}
    path = plan.output / FILE
    beat.doing("reading the log-probabilities of the reference")
    kept, remark = _kept(plan, path, {name: len(split) for name, split in splits.items()})
    needed = _needed(plan, evaluated)
    missing = {place: kept.missing(place, keys) for place, keys in needed.items()}
    torch.distributed.barrier()  # all have read the file
    said = f"reference: the log-probabilities of {sum(map(len, needed.values())):,} replies are"
    if count := sum(map(len, missing.values())):
        began = time.monotonic()
        for place, values in _score(plan, wrapped, collate, missing, splits, beat).items():
            kept.add(place, missing[place], values)
        if plan.device.rank == 0:
            kept.write(path)
        said += f" kept in {path}; {count:,} of them were computed in {clock(time.monotonic() - began)}{remark}"
    else:
        said += f" read from {path}"
    if shown:
        shown.say(said)
    made = _made(plan)
    own = [side for side in plan.objective.sides if side not in made]
    for name, split in splits.items():
        split.more = functools.partial(_columns, functools.partial(kept.of, name), own, bool(made))


def _kept(plan: RunPlan, path: Path, rows: dict[str, int]) -> tuple[ReferenceLogProbs, str]:
    """What an earlier start of the run has left in the file, and a remark if that is not what was expected."""
    facts = {
        "set": content_digest(plan.set.manifest),
        "model": plan.source.digest,
        "precision": "bf16" if plan.bf16 else "fp16" if plan.fp16 else "fp32",
    }
    if not path.is_file():
        return ReferenceLogProbs(rows, facts, {}), ": the file was missing" if plan.checkpoint else ""
    found = ReferenceLogProbs.read(path, rows)
    other = next((key for key, value in facts.items() if found.facts.get(key) != value), None)
    if other is None:
        return found, "" if plan.checkpoint is None else ": the file lacked them"
    if plan.checkpoint:
        what = f"its {other} is {found.facts.get(other)}, that of this run is {facts[other]}"
        raise UsageError(str(path), what, "Resume with the same settings, or start a new run in another output_dir.")
    return ReferenceLogProbs(rows, facts, {}), f": the file was that of another {other}"


def _made(plan: RunPlan) -> set[str]:
    """The sides that the set does not have: those that the objective makes of a row and the next one."""
    return {side for side in plan.objective.sides if f"{side}input_ids" not in plan.train.schema.names}


def _columns(of: Callable[[str, int, int], float], own: list[str], pairs: bool, number: int) -> Row:
    """The columns of row `number` for its batch; `reference` finds the value of a pair with another row."""
    columns: Row = {f"{side}reference_log_probs": of(side, number, number) for side in own}
    if pairs:
        columns |= {"number": number, "reference": lambda side, reply_of: of(side, number, reply_of)}
    return columns


def _needed(plan: RunPlan, evaluated: dict[str, Evaluator]) -> dict[Place, Ints]:
    """The keys of the replies that the rest of the run sees, ascending."""
    batches = {"train": [plan.order.step(number) for number in range(plan.start, plan.steps)]}
    totals = {"train": len(plan.train)}
    for name, evaluator in evaluated.items():
        batches[name] = [np.array([row for row, _ in places]) for places in evaluator.batches]
        totals[name] = len(evaluator.split)
    found: dict[Place, Ints] = {}
    for name, parts in batches.items():
        total, rows = totals[name], np.concatenate(parts)
        for side in plan.objective.sides:
            reply_of = np.concatenate([following(part, total) for part in parts]) if side in _made(plan) else rows
            found[name, side] = np.unique(rows * total + reply_of)
    return found


def _score(
    plan: RunPlan, wrapped: Any, collate: Collator, missing: dict[Place, Ints], splits: dict[str, SplitRows],
    beat: Heartbeat,
) -> dict[Place, Floats]:  # fmt: skip
    """The values of the missing keys; each process computes its share of the batches, and all get all values."""
    device, rank, world = plan.device.torch, plan.device.rank, plan.device.world
    alone = dataclasses.replace(collate, sides=("",))
    batches = []
    for (name, side), keys in missing.items():
        order = np.argsort(-splits[name].lengths(keys // len(splits[name])), kind="stable")  # like lengths together
        batches += [((name, side), order[i : i + plan.micro]) for i in range(0, len(keys), plan.micro)]
    found = {place: torch.zeros(len(keys), device=device) for place, keys in missing.items()}
    beat.doing("computing the log-probabilities of the reference", len(batches), unit="batches")
    with _untrained(wrapped):
        for start in range(0, len(batches), world):
            beat.reached(start)
            idle = start + rank >= len(batches)  # all processes run equally many passes: they meet in each
            place, some = batches[-1 if idle else start + rank]
            rows = [_reply(plan, splits[place[0]], place[1], int(key)) for key in missing[place][some]]
            batch = alone.nothing(rows[0]) if idle else alone(rows)
            values = row_log_probs(wrapped, tensors(batch, device))
            if not idle:
                found[place][torch.from_numpy(some).to(device)] = values
    for values in found.values():
        torch.distributed.all_reduce(values)
    return {place: values.cpu().numpy() for place, values in found.items()}


def _reply(plan: RunPlan, split: SplitRows, side: str, key: int) -> Row:
    """The reply of a key as a row of one side."""
    number, reply_of = divmod(key, len(split))
    row = split.row(number)
    if side in _made(plan):
        assert plan.objective.pair is not None
        row = plan.objective.pair(row, split.row(reply_of))
    return row | {name: row[f"{side}{name}"] for name in ("input_ids", "labels", "loss_weights")}


@contextlib.contextmanager
def _untrained(wrapped: Any) -> Iterator[None]:
    """Make the model that was loaded the reference: no dropout, no gradients, no prefix."""
    model = unwrapped(wrapped)
    with (
        evaluating(wrapped),
        model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext(),
    ):
        yield
