"""DeepSpeed's configuration: the user's JSON or a stage number, with every `auto` filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import InputError, UsageError, nearest
from schemas.yaml import text_of
from trainer.config.config import TrainConfig

AUTO = "auto"
PASSED_ON = (
    "zero_optimization", "fp16", "bf16", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler", "comms_logger",
    "communication_data_type", "prescale_gradients", "gradient_predivide_factor", "data_types", "aio",
    "timers", "disable_python_gc",
)  # fmt: skip
"""Top-level keys that DeepSpeed reads and this trainer leaves alone (DeepSpeed 0.19.8, runtime/constants.py)."""
OURS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler",
)  # fmt: skip
"""Keys that the trainer's own configuration decides: they must be auto or agree with it."""


@dataclass(frozen=True)
class Sizes:
    """What `auto` depends on."""

    world: int
    micro: int
    accumulation: int
    hidden: int | None
    """The model's hidden size; None if its configuration has none."""
    bf16: bool
    fp16: bool


def read(config: TrainConfig, where: str) -> dict[str, Any]:
    """Read the given DeepSpeed configuration, or make one with only the stage; UsageError for keys without effect."""
    given = config.deepspeed
    if given is None:
        return {"zero_optimization": {"stage": config.zero_stage}}
    if isinstance(given, str):
        beside = Path(where).resolve().parent
        # The files of CogAgent and ChatGLM3 lie in configs/ or scripts/ and name others from the folder above.
        path = next((p for p in (Path(given), beside / given, beside.parent / given) if p.is_file()), None)
        if path is None:
            what = f"no such file, neither here nor beside or above {where}"
            raise UsageError(f"deepspeed: {given}", what, "Give its path, or use zero_stage.")
        where = str(path)
        try:
            given = json.loads(text_of(path))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(where, f"not a JSON file: {error}") from error
    if not isinstance(given, dict):
        raise UsageError(where, "expected a JSON object")
    for key in given:
        if key not in (*PASSED_ON, *OURS):
            raise UsageError(f"{where}#/{key}", "not a key that is used here", nearest(key, (*PASSED_ON, *OURS)))
    optimization = given.get("zero_optimization", {})
    if not isinstance(optimization, dict):
        raise UsageError(f"{where}#/zero_optimization", "expected a JSON object")
    if optimization.get("elastic_checkpoint"):
        what = "DeepSpeed cannot load its elastic checkpoints, not even with the same number of processes"
        raise UsageError(f"{where}#/zero_optimization/elastic_checkpoint", what, "Leave it out: --resume handles it.")
    return given


def stage(given: Mapping[str, Any]) -> int:
    """The ZeRO stage of a DeepSpeed configuration."""
    return int(given.get("zero_optimization", {}).get("stage", 0))


def complete(given: dict[str, Any], config: TrainConfig, sizes: Sizes, where: str) -> dict[str, Any]:
    """Complete the configuration for `deepspeed.initialize`.

    The optimizer is torch's AdamW, made by the trainer: DeepSpeed would compile its own at the first start.
    The trainer sets the learning rate before every step. UsageError if the JSON contradicts this.
    """
    _check_optimizer(given.get("optimizer"), config, where)
    scheduler = (given.get("scheduler") or {}).get("params", {})
    if any(value != AUTO for value in scheduler.values()):
        what = "the learning rate is set by lr_scheduler_type here"
        raise UsageError(f"{where}#/scheduler", what, "Leave it out, or make its values auto.")
    done: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": sizes.micro,
        "gradient_accumulation_steps": sizes.accumulation,
        "gradient_clipping": config.max_grad_norm,
        "train_batch_size": sizes.micro * sizes.accumulation * sizes.world,
    }
    for key, value in done.items():
        if given.get(key, AUTO) not in (AUTO, value):
            raise UsageError(f"{where}#/{key}", f"expected auto or {value}, found {given[key]}", "Make it auto.")
    done |= {key: value for key, value in given.items() if key not in OURS}
    for name, wanted in (("bf16", sizes.bf16), ("fp16", sizes.fp16)):
        section = dict(given.get(name) or {})
        if section.get("enabled", AUTO) not in (AUTO, wanted):
            what = f"expected auto or {str(wanted).lower()}, found {section['enabled']}"
            raise UsageError(f"{where}#/{name}/enabled", what, f"Set {name} in the trainer's configuration.")
        done[name] = section | {"enabled": wanted}
    done["zero_optimization"] = _zero(dict(given.get("zero_optimization") or {}), sizes.hidden)
    done.setdefault("steps_per_print", 10**9)  # the trainer logs every step itself
    return done | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}


def _zero(section: dict[str, Any], hidden: int | None) -> dict[str, Any]:
    """The ZeRO section with `auto` filled in as Transformers does, and sizes such as 5e8 as integers."""
    size = hidden or 4096
    filled = {
        "reduce_bucket_size": size * size,
        "stage3_prefetch_bucket_size": int(0.9 * size * size),
        "stage3_param_persistence_threshold": 10 * size,
    }
    for key, value in section.items():
        if value == AUTO:
            if key not in filled:
                raise UsageError(f"deepspeed#/zero_optimization/{key}", "auto has no meaning here", "Give a value.")
            section[key] = filled[key]
        elif isinstance(value, float) and value.is_integer():
            section[key] = int(value)
    return section


def _check_optimizer(section: Mapping[str, Any] | None, config: TrainConfig, where: str) -> None:
    if section is None:
        return
    pointer = f"{where}#/optimizer"
    if section.get("type", "").lower() not in ("adam", "adamw"):
        raise UsageError(f"{pointer}/type", f"expected AdamW, found {section.get('type')}", "The optimizer is AdamW.")
    ours = {
        "lr": config.learning_rate, "betas": [config.adam_beta1, config.adam_beta2], "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay, "torch_adam": True, "adam_w_mode": True,
    }  # fmt: skip
    for key, value in section.get("params", {}).items():
        if key not in ours:
            raise UsageError(f"{pointer}/params/{key}", "not a setting of AdamW", nearest(key, ours))
        if value not in (AUTO, ours[key]):
            what = f"expected auto or {ours[key]} as in the trainer's configuration, found {value}"
            raise UsageError(f"{pointer}/params/{key}", what, "Make it auto.")
