"""The start-up probe: on the loaded model, a pack's loss must be that of its sequences one by one.

Where a model overlooks that positions restart, later sequences see earlier ones, and nothing fails: only the loss is
another. It is measured, not assumed, since attention is what models, their versions and remote code change.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from schemas.errors import UsageError
from trainer.data import stream
from trainer.data.collate import Collator, tensors
from trainer.run.plan import RunPlan

PACKS = 16
"""Packs that are looked at for one of several sequences."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Relative difference of the losses that rounding makes. Sequences that see each other differ by far more on weights
that were trained; on weights as small as new ones what they see may be next to nothing."""


def check_packs(wrapped: Any, plan: RunPlan, collate: Collator) -> float | None:
    """Return the relative difference between packed and unpacked loss; None where no pack has two sequences.

    UsageError where the model mixes sequences. All processes call it, on the same pack.
    """
    several = (i for i in range(min(PACKS, len(plan.train))) if len(plan.train.row(i)["seq_lens"]) > 1)
    number = next(several, None)
    if number is None:
        return None
    alone = dataclasses.replace(collate, packed=False)
    wrapped.eval()
    with torch.no_grad():
        packed = _losses(wrapped, plan, collate, [plan.train.row(number)])
        apart = [_losses(wrapped, plan, alone, [one]) for one in plan.train.sequences(number)]
    wrapped.train()
    apart_flat = torch.cat(apart)
    difference = float((packed - apart_flat).abs().sum() / apart_flat.abs().sum().clamp(min=1e-9))
    dtype = torch.bfloat16 if plan.bf16 else torch.float16 if plan.fp16 else torch.float32
    if difference > TOLERANCE[dtype]:
        name = type(wrapped.module).__name__
        raise UsageError(
            plan.set.where,
            f"it is packed, and {name} lets a sequence of a pack see those before it: the losses of the tokens of a "
            f"pack differ by {difference:.2%} from those of its sequences alone",
            "Compile the set without --pack, or try another attn_implementation.",
        )
    return difference


def _losses(wrapped: Any, plan: RunPlan, collate: Collator, rows: list[stream.Row]) -> torch.Tensor:
    """Return the weighted losses of the trained tokens, float32[trained], in order."""
    batch = tensors(collate(rows), plan.device.torch)
    parts = plan.objective.loss(wrapped, batch, **plan.objective_settings)
    return parts.losses[parts.weights > 0]
