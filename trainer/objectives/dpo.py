"""Direct preference optimization."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from trainer.objectives.log_probs import as_reference, log, one_side, row_log_probs, trained_tokens
from trainer.objectives.objective import Batch, Objective, Parts


def weights(batch: Batch) -> Tensor:
    """1 for each pair in which anything is trained, else 0: float32[B]."""
    return (trained_tokens(batch).any(1) | trained_tokens(one_side(batch, "rejected_")).any(1)).float()


def loss(model: nn.Module, batch: Batch, *, reference: nn.Module | None = None, beta: float = 0.1) -> Parts:
    """-log sigmoid(beta * (chosen log-ratio - rejected log-ratio)), mean of pairs.

    `reference`: see `as_reference`. Rafailov et al. 2023, "Direct Preference Optimization", equation 7
    (arXiv 2305.18290).
    """
    chosen, rejected = one_side(batch), one_side(batch, "rejected_")
    with as_reference(model, reference) as base:
        base_chosen, base_rejected = row_log_probs(base, chosen), row_log_probs(base, rejected)
    reward = beta * (row_log_probs(model, chosen) - base_chosen)
    other = beta * (row_log_probs(model, rejected) - base_rejected)
    counted = weights(batch)
    losses = -functional.logsigmoid(reward - other) * counted
    logs = {
        "rewards/chosen": log(reward, counted),
        "rewards/rejected": log(other, counted),
        "rewards/margins": log(reward - other, counted),
        "rewards/accuracies": log((reward > other).float(), counted),
    }
    return Parts(losses.sum(), counted.sum(), losses.detach(), counted, logs)


DPO = Objective(
    "dpo", kind="preference", loss=loss, weights=weights,
    settings=("beta",), sides=("", "rejected_"), needs_reference=True,
)  # fmt: skip
