"""Direct preference optimization, and the same with a hinge."""

from __future__ import annotations

from torch import nn
from torch.nn import functional

from trainer.objectives import pairs
from trainer.objectives.objective import Batch, Objective, Parts


def loss(
    model: nn.Module,
    batch: Batch,
    *,
    reference: nn.Module | None = None,
    beta: float = 0.1,
    dpo_label_smoothing: float = 0.0,
    rpo_alpha: float = 0.0,
) -> Parts:
    """-log sigmoid(beta * (chosen log-ratio - rejected log-ratio)), mean of pairs.

    `reference`: see `as_reference`. Rafailov et al. 2023, "Direct Preference Optimization", equation 7
    (arXiv 2305.18290). With a smoothing of e it is 1 - e of that and e of the loss of the swapped pair: Mitchell 2023,
    "A note on DPO with noisy preferences" (conservative DPO). `rpo_alpha`: see `pairs.with_sft`.
    """
    mine, ratios = pairs.log_ratios(model, batch, reference)
    rewards = pairs.Pairs(beta * ratios.chosen, beta * ratios.rejected)
    losses = -functional.logsigmoid(rewards.margin)
    if dpo_label_smoothing:
        swapped = -functional.logsigmoid(-rewards.margin)
        losses = (1 - dpo_label_smoothing) * losses + dpo_label_smoothing * swapped
    return pairs.with_sft(batch, losses, rewards, mine, rpo_alpha)


def hinge_loss(
    model: nn.Module, batch: Batch, *, reference: nn.Module | None = None, beta: float = 0.1, rpo_alpha: float = 0.0
) -> Parts:
    """max(0, 1 - beta * (chosen log-ratio - rejected log-ratio)), mean of pairs.

    Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", arXiv 2309.06657: the hinge of
    SLiC on the log-ratios of DPO.
    """
    mine, ratios = pairs.log_ratios(model, batch, reference)
    rewards = pairs.Pairs(beta * ratios.chosen, beta * ratios.rejected)
    return pairs.with_sft(batch, (1 - rewards.margin).clamp(min=0), rewards, mine, rpo_alpha)


DPO = Objective(
    "dpo", kind="preference", loss=loss, weights=pairs.weights,
    settings=("beta", "dpo_label_smoothing", "rpo_alpha"), sides=pairs.SIDES, needs_reference=True,
)  # fmt: skip
HINGE = Objective(
    "hinge", kind="preference", loss=hinge_loss, weights=pairs.weights,
    settings=("beta", "rpo_alpha"), sides=pairs.SIDES, needs_reference=True,
)  # fmt: skip
