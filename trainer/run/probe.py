"""The probes at the start: on the loaded model, the losses of a batch of packs must equal those of its sequences alone.

If a model ignores that positions restart, later sequences see earlier ones and nothing fails: only the loss differs.
This is measured, since attention changes with models, their versions and remote code.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch

from schemas.errors import UsageError
from trainer.config import zero
from trainer.data import stream
from trainer.data.collate import Collator, tensors
from trainer.models.wrappers import evaluating
from trainer.objectives import head
from trainer.objectives.log_probs import one_side, token_losses
from trainer.run.plan import RunPlan

PACKS = 16
"""Packs that are searched for one with several sequences."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Relative difference of losses that rounding explains. On trained weights, sequences that see each other differ by far
more; on new weights, which are small, the difference may be tiny."""


def check_packs(wrapped: Any, plan: RunPlan, collate: Collator) -> float | None:
    """The relative difference between packed and unpacked losses; None if no pack has two sequences.

    UsageError if the model mixes sequences. All processes call it, on the same packs, as many as a pass has.
    """
    several = (i for i in range(min(PACKS, len(plan.train))) if len(plan.train.row(i)["seq_lens"]) > 1)
    number = next(several, None)
    if number is None:
        return None
    alone = dataclasses.replace(collate, packed=False)
    # Attention can take another path for several packs than for one.
    others = (i for i in range(len(plan.train)) if i != number)
    numbers = [number, *itertools.islice(others, plan.micro - 1)]
    wrapped.eval()
    with torch.no_grad():
        packed = _losses(wrapped, plan, collate, [plan.train.row(i) for i in numbers])
        apart = [_losses(wrapped, plan, alone, [one]) for i in numbers for one in plan.train.sequences(i)]
    wrapped.train()
    apart_flat = torch.cat(apart)
    difference = float((packed - apart_flat).abs().sum() / apart_flat.abs().sum().clamp(min=1e-9))
    if difference > TOLERANCE[plan.dtype]:
        name = type(wrapped.module).__name__
        raise UsageError(
            plan.set.where,
            f"it is packed, and {name} lets a sequence of a pack see those before it: the losses of a pack's tokens "
            f"differ by {difference:.2%} from those of its sequences alone",
            f"Compile the set without --pack, or try another attn_implementation than {plan.attention.name}.",
        )
    return difference


LARGE = 4 * 2**30
"""Bytes of the logits of a pass and their gradient from which on `logits_in_chunks: auto` computes them in chunks."""


def check_head(wrapped: Any, plan: RunPlan, collate: Collator) -> str | None:
    """Have logits computed in chunks if that is asked for, or worth it; return what to say of it.

    It is right for a model whose logits are those of its head alone, which is measured on the first row. UsageError if
    it is asked for and is not right. All processes call it.
    """
    if not wants_chunks(plan):
        return None
    size = logits_bytes(plan)
    if zero.stage(plan.deepspeed) == 3:
        return f"note: logits take {size / 2**30:.1f} GiB, as with ZeRO-3 they cannot be computed in chunks"
    batch = tensors(collate([plan.train.row(0)]), plan.device.torch)
    found = []
    with evaluating(wrapped):
        for wanted in (False, True):
            head.in_chunks(wrapped, wanted=wanted)
            found.append(token_losses(wrapped, one_side(batch)))
    plain, chunked = found
    difference = float((plain - chunked).abs().sum() / plain.abs().sum().clamp(min=1e-9))
    if difference <= TOLERANCE[plan.dtype]:
        return f"logits are computed in chunks, {size / 2**30:.1f} GiB less at once (difference {difference:.1e})"
    head.in_chunks(wrapped, wanted=False)
    what = f"{type(wrapped.module).__name__} changes logits after its head, so that they cannot be computed in chunks"
    if plan.config.logits_in_chunks is True:
        raise UsageError(f"{plan.where}#/logits_in_chunks", what, "Leave it out.")
    return f"note: {what}: {size / 2**30:.1f} GiB are needed for them"


def wants_chunks(plan: RunPlan) -> bool:
    """Whether logits in chunks are asked for, or worth it."""
    asked = plan.config.logits_in_chunks
    return logits_bytes(plan) >= LARGE if asked == "auto" else bool(asked)


def logits_bytes(plan: RunPlan) -> int:
    """Bytes of the logits of a pass and of their gradient, if all positions of the longest row are trained."""
    return (
        2 * plan.dtype.itemsize * plan.micro * plan.longest_row * int(getattr(plan.source.text_config, "vocab_size", 0))
    )


def _losses(wrapped: Any, plan: RunPlan, collate: Collator, rows: list[stream.Row]) -> torch.Tensor:
    """The weighted losses of the trained tokens, float32[trained], in order."""
    batch = tensors(collate(rows), plan.device.torch)
    parts = plan.objective.loss(wrapped, batch, **plan.objective_settings)
    return parts.losses[parts.weights > 0]
