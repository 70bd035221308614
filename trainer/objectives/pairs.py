"""What objectives on pairs have in common. A pair is a row: the chosen reply, and the rejected one under `rejected_`.

log p of a reply is the sum of the log-probabilities of its trained tokens; its mean is that sum over their number.
Weights of tokens decide which ones count, not how much. The loss of a step is the mean of its pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.objectives.log_probs import log, one_side, reference_log_probs, row_log_probs, trained_tokens
from trainer.objectives.objective import Batch, Parts

SIDES = ("", "rejected_")


class Pairs(NamedTuple):
    """The log-probabilities of both sides of a batch of pairs, float32[B] each."""

    chosen: Tensor
    rejected: Tensor

    def __sub__(self, other: Pairs) -> Pairs:
        """Log-ratios: these log-probabilities against others."""
        return Pairs(self.chosen - other.chosen, self.rejected - other.rejected)

    def mean(self, batch: Batch) -> Pairs:
        """The same by token: each side over the number of its trained tokens."""
        return Pairs(self.chosen / _lengths(batch, ""), self.rejected / _lengths(batch, "rejected_"))

    @property
    def margin(self) -> Tensor:
        """By how much the chosen side is ahead."""
        return self.chosen - self.rejected


def log_probs(model: nn.Module, batch: Batch) -> Pairs:
    """log p of the replies of both sides, with gradients."""
    return Pairs(*(row_log_probs(model, one_side(batch, side)) for side in SIDES))


def log_ratios(model: nn.Module, batch: Batch, reference: nn.Module | None) -> tuple[Pairs, Pairs]:
    """(log p of the model, the same minus log p of its reference) of the replies of both sides."""
    base = Pairs(*reference_log_probs(model, [one_side(batch, side) for side in SIDES], reference))
    mine = log_probs(model, batch)
    return mine, mine - base


def weights(batch: Batch) -> Tensor:
    """1 for each pair in which anything is trained, else 0: float32[B]."""
    return torch.stack([trained_tokens(one_side(batch, side)).any(1) for side in SIDES]).any(0).float()


def chosen_loss(mine: Pairs, batch: Batch) -> Tensor:
    """The loss of the chosen reply by token, as in supervised fine-tuning, float32[B]."""
    return -mine.mean(batch).chosen


def parts(batch: Batch, losses: Tensor, rewards: Pairs, sft: Tensor | None = None) -> Parts:
    """The parts of a loss by pair, float32[B]; `rewards`: what the loss compares, `sft`: its `chosen_loss`."""
    counted = weights(batch)
    losses = losses * counted
    logs = {
        "rewards/chosen": log(rewards.chosen, counted),
        "rewards/rejected": log(rewards.rejected, counted),
        "rewards/margins": log(rewards.margin, counted),
        "rewards/accuracies": log((rewards.margin > 0).float(), counted),
    }
    if sft is not None:
        logs["sft_loss"] = log(sft, counted)
    return Parts(losses.sum(), counted.sum(), losses.detach(), counted, logs)


def with_sft(batch: Batch, losses: Tensor, rewards: Pairs, mine: Pairs, alpha: float) -> Parts:
    """The parts of losses by pair plus `alpha` times the loss of the chosen reply by token.

    Pang et al. 2024, "Iterative Reasoning Preference Optimization", equation 1 (arXiv 2404.19733). The term is a mean
    by token of each reply, then a mean of pairs, so it does not depend on how a step is split.
    """
    if not alpha:
        return parts(batch, losses, rewards)
    sft = chosen_loss(mine, batch)
    return parts(batch, losses + alpha * sft, rewards, sft)


def _lengths(batch: Batch, side: str) -> Tensor:
    return trained_tokens(one_side(batch, side)).sum(1).clamp(min=1)
