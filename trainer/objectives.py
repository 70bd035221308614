"""What is minimised: weighted cross-entropy (sft, pretrain), DPO (preference), KTO (kto). One function each.

A batch is a dict of tensors, B rows of T tokens, padded on the right:

    input_ids       int64[B, T]
    labels          int64[B, T]     the target of each position itself (unshifted); -100 = untrained
    loss_weights    float32[B, T]
    position_ids    int64[B, T]     0 at the first token of every sequence, so several times in a pack
    attention_mask  int64[B, T]     absent in packs
    desirable       bool[B]         kto

and anything else the model takes (pixel_values, image_grid_thw, ...), which is handed to it. Preference batches hold
the other reply under the same names with `rejected_`, KTO batches the mismatched pairs (see `mismatched`) with `kl_`;
what is not given so (the pixels: they belong to the prompt) is taken from the row itself.

An objective returns sums. Loss = sum of `loss_sum` / sum of `weight_sum` over all ranks and accumulated batches of a
step: it depends on the number of neither.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from schemas.errors import UsageError
from trainer.models.wrappers import evaluating, transformers_model, unwrapped

Batch = dict[str, Tensor]

REFERENCED = ("preference", "kto")
"""Kinds whose loss compares the model with a reference: its own base under LoRA, else a frozen copy."""

_OURS = ("labels", "loss_weights", "position_ids", "desirable")
"""What is in a batch and not for the model; positions only in packs, where they tell where sequences begin."""
_PREFIXES = ("rejected_", "kl_")
_CHUNK = 1024
"""Positions whose logits are float32 at the same time: 0.6 GB of them with a vocabulary of 150,000."""


class Parts(NamedTuple):
    """One batch's share of a step's loss.

    `loss_sum` float32 scalar with grad, `weight_sum` float32 scalar without. `losses` and `weights` float32, without
    grad, are what these are sums of: [B, T] by target token (sft, pretrain) or [B] by row (preference, kto), for losses
    by dataset. `logs`: name to float32[2], (sum, count), to be added over ranks and batches and then divided.
    """

    loss_sum: Tensor
    weight_sum: Tensor
    losses: Tensor
    weights: Tensor
    logs: dict[str, Tensor]


def compute(
    model: nn.Module,
    batch: Batch,
    kind: str,
    *,
    reference: nn.Module | None = None,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kl: Tensor | None = None,
) -> Parts:
    """Return the loss of a batch of a set of this kind (the manifest's `kind`), in sums.

    `model` may be wrapped (DeepSpeed, DDP). `reference`: a frozen copy of the model before training, in eval mode on
    the same device, for full fine-tuning; a PEFT model needs none, its base is the reference. `beta` of DPO and KTO;
    the weights and `kl` of KTO only: `kl` is what `kl_estimate` says for the whole step; without it the estimate is
    this batch's own (over all ranks), and the loss then depends on how a step is cut into batches.
    """
    if kind == "preference":
        return _dpo(model, batch, reference, beta)
    if kind == "kto":
        kl = kl_estimate(model, [batch], reference) if kl is None else kl
        return _kto(model, batch, reference, beta, desirable_weight, undesirable_weight, kl)
    if kind not in ("sft", "pretrain"):
        raise ValueError(f"no objective for sets of kind {kind!r}")
    return _weighted_cross_entropy(model, batch)


def _weighted_cross_entropy(model: nn.Module, batch: Batch) -> Parts:
    """Sum of w * CE over sum of w: 2.0 on a token counts it twice, in numerator and denominator.

    What balances the experts of a mixture is no part of it.
    """
    losses, trained = _token_losses(model, batch)
    weights = batch["loss_weights"] * trained
    losses = losses * weights
    return Parts(losses.sum(), weights.sum(), losses.detach(), weights, {})


def _dpo(model: nn.Module, batch: Batch, reference: nn.Module | None, beta: float) -> Parts:
    """-log sigmoid(beta * (chosen log-ratio - rejected log-ratio)), mean of pairs.

    Rafailov et al. 2023, "Direct Preference Optimization", equation 7 (arXiv 2305.18290).
    """
    rejected = _view(batch, "rejected_")
    with _as_reference(model, reference) as base:
        base_chosen, _ = _row_log_probs(base, batch)
        base_rejected, _ = _row_log_probs(base, rejected)
    log_chosen, counted = _row_log_probs(model, batch)
    log_rejected, counted_too = _row_log_probs(model, rejected)
    weights = (counted | counted_too).float()
    chosen, other = beta * (log_chosen - base_chosen), beta * (log_rejected - base_rejected)
    losses = -functional.logsigmoid(chosen - other) * weights
    logs = {
        "rewards/chosen": _log(chosen, weights),
        "rewards/rejected": _log(other, weights),
        "rewards/margins": _log(chosen - other, weights),
        "rewards/accuracies": _log((chosen > other).float(), weights),
    }
    return Parts(losses.sum(), weights.sum(), losses.detach(), weights, logs)


def _kto(
    model: nn.Module,
    batch: Batch,
    reference: nn.Module | None,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    kl: Tensor,
) -> Parts:
    """weight * (1 - sigmoid(+-beta * (log-ratio - KL))), mean of rows; KL is a constant for the gradient.

    Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", equations 7 and 8
    (arXiv 2402.01306).
    """
    with _as_reference(model, reference) as base:
        base_log_probs, _ = _row_log_probs(base, batch)
    log_probs, counted = _row_log_probs(model, batch)
    weights, desirable = counted.float(), batch["desirable"].float()
    ratio = log_probs - base_log_probs
    good = desirable_weight * (1 - torch.sigmoid(beta * (ratio - kl)))
    bad = undesirable_weight * (1 - torch.sigmoid(beta * (kl - ratio)))
    losses = torch.where(batch["desirable"], good, bad) * weights
    logs = {
        "rewards/desirable": _log(beta * ratio, weights * desirable),
        "rewards/undesirable": _log(beta * ratio, weights * (1 - desirable)),
        "kl": _log(kl.expand_as(ratio), weights),
    }
    return Parts(losses.sum(), weights.sum(), losses.detach(), weights, logs)


def kl_estimate(model: nn.Module, batches: Sequence[Batch], reference: nn.Module | None = None) -> Tensor:
    """Return KTO's reference point, float32 scalar, without grad: max(0, mean log-ratio of the mismatched pairs).

    Over the rows of `batches` and of all ranks, which must call it together and with equally many batches. Given all
    batches of a step before its first forward pass, the loss does not depend on how the step is cut into them.
    """
    total = torch.zeros(2, device=batches[0]["input_ids"].device)
    for batch in batches:
        pairs = _view(batch, "kl_")
        with _as_reference(model, reference) as base:
            ratio, counted = _row_log_probs(base, pairs)
            ratio = -ratio
        with evaluating(model):
            ratio = ratio + _row_log_probs(model, pairs)[0]
        total += _log(ratio, counted.float())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return (total[0] / total[1].clamp(min=1)).clamp(min=0)


def mismatched(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return KTO's mismatched pairs: row i's prompt with row i+1's completion, the last with the first's.

    `rows` are rows as in a shard (lists or numpy arrays under `input_ids`, `labels`, `loss_weights` or None). The
    result has the same columns; what else row i has (its images) stays. The collator pads the pairs like rows and puts
    them into the batch with the prefix `kl_`. Pairs of a whole step (all ranks, all accumulated batches: position in
    the order is arithmetic, so any rank can read row i+1) make the loss independent of how the step is cut; then use
    `mismatch` on two neighbours. A pair can be longer than either row: nothing is cut.
    """
    if len(rows) < 2:
        raise UsageError(
            "kto", f"expected at least 2 rows a step to make mismatched pairs of, found {len(rows)}",
            "Raise per_device_train_batch_size or gradient_accumulation_steps.",
        )  # fmt: skip
    return [mismatch(row, rows[(i + 1) % len(rows)]) for i, row in enumerate(rows)]


def mismatch(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return a row of `row`'s prompt (all before its first trained token) and `other`'s completion (from there on)."""
    cut, start = prompt_length(row["labels"]), prompt_length(other["labels"])
    pair = dict(row)
    for name in ("input_ids", "labels"):
        pair[name] = [*row[name][:cut], *other[name][start:]]
    length = len(pair["input_ids"])
    if other.get("loss_weights") is not None:
        pair["loss_weights"] = [*[0.0] * cut, *other["loss_weights"][start:]]
    else:
        pair["loss_weights"] = None
    return pair | {"seq_lens": [length], "num_trained": other.get("num_trained")}


def prompt_length(labels: Sequence[int]) -> int:
    """Return how many tokens stand before the first trained one."""
    return next((i for i, label in enumerate(labels) if label != -100), len(labels))


# -- log-probabilities --


def _token_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return -log p of every trained token given those before it in its sequence, and which tokens are trained.

    float32[B, T], 0 where untrained; bool[B, T]. Trained: labelled, of weight above 0, and not first in its sequence,
    as nothing predicts that. Logits are made only for positions that some row of the batch needs, where the model has
    `logits_to_keep`, and are float32 a chunk at a time.
    """
    labels, positions = batch["labels"], batch["position_ids"]
    trained = (labels != -100) & (batch["loss_weights"] > 0) & (positions > 0)
    trained[:, 0] = False
    needed = trained.any(0).nonzero().squeeze(1)  # columns of targets; each is predicted one position before
    if not len(needed):
        needed = needed.new_ones(1)  # a rank with nothing trained must still run the model with the others
    inputs = {name: value for name, value in batch.items() if not name.startswith(_PREFIXES) and name not in _OURS}
    if "attention_mask" not in batch:
        inputs["position_ids"] = positions
    if keeps := "logits_to_keep" in inspect.signature(transformers_model(model).forward).parameters:
        inputs["logits_to_keep"] = needed - 1
    # Without use_cache=False a cache is made, and with one Transformers does not look for packs.
    logits = model(**inputs, use_cache=False).logits
    if not keeps:
        logits = logits[:, needed - 1]
    chosen = trained[:, needed]
    scored = logits.flatten(0, 1) if chosen.all() else logits[chosen]  # of one row, as a pack, always all: no copy
    parts = zip(torch.split(scored, _CHUNK), torch.split(labels[:, needed][chosen], _CHUNK), strict=True)
    found = [checkpoint(_cross_entropy, *part, use_reentrant=False) for part in parts]
    losses = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
    losses[trained] = torch.cat(found)  # row by row, as `chosen`
    return losses, trained


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="none")


def _row_log_probs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return log p of each row's trained tokens, float32[B], and whether a row has any, bool[B].

    Weights only say which tokens count: these objectives are about whole replies.
    """
    if "attention_mask" not in batch:
        raise UsageError(
            "packing", "DPO and KTO compare whole rows, found packs", "Compile preference and KTO sets without packing."
        )
    losses, trained = _token_losses(model, batch)
    return -losses.sum(1), trained.any(1)


def _view(batch: Batch, prefix: str) -> Batch:
    """Return the batch as the other row of each pair sees it."""
    if f"{prefix}input_ids" not in batch:
        raise ValueError(f"expected {prefix}input_ids in the batch, found {', '.join(sorted(batch))}")
    own = {name: value for name, value in batch.items() if not name.startswith(_PREFIXES)}
    return own | {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}


def _log(values: Tensor, weights: Tensor) -> Tensor:
    return torch.stack([(values.detach() * weights).sum(), weights.sum()])


# -- the reference --


@contextlib.contextmanager
def _as_reference(model: nn.Module, reference: nn.Module | None) -> Iterator[nn.Module]:
    """Give the reference: the model given, or the model itself without its adapter, without dropout or gradients."""
    if reference is not None:
        with torch.no_grad():
            yield reference
        return
    adapted = unwrapped(model)
    if not hasattr(adapted, "disable_adapter"):
        raise UsageError(
            "reference", "DPO and KTO compare with the model before training, and full fine-tuning changes that",
            "Train with LoRA, whose base is the reference, or give a reference model.",
        )  # fmt: skip
    with evaluating(model), adapted.disable_adapter():
        yield model
