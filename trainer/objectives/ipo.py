"""Identity preference optimization."""

from __future__ import annotations

from torch import nn

from trainer.objectives import pairs
from trainer.objectives.objective import Batch, Objective, Parts


def loss(
    model: nn.Module, batch: Batch, *, reference: nn.Module | None = None, beta: float = 0.1, rpo_alpha: float = 0.0
) -> Parts:
    """(chosen log-ratio - rejected log-ratio - 1 / (2 * beta)) ** 2, mean of pairs.

    Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences", equation 17
    (arXiv 2310.12036), where beta is called tau. Log-ratios are means by token: the paper's sums grow with a reply's
    length, and 1 / (2 * beta) does not. TRL and LLaMA-Factory use the means too. `reference`: see `as_reference`.
    """
    mine, ratios = pairs.log_ratios(model, batch, reference)
    ratios = ratios.mean(batch)
    rewards = pairs.Pairs(beta * ratios.chosen, beta * ratios.rejected)
    return pairs.with_sft(batch, (ratios.margin - 1 / (2 * beta)) ** 2, rewards, mine, rpo_alpha)


IPO = Objective(
    "ipo", kind="preference", loss=loss, weights=pairs.weights,
    settings=("beta", "rpo_alpha"), sides=pairs.SIDES, needs_reference=True,
)  # fmt: skip
