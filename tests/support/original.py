"""Tiny models in their original layout, with the demo tokenizer's vocabulary and random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import registry
from tests.support.families import FAMILIES, family_folder
from tests.support.trained import VOCABULARY
from trainer.models.original import families
from trainer.models.original.weights import original_names

CONFIGS: dict[str, dict[str, Any]] = {
    "chatglm3": {
        "model_type": "chatglm", "num_layers": 2, "padded_vocab_size": VOCABULARY, "hidden_size": 32,
        "ffn_hidden_size": 64, "kv_channels": 8, "num_attention_heads": 4, "multi_query_attention": True,
        "multi_query_group_num": 2,
        "seq_length": 512, "add_qkv_bias": True, "rmsnorm": True, "post_layer_norm": True, "pad_token_id": 0,
        "eos_token_id": 2,
    },
    "cogagent": {
        "model_type": "chatglm", "num_layers": 2, "padded_vocab_size": VOCABULARY, "hidden_size": 32,
        "ffn_hidden_size": 64, "kv_channels": 8, "num_attention_heads": 4, "multi_query_group_num": 2,
        "seq_length": 512,
        "add_qkv_bias": True, "original_rope": False, "pad_token_id": 0, "eos_token_id": [0, 2], "boi_token_id": 3,
        "eoi_token_id": 4,
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "num_hidden_layers": 1, "num_positions": 17,
            "patch_size": 14, "image_size": 56,
        },
    },
    "qwen": {
        "model_type": "qwen", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "kv_channels": 8, "no_bias": True, "seq_length": 512,
    },
    "internlm2": {
        "model_type": "internlm2", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "bias": False,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    },
    "baichuan": {
        "model_type": "baichuan", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512,
    },
}  # fmt: skip


EYES = {
    "hidden_size": 8, "intermediate_size": 16, "num_heads": 1, "num_hidden_layers": 1, "num_positions": 6401,
    "patch_size": 2, "image_size": 160,
}  # fmt: skip
"""80 x 80 patches as in the real model, which are smaller here."""


def save_cogagent(folder: Path) -> tuple[Path, dict[str, int]]:
    """Save a CogAgent in its original layout; return its folder, and its control tokens by their texts."""
    tokens = [*FAMILIES["glm4"].tokens.split(), "<|begin_of_image|>", "<|end_of_image|>"]
    tokenizer = family_folder(folder / "tokenizer", "", tokens, "<|endoftext|>", None, registry.DEMO_TOKENIZER)
    added = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    control = {token["content"]: token["id"] for token in added}
    model = save_original(
        folder / "model", "cogagent", tokenizer, padded_vocab_size=max(control.values()) + 1, vision_config=EYES,
        pad_token_id=control["<|endoftext|>"], boi_token_id=control["<|begin_of_image|>"], seq_length=8192,
        eoi_token_id=control["<|end_of_image|>"], eos_token_id=[control["<|endoftext|>"], control["<|user|>"]],
    )  # fmt: skip
    return model, control


def save_original(folder: Path, name: str, tokenizer: Path = registry.DEMO_TOKENIZER, **settings: Any) -> Path:
    """Save a model in its original layout, with the tokenizer's files. Returns the folder."""
    folder.mkdir(parents=True)
    original = CONFIGS[name] | settings
    (folder / "config.json").write_text(json.dumps(original), encoding="utf-8")
    family = families.family_of(folder)
    assert family is not None
    torch.manual_seed(0)
    config = family.configure(original, folder)
    tensors = original_names(family, config, family.native_class()(config).state_dict())
    save_file(tensors, folder / "model.safetensors")
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    return folder
