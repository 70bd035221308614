"""One step: its loss is the sum of weighted losses over the sum of weights, over all processes and passes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from schemas.errors import IntegrityError
from trainer.data.collate import COUNTS, tensors
from trainer.data.loader import StepBatches
from trainer.run.plan import RunPlan
from trainer.run.stop import Stop


@dataclass(frozen=True)
class StepResult:
    """The result of a step, over all processes."""

    loss: float
    grad_norm: float | None
    """None if ZeRO 0 does not report it, or fp16 overflowed."""
    weight: float
    """The divisor of the loss."""
    tokens: int
    """The tokens of sequences, of both sides of pairs, without padding."""
    trained: int
    """Those of them that are trained."""
    squares: float
    """The sum of the squared lengths of sequences, which attention depends on."""
    logs: dict[str, float]
    stop: bool
    """Whether some process was asked to end."""


def run(wrapped: Any, plan: RunPlan, step: StepBatches, learning_rate: float, stop: Stop) -> StepResult:
    """Train one step; IntegrityError if nothing is trained in it, or its loss or gradient is NaN or infinite."""
    objective, device, world = plan.objective, plan.device.torch, plan.device.world
    divisor = torch.stack([objective.weights(batch).sum() for batch in step.batches]).sum().to(device)
    torch.distributed.all_reduce(divisor)
    if not divisor > 0:
        raise IntegrityError(_where(plan, step.number), "nothing is trained in this step", _of(plan, step))
    settings = plan.objective_settings
    if objective.shared:
        settings |= objective.shared(wrapped, (tensors(batch, device) for batch in step.batches))
    for group in wrapped.optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate", 1.0)  # LoRA+ has rates of its own
    sums = torch.zeros(2 + len(COUNTS) + 1, device=device)
    logs: dict[str, torch.Tensor] = {}
    losses = []
    for i, made in enumerate(step.batches):
        torch.manual_seed(_seed(plan.config.seed, step.number, i, plan.device.rank))  # for dropout
        # The batch has no name here: nothing holds it when the next one comes to the device.
        parts = objective.loss(wrapped, tensors(made, device), **settings)
        losses.append(parts.loss_sum.detach())
        counts = torch.tensor([*(float(made[name]) for name in COUNTS), float(stop.asked)], device=device)
        sums += torch.cat([losses[-1].float().view(1), parts.weight_sum.view(1), counts])
        for name, value in parts.logs.items():
            logs[name] = logs.get(name, torch.zeros(2, device=device)) + value
        # DeepSpeed takes the mean over passes and processes; the loss is the sum, divided once.
        wrapped.backward(parts.loss_sum / divisor * (world * plan.accumulation))
        if i == len(step.batches) - 1:
            torch.distributed.all_reduce(sums)
            _check_loss(plan, step, float(sums[0]), losses)
        wrapped.step()
    if not math.isclose(float(sums[1]), float(divisor), rel_tol=1e-4):
        raise AssertionError(f"the weights of the objective sum to {float(sums[1])}, expected {float(divisor)}")
    norm = wrapped.get_global_grad_norm()
    norm = None if norm is None else float(norm)
    if norm is not None and not math.isfinite(norm):
        if not plan.fp16:
            raise IntegrityError(_where(plan, step.number), f"the gradient's norm is {norm}", _of(plan, step))
        norm = None  # DeepSpeed has skipped the step, and lowers its loss scale
    tokens, trained, squares, stopped = sums[2:].tolist()
    loss = float(sums[0] / divisor)
    return StepResult(loss, norm, float(divisor), int(tokens), int(trained), squares, means(logs), stop=bool(stopped))


def means(logs: dict[str, torch.Tensor]) -> dict[str, float]:
    """The mean of each log over all processes, without those that nothing counts for."""
    if not logs:
        return {}
    both = torch.stack(list(logs.values()))  # an objective has the same logs, in the same order, in every process
    torch.distributed.all_reduce(both)
    return {name: total / count for name, (total, count) in zip(logs, both.tolist(), strict=True) if count}


def _seed(seed: int, step: int, part: int, rank: int) -> int:
    digest = hashlib.sha256(f"{seed}:{step}:{part}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _check_loss(plan: RunPlan, step: StepBatches, total: float, losses: list[torch.Tensor]) -> None:
    if math.isfinite(total):
        return
    bad = [row for loss, rows in zip(losses, step.mine, strict=True) if not torch.isfinite(loss) for row in rows]
    found: list[list[int]] = [[] for _ in range(plan.device.world)]
    torch.distributed.all_gather_object(found, [int(row) for row in bad])
    rows = [row for some in found for row in some]
    raise IntegrityError(_where(plan, step.number), f"the loss is {total}", _of(plan, step, rows))


def _where(plan: RunPlan, step: int) -> str:
    return f"{plan.set.where}: step {step + 1}"


def _of(plan: RunPlan, step: StepBatches, bad: Sequence[int] = ()) -> str:
    """Where `bad` rows of a step come from, or all of its rows, and what to do."""
    rows = bad or plan.order.step(step.number).tolist()
    listed = "; ".join(plan.train.describe(row) for row in rows[:4])
    more = f"; ... {len(rows) - 4} more" if len(rows) > 4 else ""
    return (
        f"Rows: {listed}{more}.\n  Look at them with cli inspect --row N. If they are fine, try a lower learning_rate,"
        " more warm-up, or bf16 instead of fp16. Checkpoints before this step are complete."
    )
