"""`npu_fusion_attention` by its formula, for the layouts and masks that Transformers asks for.

The names are those in Transformers (integrations/npu_flash_attention.py) and in Huawei's page on it. `TND` holds
sequences one after another, whose ends are in `actual_seq_qlen` and `actual_seq_kvlen`; `sparse_mode` 3 is causal, with
the last query at the last key.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch


def npu_fusion_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, head_num: int, input_layout: str, *,
    scale: float = 1.0, keep_prob: float = 1.0, sparse_mode: int = 0, actual_seq_qlen: Sequence[int] = (),
    actual_seq_kvlen: Sequence[int] = (), pse: Any = None, padding_mask: Any = None, atten_mask: Any = None,
) -> tuple[torch.Tensor]:  # fmt: skip
    if query.device.type != "npu" or keep_prob != 1 or sparse_mode not in (0, 3) or pse or padding_mask:
        raise NotImplementedError("only what the trainer uses is here")
    causal = sparse_mode == 3
    if input_layout == "BSND":
        rows = zip(query, key, value, strict=True)
        return (torch.stack([_attend(*row, scale, causal) for row in rows]),)
    ends = (pairwise((0, *actual_seq_qlen)), pairwise((0, *actual_seq_kvlen)))
    parts = [
        _attend(query[start:end], key[first:last], value[first:last], scale, causal)
        for (start, end), (first, last) in zip(*ends, strict=True)
    ]
    return (torch.cat(parts),)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, causal: bool) -> torch.Tensor:
    """Attention within a sequence; tensors are [token, head, size]."""
    key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    scores = torch.einsum("qnd,knd->nqk", query, key).float() * scale
    if causal:
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(later.triu(1 + len(key) - len(query)), float("-inf"))
    return torch.einsum("nqk,knd->qnd", scores.softmax(-1).to(value.dtype), value)
