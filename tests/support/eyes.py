"""Tiny vision models, one of each family: folders with random weights over the demo tokenizer, and their Processors.

The Processors are transformers' own, put together from the same folder: what they make of a conversation is what a set
and its training are compared with. Their image processors are those that need no torchvision.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import registry
from tests.support.families import family_folder, official_source
from tests.support.trained import save_model
from tests.support.vision import TEMPLATE

_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": 0, "head_dim": 8,
}  # fmt: skip
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
_QWEN = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>"
_QWEN_PICTURES = {
    "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
    "min_pixels": 3136, "max_pixels": 12845056,
}  # fmt: skip
_GLM = {
    "<|vision_start|>": "<|begin_of_image|>", "<|vision_end|>": "<|end_of_image|>", "<|image_pad|>": "<|image|>",
    "<|video_pad|>": "<|video|>",
}  # fmt: skip
_IMAGENET = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def _as_glm(text: str) -> str:
    for qwen, glm in _GLM.items():
        text = text.replace(qwen, glm)
    return text


@dataclass(frozen=True)
class EyesFamily:
    """A family by what its published folders say, made small."""

    processor: str
    """The class of the Processor."""
    pictures: dict[str, Any]
    """preprocessor_config.json."""
    tokens: str
    eos: str
    bos: str | None
    ids: dict[str, str]
    """Keys of config.json with the token that they number."""
    vision: dict[str, Any]
    text: dict[str, Any] = field(default_factory=dict)
    template: str | None = TEMPLATE
    """The chat template; None = trl's copy."""
    card: str = "auto"
    whole: dict[str, Any] = field(default_factory=dict)
    """processor_config.json."""
    named: dict[str, str] = field(default_factory=dict)
    """Names that the tokenizer has for tokens, as the Processor asks for them."""
    more: dict[str, Any] = field(default_factory=dict)
    """More of config.json."""


_TOWER = {"depth": 1, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 32}
_QWEN_IDS = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}  # fmt: skip
EYES = {
    "qwen2_vl": EyesFamily(
        "Qwen2VLProcessor", _QWEN_PICTURES, _QWEN, "<|im_end|>", None, _QWEN_IDS,
        {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}, _MROPE,
    ),
    "qwen2_5_vl": EyesFamily(
        "Qwen2_5_VLProcessor", _QWEN_PICTURES, _QWEN, "<|im_end|>", None, _QWEN_IDS,
        _TOWER | {"fullatt_block_indexes": [0], "window_size": 56, "tokens_per_second": 2}, _MROPE,
    ),
    "qwen3_vl": EyesFamily(
        "Qwen3VLProcessor", _QWEN_PICTURES, _QWEN, "<|im_end|>", None, _QWEN_IDS,
        _TOWER | {"patch_size": 14, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        {"rope_parameters": _MROPE["rope_parameters"] | {"mrope_interleaved": True}},
    ),
    "glm4v": EyesFamily(
        "Glm4vProcessor",
        {
            "image_processor_type": "Glm4vImageProcessor", "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
            "size": {"shortest_edge": 6272, "longest_edge": 12845056},
        },
        _as_glm(_QWEN), "<|im_end|>", None,
        {"image_token_id": "<|image|>", "video_token_id": "<|video|>", "image_start_token_id": "<|begin_of_image|>",
         "image_end_token_id": "<|end_of_image|>"},
        _TOWER, _MROPE, _as_glm(TEMPLATE),
    ),
    "llava": EyesFamily(
        "LlavaProcessor",
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56}, "do_center_crop": True,
         "crop_size": {"height": 56, "width": 56}},
        "<unk> <s> </s> <image>", "</s>", "<s>", {"image_token_id": "<image>"},
        {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "image_size": 56, "patch_size": 14},
        {"model_type": "llama"}, "{{ raise_exception('none') }}", "llava",
        {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
         "image_token": "<image>"},
        more={"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_seq_length": 16},
    ),
    "gemma3": EyesFamily(
        "Gemma3Processor",
        {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56},
         "do_pan_and_scan": None} | _IMAGENET,
        "<pad> <eos> <bos> <start_of_turn> <end_of_turn> <start_of_image> <image_soft_token> <end_of_image>",
        "<end_of_turn>", "<bos>",
        {"image_token_id": "<image_soft_token>", "boi_token_id": "<start_of_image>", "eoi_token_id": "<end_of_image>"},
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 56, "patch_size": 14},
        {"sliding_window": 512, "query_pre_attn_scalar": 8}, None, "auto", {"image_seq_length": 4},
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        more={"mm_tokens_per_image": 4},
    ),
}  # fmt: skip


def eyes_model(folder: Path, name: str) -> Path:
    """Save a tiny model of a family with its tokenizer and the processor's files. Returns the folder."""
    family = EYES[name]
    template = official_source(name) if family.template is None else family.template
    made = family_folder(
        folder / "tokenizer", template, family.tokens.split(), family.eos, family.bos, registry.DEMO_TOKENIZER
    )
    config = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    (made / "tokenizer_config.json").write_text(json.dumps(config | {"extra_special_tokens": family.named}))
    pictures = family.pictures | {"processor_class": family.processor}
    (made / "preprocessor_config.json").write_text(json.dumps(pictures), encoding="utf-8")
    if family.whole:
        whole = family.whole | {"processor_class": family.processor}
        (made / "processor_config.json").write_text(json.dumps(whole), encoding="utf-8")
    spec = json.loads((made / "tokenizer.json").read_text(encoding="utf-8"))
    numbers = {token["content"]: token["id"] for token in spec["added_tokens"]}
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": numbers[family.eos]}), encoding="utf-8")
    text = _TEXT | family.text | {"vocab_size": max(numbers.values()) + 1}
    return save_model(
        folder / "model", name, made, vision_config=family.vision, text_config=text, **family.more,
        **{key: numbers[token] for key, token in family.ids.items()},
    )  # fmt: skip


def processor_of(folder: Path, name: str) -> Any:
    """Transformers' Processor of the folder of a family."""
    family = EYES[name]
    kind = f"{family.pictures['image_processor_type']}Pil"
    parts: dict[str, Any] = {
        "image_processor": getattr(transformers, kind).from_pretrained(folder),
        "tokenizer": transformers.AutoTokenizer.from_pretrained(folder),
    }
    kind = getattr(transformers, family.processor)
    if "video_processor" in inspect.signature(kind).parameters:  # that of videos needs torchvision
        kind = type(family.processor, (kind,), {"check_argument_for_proper_class": lambda *_: None})
        parts["video_processor"] = None
    return kind(**parts, **family.whole)


class Asked:
    """Stands for a model, and keeps what it is asked; its replies are a stop."""

    def __init__(self, model: Any, stop: int) -> None:
        self.config, self.device, self.stop = model.config, model.device, stop
        self.given: dict[str, torch.Tensor] = {}

    def generate(self, streamer: Any, **given: Any) -> torch.Tensor:
        self.given = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        streamer.put(given["input_ids"])
        return torch.cat([given["input_ids"], torch.tensor([[self.stop]])], dim=1)
