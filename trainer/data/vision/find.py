"""The eyes of a model, by its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import registry
from schemas.errors import InputError, UsageError
from trainer.data.vision.clips import Films
from trainer.data.vision.eyes import Eyes
from trainer.data.vision.grid import GridEyes
from trainer.data.vision.one_size import GemmaEyes, GlmEyesInputs, OneSizeEyes

CARDS = {
    "qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl", "qwen3_vl_moe": "qwen3_vl",
    "qwen3_5": "qwen3_vl", "qwen3_5_moe": "qwen3_vl", "glm4v": "glm4v", "glm4v_moe": "glm4v", "glm46v": "glm4v",
    "llava": "llava", "gemma3": "gemma3", "chatglm_eyes": "cogagent",
}  # fmt: skip
"""The kinds of models (model_type) that see -> the vision card by which sets are compiled for them."""


def card_of(config: Any) -> str:
    """The vision card of a model; UsageError where its family is not among those that are trained with pictures."""
    kind = config.model_type
    if kind not in CARDS:
        sees = "takes pictures in a way that is not known here" if hasattr(config, "vision_config") else "has no eyes"
        what = f"a {kind} model {sees}; those of {', '.join(sorted(CARDS))} are trained with pictures"
        raise UsageError("model_type", what, "Use a model of one of these, or leave rows with pictures out.")
    return CARDS[kind]


def eyes_of(config: Any, folder: Path) -> Eyes:
    """The eyes of the model in a folder with this configuration; UsageError where it has none."""
    card = card_of(config)
    if card == "cogagent":
        return _glm_eyes(config)
    processor, token = _processor(folder), int(config.image_token_id)
    if card == "gemma3":
        return GemmaEyes(card, processor, token, int(config.mm_tokens_per_image))
    if card == "llava":
        return OneSizeEyes(card, processor, token, _llava_tokens(config))
    if card == "qwen2_vl":
        films = Films.of(folder, processor, timed=config.model_type == "qwen2_5_vl")
        return GridEyes(card, processor, token, films, int(config.video_token_id))
    return GridEyes(card, processor, token)


def _glm_eyes(config: Any) -> Eyes:
    """Pixels are made as CogAgent makes them."""
    import transformers

    eyes = config.vision_config
    side = eyes["image_size"]
    made = transformers.CLIPImageProcessorPil
    processor = made(size={"height": side, "width": side}, do_center_crop=False)
    tokens = int(side // eyes["patch_size"] // 2) ** 2
    return GlmEyesInputs("cogagent", processor, int(config.pad_token_id), tokens, int(config.boi_token_id), side)


def _llava_tokens(config: Any) -> int:
    """The patches of a picture, and the token of the whole where the model takes it."""
    eyes = config.vision_config
    whole = int(config.vision_feature_select_strategy == "full" and eyes.model_type == "clip_vision_model")
    return int(eyes.image_size // eyes.patch_size) ** 2 + whole


def _processor(folder: Path) -> Any:
    """A model's image processor, in the form that needs no torchvision."""
    import transformers

    whole_file, file, _ = (folder / name for name in registry.PROCESSOR_FILES)
    said: dict[str, Any] = {}
    try:
        if file.is_file():
            said = json.loads(file.read_text(encoding="utf-8"))
        elif whole_file.is_file():
            said = json.loads(whole_file.read_text(encoding="utf-8"))["image_processor"]
            file = whole_file
        name = said["image_processor_type"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(str(file), f"has no image_processor_type: {error}", "Use the model's own folder.") from error
    kind = getattr(transformers, name.removesuffix("Fast").removesuffix("Pil") + "Pil", None)
    if kind is None:
        raise UsageError(f"{file}#/image_processor_type", f"{name} has no processor that works without torchvision", "")
    return kind.from_pretrained(folder)
