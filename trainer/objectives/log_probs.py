"""Log-probabilities of trained tokens and rows, by the model and by its reference."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from schemas.errors import UsageError
from trainer.models.wrappers import evaluating, transformers_model, unwrapped
from trainer.objectives import head
from trainer.objectives.objective import Batch

_OURS = ("labels", "loss_weights", "position_ids", "desirable", "reference_log_probs")
"""Columns that are not for the model. It gets position_ids only of packs, where they tell where sequences begin."""
_CHUNK = 1024
"""Positions whose logits are float32 at the same time: 0.6 GB of them with a vocabulary of 150,000."""


def trained_tokens(batch: Batch) -> Tensor:
    """Which tokens are trained, bool[B, T]: labelled, of weight above 0, not first in their sequence.

    Nothing predicts the first token of a sequence.
    """
    trained = (batch["labels"] != -100) & (batch["loss_weights"] > 0) & (batch["position_ids"] > 0)
    trained[:, 0] = False
    return trained


def token_losses(model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """-log p of every trained token given those before it in its sequence: float32[B, T], 0 where untrained.

    With `smoothing` it is that part of the mean of -log p over the vocabulary, and the rest of the token's own.

    Logits are computed only for positions that some row of the batch needs, if the model has `logits_to_keep`, and are
    converted to float32 a chunk at a time; with a head in chunks (`head.py`) they are also computed then.
    """
    labels, trained = batch["labels"], trained_tokens(batch)
    needed = trained.any(0).nonzero().squeeze(1)  # columns of targets; each is predicted one position before
    if not len(needed):
        needed = needed.new_ones(1)  # a rank with nothing trained must still run the model with the others
    inputs = {name: value for name, value in batch.items() if name not in _OURS}
    if "attention_mask" not in batch:
        inputs["position_ids"] = batch["position_ids"]
    if keeps := "logits_to_keep" in inspect.signature(transformers_model(model).forward).parameters:
        inputs["logits_to_keep"] = needed - 1
    later = head.of(model)
    with head.left_out(later):
        # Without use_cache=False a cache is made, and with one Transformers does not look for packs.
        logits = model(**inputs, use_cache=False).logits
    if not keeps:
        logits = logits[:, needed - 1]
    chosen = trained[:, needed]
    scored = logits.flatten(0, 1) if chosen.all() else logits[chosen]  # all of one row, as in a pack: no copy
    parts = zip(torch.split(scored, _CHUNK), torch.split(labels[:, needed][chosen], _CHUNK), strict=True)
    found = [checkpoint(_cross_entropy, *part, smoothing, later, use_reentrant=False) for part in parts]
    losses = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
    losses[trained] = torch.cat(found)  # row by row, as `chosen`
    return losses


def _cross_entropy(scored: Tensor, targets: Tensor, smoothing: float, later: nn.Module | None) -> Tensor:
    logits = scored if later is None else later(scored)
    return functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)


def row_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """log p of the trained tokens of each row, float32[B].

    Weights only decide which tokens count: objectives on pairs are about whole replies.
    """
    if "attention_mask" not in batch:
        what = "objectives on pairs compare whole rows, found packs"
        raise UsageError("packing", what, "Compile preference and KTO sets without packing.")
    return -token_losses(model, batch).sum(1)


def reference_log_probs(model: nn.Module, sides: Sequence[Batch], reference: nn.Module | None) -> list[Tensor]:
    """log p of the trained tokens of each row of these sides by the reference, float32[B] each, without gradients.

    Batches that have it already (`reference_log_probs`) keep it: see `trainer.run.reference`.
    """
    if all("reference_log_probs" in side for side in sides):
        return [side["reference_log_probs"] for side in sides]
    with as_reference(model, reference) as base:
        return [row_log_probs(base, side) for side in sides]


def one_side(batch: Batch, prefix: str = "") -> Batch:
    """The batch of one side of its pairs: the columns with this prefix, else the columns of the row itself."""
    if f"{prefix}input_ids" not in batch:
        raise ValueError(f"expected {prefix}input_ids in the batch, found {', '.join(sorted(batch))}")
    prefixes = tuple(name.removesuffix("input_ids") for name in batch if name.endswith("_input_ids"))
    own = {name: value for name, value in batch.items() if not name.startswith(prefixes)}
    if not prefix:
        return own
    return own | {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}


def log(values: Tensor, weights: Tensor) -> Tensor:
    """(sum of weighted values, sum of weights) for `Parts.logs`."""
    return torch.stack([(values.detach() * weights).sum(), weights.sum()])


@contextlib.contextmanager
def as_reference(model: nn.Module, reference: nn.Module | None) -> Iterator[nn.Module]:
    """Give the reference, without dropout or gradients: the one given, or the model itself without its adapter.

    A given reference is a frozen copy of the model before training, in eval mode on the same device.
    """
    if reference is not None:
        with torch.no_grad():
            yield reference
        return
    adapted = unwrapped(model)
    if not hasattr(adapted, "disable_adapter"):
        raise UsageError(
            "reference", "the loss compares with the model before training, which full fine-tuning changes",
            "Train with LoRA, whose base is the reference, or give a reference model.",
        )  # fmt: skip
    with evaluating(model), adapted.disable_adapter():
        yield model
