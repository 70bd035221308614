"""Replies of a model, also of one with a prefix, as it was trained: PEFT 0.21 and Transformers 5.24 write others."""

from __future__ import annotations

from typing import Any

import torch


def generate(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
    """The ids of `model.generate`, int64[N, L]; prompts are padded on the left, and `options` are of `generate`.

    PEFT's own way with a prefix is not used: `generate` replaces the cache that holds the prefix, and without a cache
    positions are not those of training. Here the prefix is in the cache from the start, and ids stand for it, so that
    a prompt begins at the position where it began in training.
    """
    options |= {"use_cache": True}  # training sets the model's own to false
    prefix = _length(model)
    if not prefix:
        return model.generate(input_ids=input_ids, attention_mask=attention_mask, **options)
    before = attention_mask.new_ones(len(input_ids), prefix)
    written = model.get_base_model().generate(
        input_ids=torch.cat([before, input_ids], dim=1), attention_mask=torch.cat([before, attention_mask], dim=1),
        past_key_values=model.get_prompt(len(input_ids)), **options,
    )  # fmt: skip
    return written[:, prefix:]


def takes_padding(model: Any) -> bool:
    """Whether a prompt may be padded: not between a prefix and a sliding window, which counts the padding."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return not (_length(model) and "sliding_attention" in kinds)


def _length(model: Any) -> int:
    return getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0
