"""Merge a LoRA into the weights of its model, and check that the merged model predicts the same."""

from __future__ import annotations

from typing import Any

import torch

from schemas.errors import IntegrityError, UsageError
from trainer.data.stream import TrainingSet
from trainer.models.pretrained import load_model, stored_dtype
from trainer.models.wrappers import evaluating
from trainer.use.checkpoint import TrainedModel
from trainer.use.merge_check import MergeCheck

_PROBED = 64
"""Tokens of a trained row on which the merged model must predict what the model with its adapter predicts."""
_ALLOWED = 1e-3
"""The largest difference of log-probabilities in 32 bits."""
_BESIDE = "Use the adapter beside its model: cli chat MODEL --adapter CHECKPOINT."


def check_mergeable(trained: TrainedModel) -> None:
    """Raise a UsageError for an adapter that cannot be merged into weights."""
    kind = trained.adapter["peft_type"] if trained.adapter else "LORA"
    if kind == "LORA":
        return
    why = "cannot be merged into weights"
    if kind == "PREFIX_TUNING":
        why = "is keys and values put in front of those of every layer, which no weight of a model can hold"
    hint = "Use it beside its model: cli chat MODEL --adapter CHECKPOINT."
    raise UsageError(str(trained.folder), f"a {kind} checkpoint {why}", hint)


def merge(trained: TrainedModel, dtype: torch.dtype | None) -> Any:
    """The model with its LoRA merged in, of the base's type unless `dtype` is given; IntegrityError if it differs."""
    # In 32 bits: in 16, the right merge differs as much as a wrong one (the base alone by 1.1 between both).
    model = load_model(trained.base, trained.folder, dtype=torch.float32)
    stored = dtype or stored_dtype(trained.base)
    probe = torch.tensor([_first_row(trained)[:_PROBED]])
    before = _log_probs(model, probe)
    _untie(model)
    check = MergeCheck(model, trained.folder, trained.adapter or {})
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # a NaN in the adapter
        raise IntegrityError(str(trained.folder), f"cannot be merged: {error}") from error
    if wrong := check.differing(merged):
        what = f"the merged weight of {wrong[0]} is not that of the base and its adapter ({len(wrong)} such)"
        raise IntegrityError(str(trained.folder), what, _BESIDE)
    difference = (before - _log_probs(merged, probe)).abs().max().item()
    if not difference <= _ALLOWED:
        raise IntegrityError(
            str(trained.folder),
            f"the merged model predicts something else: log-probabilities differ by up to {difference:.3g}",
            _BESIDE,
        )
    merged = merged.to(stored)
    merged.config.use_cache = True
    return merged


def _untie(model: Any) -> None:
    """Give the output layer its own weights if the adapter changes those it shares with the embeddings."""
    base = model.get_base_model()
    layers = base.get_input_embeddings(), base.get_output_embeddings()
    inner = [getattr(layer, "base_layer", layer) for layer in layers]
    adapted = any(one is not layer for one, layer in zip(inner, layers, strict=True))
    if adapted and inner[1] is not None and inner[0].weight is inner[1].weight:
        inner[1].weight = torch.nn.Parameter(inner[1].weight.detach().clone())
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False


def _first_row(trained: TrainedModel) -> list[int]:
    where, manifest = trained.set, trained.manifest
    name = next(name for name, split in manifest["splits"].items() if split["rows"])
    row = TrainingSet.of(where, manifest).split(name).row(0)
    return [int(token) for token in row["input_ids"]]


def _log_probs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with evaluating(model):
        return torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), -1)
