"""ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B in its first layout, as Transformers' Glm.

What `rope_ratio` means, only the code of a model says (modeling_chatglm.py, read as text where the folder has it):
chatglm2-6b-32k divides positions by it, GLM-4 and chatglm3-6b-32k scale the base of the rotation, and chatglm2-6b and
chatglm3-6b know nothing of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.models.original.family import Family, Keys, Original, Part, code_of, heads_of, renamed, rows

_REQUIRED = {
    "add_bias_linear": False, "apply_residual_connection_post_layernorm": False, "fp32_residual_connection": False,
    "post_layer_norm": True, "rmsnorm": True, "hidden_dropout": 0.0, "pre_seq_len": None, "quantization_bit": 0,
    "multi_query_attention": True, "interleaved_qkv": False,
}  # fmt: skip
_WITHOUT_RATIO = ("THUDM/chatglm2-6b", "THUDM/chatglm3-6b")
"""Models whose code does not read `rope_ratio`."""


def settings_of(keys: Keys, folder: Path) -> dict[str, Any]:
    """The settings of GlmConfig. Where a key is missing, the original code's default holds, not Glm's."""
    keys.require(_REQUIRED)
    heads, width = keys.get("num_attention_heads", 32), keys.get("kv_channels", 128)
    return {
        "num_hidden_layers": keys.get("num_layers", 28),
        "vocab_size": keys.get("padded_vocab_size", 65024),
        "hidden_size": keys.get("hidden_size", 4096),
        "intermediate_size": keys.get("ffn_hidden_size", 13696),
        "num_attention_heads": heads,
        "head_dim": width,
        "num_key_value_heads": keys.get("multi_query_group_num", 1),
        "rms_norm_eps": keys.get("layernorm_epsilon", 1e-5),
        "attention_bias": keys.get("add_qkv_bias", False),
        "max_position_embeddings": keys.get("seq_length", 2048),
        "rope_parameters": {"partial_rotary_factor": 0.5, **_rotation(keys, folder)},
        "pad_token_id": keys.get("pad_token_id", None),
        "bos_token_id": keys.get("bos_token_id", None),
        "attention_dropout": keys.get("attention_dropout", 0.0),
        "tie_word_embeddings": keys.get("tie_word_embeddings", False),
    }


def _rotation(keys: Keys, folder: Path) -> dict[str, Any]:
    ratio, text = keys.get("rope_ratio", 1), code_of(folder, "modeling_chatglm.py")
    ignored = "rope_ratio" not in text if text else keys.get("_name_or_path", "") in _WITHOUT_RATIO
    if ratio == 1 or ignored:
        return {"rope_type": "default", "rope_theta": 10000.0}
    if "/ self.rope_ratio" in text:
        return {"rope_type": "linear", "rope_theta": 10000.0, "factor": float(ratio)}
    return {"rope_type": "default", "rope_theta": 10000.0 * ratio}


def _configure(original: Original, folder: Path) -> Any:
    from transformers import GlmConfig

    keys = Keys(original, folder, FAMILY.title)
    config = GlmConfig(**settings_of(keys, folder))
    config.eos_token_id = keys.get("eos_token_id", None)  # Glm puts GLM-4's own in place of none
    return config


def language_parts(config: Any) -> list[Part]:
    """The parts of the language model."""
    layer, native = "transformer.encoder.layers.*", "model.layers.*"
    queries, groups = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    return [
        *renamed(
            {
                "transformer.embedding.word_embeddings": "model.embed_tokens",
                "transformer.encoder.final_layernorm": "model.norm",
                "transformer.output_layer": "lm_head",
                f"{layer}.input_layernorm": f"{native}.input_layernorm",
                f"{layer}.post_attention_layernorm": f"{native}.post_attention_layernorm",
                f"{layer}.self_attention.dense": f"{native}.self_attn.o_proj",
                f"{layer}.mlp.dense_h_to_4h": f"{native}.mlp.gate_up_proj",  # the first half is the gate in both
                f"{layer}.mlp.dense_4h_to_h": f"{native}.mlp.down_proj",
            }
        ),
        Part(f"{layer}.self_attention.query_key_value", heads_of(native), *rows(queries, groups, groups)),
    ]


def settle(model: Any) -> None:
    """Let the embedding of the pad token learn, and padding before a row attend to all tokens, as in the original.

    Glm gives the pad token no gradient. What padding attends to changes nothing but the loss of a first token that
    follows it.
    """
    model.get_input_embeddings().padding_idx = None
    model.model.register_forward_pre_hook(_let_padding_attend, with_kwargs=True)


def _let_padding_attend(model: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    mask = given.get("attention_mask")
    cached = given.get("cache") is not None or given.get("use_cache")
    if mask is None or cached or mask.dim() != 2 or "flash" in model.config._attn_implementation:
        return args, given
    real = mask.bool()
    if bool(real[:, 0].all()):  # no padding before a row
        return args, given
    before = torch.ones(2 * [real.shape[1]], dtype=torch.bool, device=real.device).tril()
    allowed = (before & real[:, None]) | ~real[..., None]
    least = torch.finfo(model.dtype).min
    added = torch.zeros_like(allowed, dtype=model.dtype).masked_fill(~allowed, least)
    return args, given | {"attention_mask": added[:, None]}


MODULES = {
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "dense": ("o_proj",),
    "dense_h_to_4h": ("gate_up_proj",),
    "dense_4h_to_h": ("down_proj",),
}

FAMILY = Family(
    title="ChatGLM and GLM-4",
    is_one=lambda config: config.get("model_type") == "chatglm" and "vision_config" not in config,
    configure=_configure,
    native="transformers.GlmForCausalLM",
    parts=language_parts,
    modules=MODULES,
    settle=settle,
)
