"""Simple preference optimization: the reward of a reply is its log-probability by token. No reference is needed."""

from __future__ import annotations

from torch import nn
from torch.nn import functional

from trainer.objectives import pairs
from trainer.objectives.objective import Batch, Objective, Parts


def loss(
    model: nn.Module, batch: Batch, *, beta: float = 2.0, simpo_gamma: float = 0.5, rpo_alpha: float = 0.0
) -> Parts:
    """-log sigmoid(beta * (mean log p of the chosen - mean log p of the rejected) - gamma), mean of pairs.

    Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", equation 6
    (arXiv 2405.14734). `rpo_alpha`: see `pairs.with_sft`; TRL calls it cpo_alpha.
    """
    mine = pairs.log_probs(model, batch)
    by_token = mine.mean(batch)
    rewards = pairs.Pairs(beta * by_token.chosen, beta * by_token.rejected)
    return pairs.with_sft(batch, -functional.logsigmoid(rewards.margin - simpo_gamma), rewards, mine, rpo_alpha)


SIMPO = Objective(
    "simpo", kind="preference", loss=loss, weights=pairs.weights,
    settings=("beta", "simpo_gamma", "rpo_alpha"), sides=pairs.SIDES,
)  # fmt: skip
