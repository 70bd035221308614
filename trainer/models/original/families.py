"""All families of models with code of their own, and a folder's own one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from schemas.errors import InputError
from trainer.models import reading
from trainer.models.original import baichuan, chatglm, cogagent, internlm2, qwen
from trainer.models.original.family import Family
from trainer.models.original.weights import ignored, original_names, read

FAMILIES = (chatglm.FAMILY, cogagent.FAMILY, qwen.FAMILY, internlm2.FAMILY, baichuan.FAMILY)


def config_of(folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(path), f"cannot be read: {error}", "Give the folder of a model.") from error
    if not isinstance(found, dict):
        raise InputError(str(path), "is not a JSON object", "Give the folder of a model.")
    return found


def family_of(folder: Path) -> Family | None:
    """The family of a folder in an original layout; None for any other model."""
    config = config_of(folder)
    return next((family for family in FAMILIES if family.is_one(config)), None)


def configuration(folder: Path, family: Family) -> Any:
    """The native configuration of a folder."""
    return family.configure(config_of(folder), folder)


def save_original(model: Any, base: Path, folder: Path) -> None:
    """Save a model in the layout of its base: names and joined tensors, config.json, code and sentencepiece model."""
    from huggingface_hub import save_torch_state_dict

    family = family_of(base)
    assert family is not None
    tensors = original_names(family, model.config, model.state_dict())
    save_torch_state_dict(tensors | ignored(base, family), folder)
    for path in (base / "config.json", base / "tokenizer.model", *sorted(base.glob("*.py"))):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    config, dtype = config_of(base), str(model.dtype).removeprefix("torch.")
    if config.get("torch_dtype", dtype) != dtype:
        text = json.dumps(config | {"torch_dtype": dtype}, ensure_ascii=False, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def load(folder: Path, family: Family, **settings: Any) -> Any:
    """The native model of a folder, with settings of Transformers' `from_pretrained`; nothing in the folder is run."""
    config = configuration(folder, family)
    tensors = read(folder, family, config, shapes_alone=reading.in_parts() and torch.distributed.get_rank() > 0)
    model, found = family.native_class().from_pretrained(
        None, config=config, state_dict=tensors, output_loading_info=True, **settings
    )
    wrong = sorted(found["missing_keys"]) or sorted(map(str, found["mismatched_keys"]))
    if wrong:
        what = f"the tensors of {wrong[0]!r} are missing, or have another shape than config.json says"
        raise InputError(str(folder), what, "Download it again.")
    model.config.name_or_path = str(folder)
    family.settle(model)
    return model
