"""Baichuan-7B and Baichuan2-7B, as Transformers' Llama. Those with 13B parameters have no rotation (ALiBi): refused.

Baichuan 2 divides each row of its head by its length. That is done once, while reading, which is exact while the head
is frozen; trained, it is an ordinary head from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.models.original.family import Family, Keys, Original, Part, renamed, rows

_SECOND_VOCABULARY = 125696
"""The vocabulary of Baichuan 2; the first has 64,000 tokens."""


def _configure(original: Original, folder: Path) -> Any:
    from transformers import LlamaConfig

    keys = Keys(original, folder, FAMILY.title)
    keys.require({"hidden_act": "silu"})
    if "max_position_embeddings" not in original:
        what = "expected a number, as models with 7B parameters have"
        raise keys.refusal("max_position_embeddings", what)
    heads = keys.need("num_attention_heads")
    config = LlamaConfig(
        vocab_size=keys.need("vocab_size"),
        hidden_size=keys.need("hidden_size"),
        intermediate_size=keys.need("intermediate_size"),
        num_hidden_layers=keys.need("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        rms_norm_eps=keys.get("rms_norm_eps", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        max_position_embeddings=keys.need("max_position_embeddings"),
        tie_word_embeddings=keys.get("tie_word_embeddings", False),
        bos_token_id=keys.get("bos_token_id", 1),
        eos_token_id=keys.get("eos_token_id", 2),
        pad_token_id=keys.get("pad_token_id", 0),
    )
    config.normalised_head = _is_second(original, folder)
    return config


def _is_second(original: Original, folder: Path) -> bool:
    """Whether it is Baichuan 2: by its code (read as text), or else by what only its configuration has."""
    code = folder / "modeling_baichuan.py"
    if code.is_file():
        return "NormHead" in code.read_text(encoding="utf-8", errors="replace")
    named = original.get("architectures") == ["BaichuanForCausalLM"]  # the first is BaiChuanForCausalLM
    return named or "z_loss_weight" in original or original.get("vocab_size") == _SECOND_VOCABULARY


def _head(config: Any, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    return [torch.nn.functional.normalize(tensor) if config.normalised_head else tensor]


def _parts(config: Any) -> Sequence[Part]:
    layer, width = "model.layers.*", config.hidden_size
    fused = tuple(f"{layer}.self_attn.{name}_proj" for name in "qkv")
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
        Part(f"{layer}.self_attn.W_pack", fused, *rows(width, width, width)),
    ]


def _native() -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM


FAMILY = Family(
    title="Baichuan 7B",
    is_one=lambda config: config.get("model_type") == "baichuan",
    configure=_configure,
    native_class=_native,
    parts=_parts,
    modules={"W_pack": ("q_proj", "k_proj", "v_proj")},
)
