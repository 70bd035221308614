"""GLM-4V-9B and CogAgent-9B-20241220: the language model of GLM-4 with eyes.

CogAgent's rotation (`original_rope: false`) turns the two halves of a head's first half; Glm turns neighbours. So the
rows of queries and keys change their places while they are read: the angles are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.models.original.chatglm import MODULES, language_parts, settings_of, settle
from trainer.models.original.family import Cut, Family, Join, Keys, Original, Part, renamed, rows

_EYES = {
    "hidden_size": 1792, "intermediate_size": 15360, "num_heads": 16, "num_hidden_layers": 63, "num_positions": 6401,
    "patch_size": 14, "image_size": 1120, "in_channels": 3, "scaling_factor": 8, "layer_norm_eps": 1e-6,
    "hidden_act": "gelu", "dropout_prob": 0.0,
}  # fmt: skip
"""The eyes of both models, which a `vision_config` may change."""


def _configure(original: Original, folder: Path) -> Any:
    from trainer.models.original.eyes import GlmEyesConfig

    keys = Keys(original, folder, FAMILY.title)
    eyes = _EYES | dict(original["vision_config"])
    if eyes["dropout_prob"] != 0:
        raise keys.refusal("vision_config", "expected 'dropout_prob' 0.0")
    side = eyes["image_size"] // eyes["patch_size"]
    if eyes["num_positions"] != side * side + 1 or side % 2:
        raise keys.refusal("vision_config", f"expected 'num_positions' {side * side + 1} and an even number of patches")
    made: Any = GlmEyesConfig  # it takes any setting, as configurations of Transformers do
    config = made(
        **settings_of(keys, folder), vision_config=eyes, boi_token_id=keys.need("boi_token_id"),
        eoi_token_id=keys.need("eoi_token_id"), halves=not keys.get("original_rope", True),
    )  # fmt: skip
    config.eos_token_id = keys.get("eos_token_id", None)
    return config


def _turned(tensor: torch.Tensor, width: int, *, back: bool) -> torch.Tensor:
    """Rows of heads with the rotated half laid out for Glm (dimension i and i + n/2 become 2i and 2i + 1), or back."""
    heads = tensor.view(-1, width, *tensor.shape[1:])
    turned, rest = heads[:, : width // 2], heads[:, width // 2 :]
    pairs = (width // 4, 2) if back else (2, width // 4)
    turned = turned.reshape(len(heads), *pairs, *tensor.shape[1:]).transpose(1, 2).reshape(turned.shape)
    return torch.cat((turned, rest), dim=1).reshape(tensor.shape)


def _turning(width: int, cut: Cut, join: Join) -> tuple[Cut, Join]:
    def cut_and_turn(config: Any, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        q, k, v = cut(config, tensor)
        return _turned(q, width, back=False), _turned(k, width, back=False), v

    def turn_and_join(config: Any, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        q, k, v = tensors
        return join(config, [_turned(q, width, back=True), _turned(k, width, back=True), v])

    return cut_and_turn, turn_and_join


def _parts(config: Any) -> Sequence[Part]:
    parts = language_parts(config)
    if config.halves:
        fused = parts.pop()
        queries, groups = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        cut, join = _turning(config.head_dim, *rows(queries, groups, groups))
        parts.append(Part(fused.original, fused.native, cut, join))
    return [*parts, *renamed({f"transformer.vision.{name}": f"vision.{name}" for name in _TOWER})]


_TOWER = (
    "patch_embedding.proj", "patch_embedding.cls_embedding", "patch_embedding.position_embedding", "conv", "boi", "eoi",
    *(f"linear_proj.{name}" for name in ("linear_proj", "norm1", "gate_proj", "dense_h_to_4h", "dense_4h_to_h")),
    *(
        f"transformer.layers.*.{name}"
        for name in ("input_layernorm", "attention.query_key_value", "attention.dense", "mlp.fc1", "mlp.fc2",
                     "post_attention_layernorm")
    ),
)  # fmt: skip


FAMILY = Family(
    title="GLM-4V and CogAgent",
    is_one=lambda config: config.get("model_type") == "chatglm" and "vision_config" in config,
    configure=_configure,
    native="trainer.models.original.eyes.GlmEyesForConditionalGeneration",
    parts=_parts,
    modules=MODULES,
    settle=settle,
    keeps_layout=True,
)
