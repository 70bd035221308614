"""Weighted cross entropy, for conversations (sft) and documents (pretrain)."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.objectives.log_probs import token_losses, trained_tokens
from trainer.objectives.objective import Batch, Objective, Parts


def weights(batch: Batch) -> Tensor:
    """The weight of each token, float32[B, T]; 0 where untrained or first in its sequence."""
    return batch["loss_weights"] * trained_tokens(batch)


def loss(model: nn.Module, batch: Batch, label_smoothing_factor: float = 0.0) -> Parts:
    """Sum of w * CE over sum of w: a token of weight 2 counts twice, in numerator and denominator.

    The balancing loss of mixture-of-experts models is not part of it.
    """
    counted = weights(batch)
    losses = token_losses(model, batch, label_smoothing_factor) * counted
    return Parts(losses.sum(), counted.sum(), losses.detach(), counted, {})


_SETTINGS = ("label_smoothing_factor",)
SFT = Objective("sft", kind="sft", loss=loss, weights=weights, settings=_SETTINGS)
PRETRAIN = Objective("pretrain", kind="pretrain", loss=loss, weights=weights, settings=_SETTINGS)
