"""LoRA+: B learns faster than A (Hayou et al. 2024, arXiv 2402.12354), in the groups that PEFT makes."""

from __future__ import annotations

from typing import Any

import torch

from schemas.errors import UsageError
from trainer.config.config import TrainConfig


def groups(model: Any, config: TrainConfig) -> list[dict[str, Any]]:
    """The groups of an optimizer; they say under `rate` how many times the learning rate of the step is theirs."""
    from peft.optimizers import create_loraplus_optimizer

    if any(hasattr(parameter, "ds_id") for parameter in model.parameters() if parameter.requires_grad):
        what = "ZeRO-3 splits trained weights, whose shapes decide their learning rate"
        raise UsageError("lora/loraplus_lr_ratio", what, "Use zero_stage: 2, or leave lora.modules_to_save out.")
    lr, ratio = config.learning_rate, config.lora.loraplus_lr_ratio or 1.0
    made: Any = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=ratio, loraplus_weight_decay=config.weight_decay,
        loraplus_lr_embedding=config.lora.loraplus_lr_embedding,
    )  # fmt: skip
    return [group | {"rate": group["lr"] / lr, "lr": lr} for group in made.param_groups if group["params"]]
