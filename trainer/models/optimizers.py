"""AdamW over what is trained: torch's, or that of bitsandbytes with states of 8 bits or in paged memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from schemas.errors import UsageError
from trainer.config.config import TrainConfig
from trainer.device import Device

AUTO = "auto"
_OF_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
}
"""By the names of TrainingArguments."""


def check(config: TrainConfig, device: Device, stage: int, where: str) -> str:
    """The name of the optimizer; UsageError for one that this machine cannot have, or not with this ZeRO stage."""
    name = config.optim
    if name == AUTO:  # fused: one kernel for all weights
        return "adamw_torch_fused" if device.kind == "cuda" else "adamw_torch"
    if name not in _OF_BITSANDBYTES:
        return name
    pointer, instead = f"{where}#/optim", "Use optim: auto."
    try:
        import bitsandbytes
    except ImportError:
        raise UsageError(pointer, "bitsandbytes is not installed", f"pip install bitsandbytes. {instead}") from None
    if not hasattr(bitsandbytes.optim, _OF_BITSANDBYTES[name]):
        raise UsageError(pointer, f"bitsandbytes {bitsandbytes.__version__} has no {name}", instead)
    if device.kind != "cuda" and (name.startswith("paged") or device.kind != "cpu"):
        what = f"bitsandbytes has pages of memory for CUDA devices only, and this is {device.kind}"
        raise UsageError(pointer, what, f"Use adamw_8bit. {instead}" if device.kind == "cpu" else instead)
    if stage == 3:
        what = "ZeRO-3 keeps the optimizer's states in pieces of its own, which were never tried with bitsandbytes"
        raise UsageError(pointer, what, f"Use zero_stage: 2. {instead}")
    return name


def states(name: str) -> str:
    """The name of the optimizer whose states these are: torch's has the same in one kernel and in several."""
    return "adamw_torch" if name == "adamw_torch_fused" else name


def check_moved(name: str, before: int, now: int, where: str) -> None:
    """Raise a UsageError if states cannot be moved to another number of processes."""
    if before != now and name in _OF_BITSANDBYTES:
        what = f"the states of {name} are of {before} processes, and cannot be cut anew for {now}"
        raise UsageError(f"{where}#/optim", what, f"Resume with {before} processes.")


def make(model: torch.nn.Module, config: TrainConfig, name: str) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; biases and norms get no weight decay, as in Transformers."""
    kind = _kind(name)
    if config.lora.loraplus_lr_ratio is not None and config.tuning == "lora":
        from trainer.models import loraplus

        groups: Sequence[dict[str, Any]] = loraplus.groups(model, config)
    else:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        flat = {name for name, p in trained if len(getattr(p, "ds_shape", p.shape)) < 2}
        groups = [
            {"params": [p for name, p in trained if name not in flat], "weight_decay": config.weight_decay},
            {"params": [p for name, p in trained if name in flat], "weight_decay": 0.0},
        ]
    betas = (config.adam_beta1, config.adam_beta2)
    made: torch.optim.Optimizer = kind(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=betas, eps=config.adam_epsilon
    )
    return made


def _kind(name: str) -> Any:
    if name in _OF_BITSANDBYTES:
        import bitsandbytes

        return getattr(bitsandbytes.optim, _OF_BITSANDBYTES[name])
    return partial(torch.optim.AdamW, fused=True) if name == "adamw_torch_fused" else torch.optim.AdamW
