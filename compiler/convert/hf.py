"""The layout of TRL, Unsloth, transformers' Trainer and axolotl: a folder that `datasets.load_dataset` reads.

    sft, pretrain   input_ids, attention_mask, labels
    preference      prompt_ids, chosen_ids, rejected_ids                     (TRL's collator)
    kto             prompt_ids, completion_ids, label, KL_completion_ids     (TRL's collator)

TRL 1.16 scores all tokens of a reply, so the trained tokens of a reply must follow each other; what stands behind the
last one, which no trained token sees, is left out.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from compiler.convert.base import Columns, Job, Target
from compiler.convert.columns import Replies, cut, ones, replies
from schemas.errors import UsageError
from schemas.order import Ints


def _columns(rows: pa.RecordBatch, after: pa.RecordBatch, job: Job) -> Columns:
    if job.kind == "preference":
        return _pairs(rows, job)
    if job.kind == "kto":
        own, other = _scored(rows, "", job), _scored(after, "", job)
        return {
            "prompt_ids": _prompt(rows, "", own),
            "completion_ids": cut(rows.column("input_ids"), own.first, own.stop),
            "label": rows.column("desirable"),
            "KL_completion_ids": cut(after.column("input_ids"), other.first, other.stop),
        }
    ids = rows.column("input_ids")
    return {"input_ids": ids, "attention_mask": ones(ids), "labels": rows.column("labels")}


def _pairs(rows: pa.RecordBatch, job: Job) -> Columns:
    found = {side: _scored(rows, side, job) for side in ("", "rejected_")}
    prompts = [_prompt(rows, side, one) for side, one in found.items()]
    if not prompts[0].equals(prompts[1]):
        number = next(i for i, (a, b) in enumerate(zip(*prompts, strict=True)) if a != b)
        what = "the tokens before the first trained one are not the same on both sides, and TRL has one prompt for both"
        raise _refused(rows, number, what, job)
    chosen, rejected = (cut(rows.column(f"{side}input_ids"), one.first, one.stop) for side, one in found.items())
    return {"prompt_ids": prompts[0], "chosen_ids": chosen, "rejected_ids": rejected}


def _prompt(rows: pa.RecordBatch, side: str, one: Replies) -> pa.ListArray:
    return cut(rows.column(f"{side}input_ids"), np.zeros_like(one.first), one.first)


def _scored(rows: pa.RecordBatch, side: str, job: Job) -> Replies:
    """The replies; UsageError where tokens within one are not trained."""
    found = replies(rows.column(f"{side}labels"))
    gaps: Ints = np.flatnonzero(found.stop - found.first != found.trained)
    if len(gaps):
        what = "tokens between its trained ones are not trained, and TRL scores all tokens of a reply"
        raise _refused(rows, int(gaps[0]), what, job)
    return found


def _refused(rows: pa.RecordBatch, number: int, what: str, job: Job) -> UsageError:
    dataset, file, row = (rows.column(name)[number].as_py() for name in ("dataset", "file", "row"))
    where = f"--to hf: {dataset} {job.opened.places.place(dataset, file, row)}"
    return UsageError(where, what, "Use --to llamafactory, which has labels of pairs, or compile without such weights.")


HF = Target(
    name="hf",
    readers="TRL, Unsloth, transformers' Trainer and axolotl",
    kinds=("sft", "pretrain", "preference", "kto"),
    takes_packs=False,
    columns=_columns,
    file="data/{split}-{number:05d}.parquet",
    splits={"train": "train", "val": "validation", "test": "test"},
    use='datasets.load_dataset("FOLDER")',
)
