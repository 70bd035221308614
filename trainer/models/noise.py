"""NEFTune: noise on the embeddings while training (Jain et al. 2023, arXiv 2310.05914), by the hook of Transformers."""

from __future__ import annotations

from typing import Any


def add(model: Any, alpha: float) -> None:
    """Add noise of scale `alpha` / sqrt(tokens x width) to what the embeddings of a model give, in training only."""
    from transformers.integrations.neftune import neftune_post_forward_hook

    embeddings = model.get_input_embeddings()
    embeddings.neftune_noise_alpha = alpha
    embeddings.register_forward_hook(neftune_post_forward_hook)
