"""The model wrapped in DeepSpeed, ready to train from the start or from a checkpoint."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from trainer.config import zero
from trainer.config.config import TrainConfig
from trainer.models.training import load
from trainer.models.tune import count
from trainer.run import checkpoints
from trainer.run.plan import RunPlan


def wrap(plan: RunPlan) -> Any:
    """Load the plan's model and wrap it in DeepSpeed, with the checkpoint's state in a resumed run.

    All processes call it together.
    """
    import deepspeed

    settings = _settings(plan)
    moved = plan.checkpoint is not None and plan.checkpoint.run["world"] != plan.device.world
    moved &= zero.stage(plan.deepspeed) > 0  # without ZeRO every process has the whole state
    if moved:
        settings["checkpoint"] = {"load_universal": True}
    model = _load(plan, settings)
    if zero.stage(settings) < 3:  # the default takes a gigabyte even for a small adapter
        settings["zero_optimization"].setdefault("reduce_bucket_size", min(5 * 10**8, count(model)[1]))
    wrapped, *_ = deepspeed.initialize(
        model=model, optimizer=_optimizer(model, plan.config), config=settings, dist_init_required=False
    )
    if plan.checkpoint is not None:
        _restore(wrapped, plan, moved=moved)
    return wrapped


def _settings(plan: RunPlan) -> dict[str, Any]:
    sizes = zero.Sizes(
        world=plan.device.world,
        micro=plan.micro,
        accumulation=plan.accumulation,
        hidden=getattr(plan.source.text_config, "hidden_size", None),
        bf16=plan.bf16,
        fp16=plan.fp16,
    )
    return zero.complete(plan.deepspeed, plan.config, sizes, plan.where)


def _load(plan: RunPlan, settings: dict[str, Any]) -> torch.nn.Module:
    """Load the model; with ZeRO-3 in pieces, so that no process ever holds all of it."""
    import transformers.integrations.deepspeed as integration

    known: Any = integration  # untyped
    dtype = torch.bfloat16 if plan.bf16 else torch.float16 if plan.fp16 else torch.float32
    in_pieces = (
        known.HfDeepSpeedConfig(settings) if zero.stage(settings) == 3 else None
    )  # Transformers finds it while it exists
    try:
        return load(plan.source, plan.config, plan.device, dtype, plan.where)
    finally:
        known.unset_hf_deepspeed_config()
        del in_pieces


def _optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters; biases and norms get no weight decay, as in Transformers."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    flat = {name for name, p in trained if len(getattr(p, "ds_shape", p.shape)) < 2}
    groups = [
        {"params": [p for name, p in trained if name not in flat], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trained if name in flat], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon,
    )  # fmt: skip


def _restore(wrapped: Any, plan: RunPlan, *, moved: bool) -> None:
    """Load the checkpoint's state; if `moved` to another number of processes, the first process converts it first."""
    checkpoint = plan.checkpoint
    assert checkpoint is not None
    if not moved:
        checkpoints.load(wrapped, checkpoint.path / checkpoints.STATE)
        return
    folder = plan.output / f".universal-{checkpoint.step}"
    if plan.device.rank == 0:
        checkpoints.convert(checkpoint, folder)
    torch.distributed.barrier()
    checkpoints.load(wrapped, folder)
    torch.distributed.barrier()
    if plan.device.rank == 0:
        shutil.rmtree(folder)
