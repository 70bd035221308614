"""Contrastive preference optimization: DPO without a reference, plus the loss of the chosen reply."""

from __future__ import annotations

from torch import nn
from torch.nn import functional

from trainer.objectives import pairs
from trainer.objectives.objective import Batch, Objective, Parts


def loss(model: nn.Module, batch: Batch, *, beta: float = 0.1, rpo_alpha: float = 1.0) -> Parts:
    """-log sigmoid(beta * (log p of the chosen - log p of the rejected)) + alpha * loss of the chosen, mean of pairs.

    Xu et al. 2024, "Contrastive Preference Optimization", arXiv 2401.08417, where alpha is 1. The
    loss of the chosen reply is by token (`pairs.with_sft`), as in TRL, which calls its weight cpo_alpha.
    """
    mine = pairs.log_probs(model, batch)
    rewards = pairs.Pairs(beta * mine.chosen, beta * mine.rejected)
    return pairs.with_sft(batch, -functional.logsigmoid(rewards.margin), rewards, mine, rpo_alpha)


CPO = Objective(
    "cpo", kind="preference", loss=loss, weights=pairs.weights, settings=("beta", "rpo_alpha"), sides=pairs.SIDES
)
