"""Odds ratio preference optimization: the loss of the chosen reply, and its odds against those of the rejected one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.objectives import pairs
from trainer.objectives.objective import Batch, Objective, Parts

_CERTAIN = -1e-6
"""The largest mean log-probability: a certain reply, or one without tokens, has infinite odds."""


def loss(model: nn.Module, batch: Batch, *, beta: float = 0.1) -> Parts:
    """Loss of the chosen reply - beta * log sigmoid(log odds of the chosen - log odds of the rejected), mean of pairs.

    odds(p) = p / (1 - p), where log p is the mean by token of a reply. Hong et al. 2024, "ORPO: Monolithic Preference
    Optimization without Reference Model", equations 4, 6 and 7 (arXiv 2403.07691); beta is their lambda. The first term
    is a mean by token of each chosen reply, without its prompt, as LLaMA-Factory's; TRL's has the prompt too, and is
    one mean over the tokens of a batch.
    """
    mine = pairs.log_probs(model, batch)
    by_token = mine.mean(batch)
    sft = pairs.chosen_loss(mine, batch)
    ratio = _log_odds(by_token.chosen) - _log_odds(by_token.rejected)
    rewards = pairs.Pairs(beta * by_token.chosen, beta * by_token.rejected)
    return pairs.parts(batch, sft - beta * functional.logsigmoid(ratio), rewards, sft)


def _log_odds(log_p: Tensor) -> Tensor:
    log_p = log_p.clamp(max=_CERTAIN)
    return log_p - torch.log(-torch.expm1(log_p))


ORPO = Objective("orpo", kind="preference", loss=loss, weights=pairs.weights, settings=("beta",), sides=pairs.SIDES)
