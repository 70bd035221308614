"""Collate rows into a batch of tensors: the input of a forward pass and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from schemas.manifest import Manifest
from trainer.data.stream import Row

if TYPE_CHECKING:
    from trainer.data.images import Images

Batch = dict[str, Any]
"""
input_ids, labels       int64[B, T]; labels are unshifted, -100 = not trained, padding included
loss_weights            float32[B, T], 0 where not trained
position_ids            int64[B, T], from 0 at every sequence
attention_mask          int64[B, T], 0 = padding; absent in packed batches
cu_seq_lens_q, ..._k    int32[N + 1], where each of N sequences begins, in flat batches
max_length_q, ..._k     int: the longest sequence, in flat batches
num_tokens              int: tokens of the rows, both sides of a pair, without padding
num_trained             int: those of them that are trained
num_squares             int: the sum of the squared lengths of the sequences
dataset                 list[str]: of each sequence
rejected_...            the same for the other side of pairs
kl_..., desirable       KTO: the same for mismatched pairs; bool[B]
reference_log_probs     float32[B], of each side, where the reference scored all replies before the first step
pixel_values, image_grid_thw, mm_token_type_ids ...  pictures and videos, as the model takes them
"""


@dataclass(frozen=True)
class Collator:
    """Makes the batches of one set."""

    packed: bool
    pad: int
    sides: tuple[str, ...] = ("",)
    """Prefixes of the sequences of a row."""
    images: Images | None = None
    flat: bool = False
    """Join packs into one row without padding, as FlashAttention wants them: of several rows it sees no sequences."""

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """The batch of some rows."""
        if self.flat and self.packed:
            rows = [_joined(rows)]
        batch: Batch = {"dataset": _datasets(rows)}
        pixels: dict[str, torch.Tensor] = {}
        if self.images:
            pixels, rows = self.images.load(rows)
        own = [side for side in self.sides if side != "kl_"]  # which is another row's
        lengths = [
            n
            for row in rows
            for side in own
            for n in (row["seq_lens"] if self.packed else [len(row[f"{side}input_ids"])])
        ]
        batch |= {"num_tokens": int(sum(lengths)), "num_squares": sum(int(n) ** 2 for n in lengths)}
        for side in self.sides:
            batch |= {side + name: value for name, value in self._side(rows, side).items()}
            if self.images:
                more = self.images.types(batch[f"{side}input_ids"])
                batch |= {side + name: value for name, value in more.items()}
        batch["num_trained"] = sum(int((batch[f"{side}loss_weights"] > 0).sum()) for side in own)
        if "desirable" in rows[0]:
            batch["desirable"] = torch.tensor([row["desirable"] for row in rows])
        return batch | pixels

    def nothing(self, row: Row) -> Batch:
        """A batch of one row in which nothing is trained, for a process that has no rows left."""
        batch = self([row])
        for side in self.sides:
            batch[f"{side}labels"].fill_(-100)
            batch[f"{side}loss_weights"].zero_()
        return batch | dict.fromkeys(COUNTS, 0) | {"dataset": []}

    def _side(self, rows: Sequence[Row], side: str) -> Batch:
        ids = [row[f"{side}input_ids"] for row in rows]
        length = max(map(len, ids))
        weights = [_weights(row, side) for row in rows]
        if self.packed:
            positions = [
                np.concatenate([np.arange(n) for n in (*row["seq_lens"], length - len(row["input_ids"]))])
                for row in rows
            ]
        else:
            positions = [np.arange(length) for _ in rows]
        batch: Batch = {
            "input_ids": _pad(ids, length, self.pad, np.int64),
            "labels": _pad([row[f"{side}labels"] for row in rows], length, -100, np.int64),
            "loss_weights": _pad(weights, length, 0, np.float32),
            "position_ids": torch.from_numpy(np.stack(positions).astype(np.int64)),
        }
        if f"{side}reference_log_probs" in rows[0]:
            known = [row[f"{side}reference_log_probs"] for row in rows]
            batch["reference_log_probs"] = torch.tensor(known, dtype=torch.float32)
        if not self.packed:
            batch["attention_mask"] = _pad([np.ones(len(one)) for one in ids], length, 0, np.int64)
        elif self.flat:
            starts = torch.from_numpy(np.cumsum([0, *rows[0]["seq_lens"]], dtype=np.int32))
            batch |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), starts)
            batch |= dict.fromkeys(MAX_LENGTHS, int(max(rows[0]["seq_lens"])))
        return batch


COUNTS = ("num_tokens", "num_trained", "num_squares")
"""What a batch says of itself, to be added up over passes and processes."""
MAX_LENGTHS = ("max_length_q", "max_length_k")


def _joined(packs: Sequence[Row]) -> Row:
    """Packs as one pack."""
    weighted = [pack | {"loss_weights": _weights(pack, "")} for pack in packs]
    joined = {
        name: np.concatenate([pack[name] for pack in weighted])
        for name in ("input_ids", "labels", "loss_weights", "seq_lens")
    }
    return {**packs[0], **joined, "dataset": [name for pack in packs for name in pack["dataset"]]}


def _datasets(rows: Sequence[Row]) -> list[str]:
    return [name for row in rows for name in ([row["dataset"]] if isinstance(row["dataset"], str) else row["dataset"])]


def _weights(row: Row, side: str) -> npt.NDArray[np.float32]:
    given = row[f"{side}loss_weights"]
    trained = row[f"{side}labels"] != -100
    return trained.astype(np.float32) if given is None else np.where(trained, given, 0).astype(np.float32)


def _pad(values: Sequence[npt.NDArray[Any]], length: int, fill: int, dtype: Any) -> torch.Tensor:
    padded = np.full((len(values), length), fill, dtype)
    for line, value in zip(padded, values, strict=True):
        line[: len(value)] = value
    return torch.from_numpy(padded)


def tensors(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """The batch's tensors, on the device, and the numbers that the model takes beside them.

    Pinned ones are copied while the process goes on. Others are not: torch_npu keeps only pinned memory until a copy
    is done.
    """
    found = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    moved = {key: value.to(device, non_blocking=value.is_pinned()) for key, value in found.items()}
    return moved | {key: batch[key] for key in MAX_LENGTHS if key in batch}


def size_of(batch: Batch) -> int:
    """The bytes of a batch's tensors."""
    return sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))


def pad_id(manifest: Manifest) -> int:
    """The token to pad with, which is never attended to: the tokenizer's pad token, else its eos token, else 0."""
    tokenizer = manifest["tokenizer"]
    named = (tokenizer["named_tokens"].get(name) for name in ("pad_token", "eos_token"))
    return next((tokenizer["controls"][token] for token in named if token in tokenizer["controls"]), 0)
