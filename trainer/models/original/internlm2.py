"""InternLM2, as Transformers' Llama."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.models.original.family import Family, Keys, Original, Part, heads_of, llama_config, renamed


def _configure(original: Original, folder: Path) -> Any:
    keys = Keys(original, folder, FAMILY.title)
    keys.require({"bias": False, "hidden_act": "silu"})
    theta = float(keys.get("rope_theta", 10000))
    scaling = keys.get("rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", "dynamic"):
        raise keys.refusal("rope_scaling", "expected linear or dynamic scaling, or none")
    rope = {"rope_type": kind, "rope_theta": theta}
    rope |= {"factor": float(scaling["factor"])} if kind != "default" else {}
    return llama_config(
        keys,
        num_key_value_heads=keys.get("num_key_value_heads", keys.need("num_attention_heads")),
        rope_parameters=rope,
        max_position_embeddings=keys.get("max_position_embeddings", 2048),
    )


def _cut(config: Any, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Rows stand by groups: the queries of a group, its key, its value."""
    groups, width = config.num_key_value_heads, config.head_dim
    each = config.num_attention_heads // groups
    grouped = tensor.view(groups, each + 2, width, *tensor.shape[1:])
    pieces = grouped[:, :each], grouped[:, each], grouped[:, each + 1]
    return [piece.reshape(-1, *tensor.shape[1:]) for piece in pieces]


def _join(config: Any, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    groups, width = config.num_key_value_heads, config.head_dim
    grouped = [tensor.view(groups, -1, width, *tensor.shape[1:]) for tensor in tensors]
    return torch.cat(grouped, dim=1).reshape(-1, *tensors[0].shape[1:])


def _parts(config: Any) -> Sequence[Part]:  # noqa: ARG001
    layer = "model.layers.*"
    return [
        *renamed(
            {
                "model.tok_embeddings": "model.embed_tokens",
                "model.norm": "model.norm",
                "output": "lm_head",
                f"{layer}.attention_norm": f"{layer}.input_layernorm",
                f"{layer}.ffn_norm": f"{layer}.post_attention_layernorm",
                f"{layer}.attention.wo": f"{layer}.self_attn.o_proj",
                f"{layer}.feed_forward.w1": f"{layer}.mlp.gate_proj",
                f"{layer}.feed_forward.w3": f"{layer}.mlp.up_proj",
                f"{layer}.feed_forward.w2": f"{layer}.mlp.down_proj",
            }
        ),
        Part(f"{layer}.attention.wqkv", heads_of(layer), _cut, _join),
    ]


FAMILY = Family(
    title="InternLM2",
    is_one=lambda config: config.get("model_type") == "internlm2",
    configure=_configure,
    native="transformers.LlamaForCausalLM",
    parts=_parts,
    modules={
        "wqkv": ("q_proj", "k_proj", "v_proj"),
        "wo": ("o_proj",),
        "w1": ("gate_proj",),
        "w3": ("up_proj",),
        "w2": ("down_proj",),
    },
)
