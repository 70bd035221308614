"""The learning rate of every step, as in Transformers: a function of the step alone, so resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from schemas.errors import UsageError
from trainer.config.config import TrainConfig


def warmup(config: TrainConfig, steps: int) -> int:
    """The number of warm-up steps."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * steps)


def in_steps(config: TrainConfig, steps: int) -> TrainConfig:
    """The configuration with numbers of steps where it has parts of all `steps`, rounded up as in Transformers."""
    keys = ("logging_steps", "save_steps", "eval_steps")
    parts: dict[str, Any] = {key: value for key in keys if 0 < (value := getattr(config, key) or 0) < 1}
    return replace(config, **{key: math.ceil(value * steps) for key, value in parts.items()})


def learning_rate(config: TrainConfig, steps: int) -> Callable[[int], float]:
    """The function from step (0-based) to learning rate, for a run of `steps` steps."""
    import transformers

    unused = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    try:
        scheduler = transformers.get_scheduler(
            config.lr_scheduler_type, unused, num_warmup_steps=warmup(config, steps), num_training_steps=steps,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs or None,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UsageError("lr_scheduler_kwargs", f"{config.lr_scheduler_type}: {error}", "See transformers.") from error
    factor = scheduler.lr_lambdas[0]
    return lambda step: config.learning_rate * factor(step)
