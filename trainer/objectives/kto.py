"""Kahneman-Tversky optimization, with its mismatched pairs: the prompt of a row and the reply of the next one."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from trainer.models.wrappers import evaluating
from trainer.objectives.log_probs import log, one_side, reference_log_probs, row_log_probs, trained_tokens
from trainer.objectives.objective import Batch, Objective, Parts, Row


def weights(batch: Batch) -> Tensor:
    """1 for each row in which anything is trained, else 0: float32[B]."""
    return trained_tokens(batch).any(1).float()


def loss(
    model: nn.Module,
    batch: Batch,
    *,
    reference: nn.Module | None = None,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kl: Tensor | None = None,
) -> Parts:
    """weight * (1 - sigmoid(+-beta * (log-ratio - KL))), mean of rows; KL is a constant for the gradient.

    `reference`: see `as_reference`. `kl`: the `kl_estimate` of the whole step; without it, that of this batch (over all
    ranks), so that the loss depends on how a step is cut into batches. Ethayarajh et al. 2024, "KTO: Model Alignment as
    Prospect Theoretic Optimization", equations 7 and 8 (arXiv 2402.01306).
    """
    kl = kl_estimate(model, [batch], reference) if kl is None else kl
    rows, desirable = one_side(batch), batch["desirable"]
    (base,) = reference_log_probs(model, [rows], reference)
    ratio = row_log_probs(model, rows) - base
    good = desirable_weight * (1 - torch.sigmoid(beta * (ratio - kl)))
    bad = undesirable_weight * (1 - torch.sigmoid(beta * (kl - ratio)))
    counted = weights(batch)
    losses = torch.where(desirable, good, bad) * counted
    logs = {
        "rewards/desirable": log(beta * ratio, counted * desirable.float()),
        "rewards/undesirable": log(beta * ratio, counted * (1 - desirable.float())),
        "kl": log(kl.expand_as(ratio), counted),
    }
    return Parts(losses.sum(), counted.sum(), losses.detach(), counted, logs)


def kl_estimate(model: nn.Module, batches: Iterable[Batch], reference: nn.Module | None = None) -> Tensor:
    """KTO's reference point, float32 scalar, without grad: max(0, mean log-ratio of the mismatched pairs).

    The mean is over the rows of `batches` and of all ranks, which must call it together, with equally many batches.
    Given all batches of a step, the loss does not depend on how the step is cut into them. One of them is held at a
    time.
    """

    def one(batch: Batch) -> Tensor:
        pairs = one_side(batch, "kl_")
        (base,) = reference_log_probs(model, [pairs], reference)
        with evaluating(model):
            return log(row_log_probs(model, pairs) - base, weights(pairs))

    total = functools.reduce(operator.add, map(one, batches))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return (total[0] / total[1].clamp(min=1)).clamp(min=0)


def mismatch(row: Row, other: Row) -> Row:
    """Add a mismatched pair to a row, under `kl_`: its prompt, and the reply of the next row in the step.

    Position in the order is arithmetic, so any rank can read the next row: the pairs do not depend on how a step is cut
    into batches. A pair can be longer than either row; nothing is cut.
    """
    end, start = _prompt_length(row), _prompt_length(other)
    pair: Row = {
        f"kl_{name}": np.concatenate([row[name][:end], other[name][start:]]) for name in ("input_ids", "labels")
    }
    given = other["loss_weights"]
    pair_weights = None if given is None else np.concatenate([np.zeros(end), given[start:]]).astype(np.float32)
    if "reference" in row:  # as in trainer.run.reference
        pair["kl_reference_log_probs"] = row["reference"]("kl_", other["number"])
    return row | pair | {"kl_loss_weights": pair_weights}


def _prompt_length(row: Row) -> int:
    """Tokens before the first trained one."""
    return next((i for i, label in enumerate(row["labels"]) if label != -100), len(row["labels"]))


KTO = Objective(
    "kto", kind="kto", loss=loss, weights=weights,
    settings=("beta", "desirable_weight", "undesirable_weight"), sides=("", "kl_"), needs_reference=True,
    pair=mismatch, shared=lambda model, batches: {"kl": kl_estimate(model, batches)},
)  # fmt: skip
