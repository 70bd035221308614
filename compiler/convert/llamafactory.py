"""The layout of LLaMA-Factory's `tokenized_path`: what `DatasetDict.save_to_disk` of the library datasets writes.

sft, pretrain   input_ids, attention_mask, labels
packs           the same and position_ids; the mask numbers the examples of a pack from 1, and packs are padded
                to one token more than their length (neat_packing)
preference      chosen_ and rejected_ input_ids, attention_mask, labels
kto             input_ids, ..., kl_input_ids, kl_attention_mask, kl_labels, kto_tags
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from compiler.convert.base import Columns, Job, Target
from compiler.convert.columns import edges, mismatched, ones, predicted_labels, sequence_starts
from schemas.arrow import IGNORED
from schemas.manifest import Manifest


def _columns(rows: pa.RecordBatch, after: pa.RecordBatch, job: Job) -> Columns:
    if job.packed:
        return _packs(rows, job)
    if job.kind == "preference":
        return _side(rows, "", "chosen_") | _side(rows, "rejected_", "rejected_")
    found = _side(rows, "", "")
    if job.kind == "kto":
        pairs = mismatched(rows, after)
        found |= {f"kl_{name}": column for name, column in pairs.items()}
        found |= {"kl_attention_mask": ones(pairs["input_ids"]), "kto_tags": rows.column("desirable")}
    return found


def _side(rows: pa.RecordBatch, ours: str, theirs: str) -> Columns:
    ids = rows.column(f"{ours}input_ids")
    return {
        f"{theirs}input_ids": ids,
        f"{theirs}attention_mask": ones(ids),
        f"{theirs}labels": rows.column(f"{ours}labels"),
    }


def _packs(rows: pa.RecordBatch, job: Job) -> Columns:
    """Neat packing: position, mask and padding."""
    ids, seq_lens = rows.column("input_ids"), rows.column("seq_lens")
    lengths = seq_lens.flatten().to_numpy()
    numbers = np.arange(len(lengths)) - np.repeat(edges(seq_lens)[:-1], pc.list_value_length(seq_lens).to_numpy()) + 1
    positions = np.arange(lengths.sum()) - np.repeat(sequence_starts(rows), lengths)
    columns: dict[str, tuple[npt.NDArray[np.generic], int]] = {
        "input_ids": (ids.flatten().to_numpy(), _pad_id(job.opened.manifest)),
        "attention_mask": (np.repeat(numbers, lengths).astype(np.int32), 0),
        "labels": (predicted_labels(rows), IGNORED),
        "position_ids": (positions.astype(np.int32), 0),
    }
    width = job.opened.manifest["packing"]["length"] + 1
    bounds = edges(ids)
    at = np.arange(bounds[-1]) + np.repeat(np.arange(len(ids)) * width - bounds[:-1], np.diff(bounds))
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * width
    found = {}
    for name, (values, fill) in columns.items():
        padded = np.full(len(ids) * width, fill, values.dtype)
        padded[at] = values
        found[name] = pa.ListArray.from_arrays(offsets, pa.array(padded))
    return found


def _pad_id(manifest: Manifest) -> int:
    """The token to pad with: the tokenizer's pad token, else its eos token, else 0."""
    tokenizer = manifest["tokenizer"]
    named = (tokenizer["named_tokens"].get(name) for name in ("pad_token", "eos_token"))
    return next((tokenizer["controls"][token] for token in named if token in tokenizer["controls"]), 0)


def _finish(folder: Path, split: str, files: list[Path], schema: pa.Schema, digest: str) -> None:
    """Write what `datasets.load_from_disk` reads of a split beside its files."""
    kinds = {pa.int32(): "int32", pa.int8(): "int8", pa.bool_(): "bool"}
    features: dict[str, object] = {}
    for field in schema:
        if pa.types.is_list(field.type):
            features[field.name] = {
                "feature": {"dtype": kinds[field.type.value_type], "_type": "Value"}, "_type": "Sequence",
            }  # fmt: skip
        else:
            features[field.name] = {"dtype": kinds[field.type], "_type": "Value"}
    names = [path.name for path in files]
    state: dict[str, object] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": xxhash.xxh3_64_hexdigest(json.dumps([digest, split, schema.names]).encode()),
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
        "_split": split,
    }  # fmt: skip
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    for name, value in (("dataset_info.json", info), ("state.json", state)):
        (folder / split / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _close(folder: Path, splits: list[str]) -> None:
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}) + "\n", encoding="utf-8")


LLAMAFACTORY = Target(
    name="llamafactory",
    readers="LLaMA-Factory",
    kinds=("sft", "pretrain", "preference", "kto"),
    takes_packs=True,
    columns=_columns,
    file="{split}/data-{number:05d}.arrow",
    splits={"train": "train", "val": "validation", "test": "validation_test"},
    use="tokenized_path: FOLDER in its configuration, with the model and the stage that the set is for",
    finish=_finish,
    close=_close,
)
