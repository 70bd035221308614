"""Adapters that begin with a part of the weights (PiSSA, OLoRA): PEFT takes that part out of the base model.

A checkpoint must fit the unchanged base model. With A0 and B0 at the start, W - s B0 A0 + s B A is
W + s [B, -B0] [A; A0]: an ordinary LoRA of twice the rank, which is what checkpoints hold.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from schemas.errors import IntegrityError, UsageError
from trainer.config.config import TrainConfig

_KEPT = "_initial_adapter"
_TOLERANCE = 1e-4
"""The largest difference of adapters that were made of the same weights twice."""


def changes_base(config: TrainConfig) -> bool:
    """Whether the adapters of a configuration begin with a part of the weights."""
    begin = config.lora.init_lora_weights
    return config.tuning == "lora" and isinstance(begin, str) and begin.startswith(("pissa", "olora"))


def check(config: TrainConfig, stage: int, needs_reference: bool, where: str) -> None:
    """Raise for what such adapters cannot be combined with."""
    if not changes_base(config):
        return
    name = config.lora.init_lora_weights
    wrong = {
        f"{name} takes a part out of the weights, and those of {config.quantization_bit} bits cannot be changed so":
            config.quantization_bit is not None,
        f"{name} reads whole weights, and ZeRO-3 splits them between processes": stage == 3,
        f"{name} takes a part out of the base model, which is the reference of the objective": needs_reference,
        f"{name} changes the weights of which use_dora keeps the lengths": config.lora.use_dora,
    }  # fmt: skip
    for what in (what for what, found in wrong.items() if found):
        raise UsageError(f"{where}#/lora/init_lora_weights", what, "Use true or gaussian.")


def remember(model: Any) -> None:
    """Keep the adapters of a PEFT model as they begin."""
    if any(type(module).__name__ == "ParamWrapper" for module in model.modules()):
        what = "fused experts cannot begin with a part of their weights"
        raise UsageError("lora/init_lora_weights", what, "Use true or gaussian, or name other modules.")
    import peft

    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    kept = {name: value.detach().cpu().clone() for name, value in state.items() if _side(name) is not None}
    setattr(model, _KEPT, kept)


def fit_base(model: Any, folder: Path) -> None:
    """Rewrite the adapter that PEFT has saved in a folder, so that it fits the unchanged base model."""
    first = getattr(model, _KEPT, None)
    if first is None:
        return
    weights, config_path = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    saved = load_file(weights)
    for name, value in first.items():
        sign, side = _SIDES[str(_side(name))]
        saved[name] = torch.cat([saved[name], sign * value.to(saved[name].dtype)], dim=side).contiguous()
    save_file(saved, weights, metadata={"format": "pt"})
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["lora_alpha"] *= math.sqrt(2) if config["use_rslora"] else 2
    config |= {"init_lora_weights": True, "r": 2 * config["r"]}
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_again(model: Any, folder: Path) -> None:
    """Raise if the adapters do not begin as those of the checkpoint in a folder did: the base model differs then."""
    first = getattr(model, _KEPT, None)
    if first is None:
        return
    saved = load_file(folder / "adapter_model.safetensors")
    for name, value in first.items():
        sign, side = _SIDES[str(_side(name))]
        then = sign * saved[name].chunk(2, dim=side)[1].float()
        if then.shape != value.shape or not torch.allclose(then, value.float(), rtol=1e-2, atol=_TOLERANCE):
            what = f"{name} began otherwise: this device or library takes another part out of the weights"
            raise IntegrityError(str(folder), what, "Resume where the run was, or start a new run.")


_SIDES = {"A": (1, 0), "B": (-1, 1)}
"""By side: (the sign of what is added, the dimension of the rank)."""


def _side(name: str) -> str | None:
    """A or B, for the two matrices of an adapter."""
    return next((side for side in "AB" if f"lora_{side}" in name or f"lora_embedding_{side}" in name), None)
