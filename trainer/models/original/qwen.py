"""The first Qwen (Qwen-7B, Qwen-14B), as Transformers' Qwen2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.models.original.family import Family, Keys, Original, Part, heads_of, renamed, rows


def _configure(original: Original, folder: Path) -> Any:
    from transformers import Qwen2Config

    keys = Keys(original, folder, FAMILY.title)
    keys.require({"no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True})
    hidden, heads = keys.need("hidden_size"), keys.need("num_attention_heads")
    if keys.get("kv_channels", hidden // heads) * heads != hidden:
        raise keys.refusal("kv_channels", f"expected {hidden // heads}, the width of a head")
    return Qwen2Config(
        vocab_size=keys.need("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.need("intermediate_size") // 2,  # that of w1 and w2 together
        num_hidden_layers=keys.need("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        rms_norm_eps=keys.get("layer_norm_epsilon", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": float(keys.get("rotary_emb_base", 10000))},
        max_position_embeddings=keys.get("seq_length", keys.get("max_position_embeddings", 8192)),
        attention_dropout=keys.get("attn_dropout_prob", 0.0),
        tie_word_embeddings=keys.get("tie_word_embeddings", False),
        use_sliding_window=False,
        bos_token_id=keys.get("bos_token_id", None),
        eos_token_id=keys.get("eos_token_id", None),
        pad_token_id=keys.get("pad_token_id", None),
    )


def _parts(config: Any) -> Sequence[Part]:
    layer, native, width = "transformer.h.*", "model.layers.*", config.hidden_size
    return [
        *renamed(
            {
                "transformer.wte": "model.embed_tokens",
                "transformer.ln_f": "model.norm",
                "lm_head": "lm_head",
                f"{layer}.ln_1": f"{native}.input_layernorm",
                f"{layer}.ln_2": f"{native}.post_attention_layernorm",
                f"{layer}.attn.c_proj": f"{native}.self_attn.o_proj",
                f"{layer}.mlp.w1": f"{native}.mlp.up_proj",
                f"{layer}.mlp.w2": f"{native}.mlp.gate_proj",
                f"{layer}.mlp.c_proj": f"{native}.mlp.down_proj",
            }
        ),
        Part(f"{layer}.attn.c_attn", heads_of(native), *rows(width, width, width)),
    ]


FAMILY = Family(
    title="Qwen (the first)",
    is_one=lambda config: config.get("model_type") == "qwen",
    configure=_configure,
    native="transformers.Qwen2ForCausalLM",
    parts=_parts,
    ignored=("*.inv_freq", "*.attn.masked_bias", "*.attn.bias"),
    modules={
        "c_attn": ("q_proj", "k_proj", "v_proj"),
        "c_proj": ("o_proj", "down_proj"),
        "w1": ("up_proj",),
        "w2": ("gate_proj",),
    },
    remark="beyond the model's own length, the original scales its rotation and attention (dynamic NTK, logn); "
    "Qwen2 does not",
)
