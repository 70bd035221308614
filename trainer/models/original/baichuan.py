"""Baichuan-7B and Baichuan2-7B, as Transformers' Llama. Those with 13B parameters have no rotation (ALiBi): refused.

Baichuan 2 divides each row of its head by its length. That is done once, while reading, which is exact while the head
is frozen; trained, it is an ordinary head from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.models.original.family import Family, Keys, Original, Part, code_of, heads_of, llama_config, renamed, rows

_SECOND_VOCABULARY = 125696
"""The vocabulary of Baichuan 2; the first has 64,000 tokens."""


def _configure(original: Original, folder: Path) -> Any:
    keys = Keys(original, folder, FAMILY.title)
    keys.require({"hidden_act": "silu"})
    if "max_position_embeddings" not in original:
        what = "expected a number, as models with 7B parameters have"
        raise keys.refusal("max_position_embeddings", what)
    config = llama_config(
        keys,
        num_key_value_heads=keys.need("num_attention_heads"),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        max_position_embeddings=keys.need("max_position_embeddings"),
    )
    config.normalised_head = _is_second(original, folder)
    return config


def _is_second(original: Original, folder: Path) -> bool:
    """Whether it is Baichuan 2: by its code (read as text), or else by what only its configuration has."""
    if code := code_of(folder, "modeling_baichuan.py"):
        return "NormHead" in code
    named = original.get("architectures") == ["BaichuanForCausalLM"]  # the first is BaiChuanForCausalLM
    return named or "z_loss_weight" in original or original.get("vocab_size") == _SECOND_VOCABULARY


def _head(config: Any, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    return [torch.nn.functional.normalize(tensor) if config.normalised_head else tensor]


def _parts(config: Any) -> Sequence[Part]:
    layer, width = "model.layers.*", config.hidden_size
    kept = (
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    return [
        *renamed({name: name for name in ("model.embed_tokens", "model.norm", *(f"{layer}.{part}" for part in kept))}),
        Part("lm_head", ("lm_head",), _head),
        Part(f"{layer}.self_attn.W_pack", heads_of(layer), *rows(width, width, width)),
    ]


FAMILY = Family(
    title="Baichuan 7B",
    is_one=lambda config: config.get("model_type") == "baichuan",
    configure=_configure,
    native="transformers.LlamaForCausalLM",
    parts=_parts,
    modules={"W_pack": ("q_proj", "k_proj", "v_proj")},
)
