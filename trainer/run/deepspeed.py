"""The model wrapped in DeepSpeed, ready to train from the start or from a checkpoint."""

from __future__ import annotations

from typing import Any

import torch

from schemas import checkpoint as files
from schemas import own
from trainer.config import zero
from trainer.models import initial, kernels, optimizers
from trainer.models.training import load
from trainer.models.tune import count
from trainer.models.wrappers import transformers_model
from trainer.run import checkpoints, unpickle
from trainer.run.plan import RunPlan


def wrap(plan: RunPlan) -> Any:
    """Load the plan's model and wrap it in DeepSpeed; a resumed run still has to `restore` it.

    All processes call it together.
    """
    import deepspeed

    settings = _settings(plan)
    if _is_moved(plan):
        settings["checkpoint"] = {"load_universal": True}
    model = _load(plan, settings)
    if plan.config.router_aux_loss_coef:
        from trainer.models import router

        router.balance(transformers_model(model), plan.config.router_aux_loss_coef / plan.accumulation, plan.where)
    if plan.kernels.compiled:
        kernels.compile_layers(model, plan.config)
    if zero.stage(settings) < 3:  # the default takes a gigabyte even for a small adapter
        settings["zero_optimization"].setdefault("reduce_bucket_size", min(5 * 10**8, count(model)[1]))
    wrapped, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizers.make(model, plan.config, plan.optimizer),
        config=settings,
        dist_init_required=False,
    )
    return wrapped


def _is_moved(plan: RunPlan) -> bool:
    """Whether another number of processes wrote the checkpoint; without ZeRO every process has the whole state."""
    moved = plan.checkpoint is not None and plan.checkpoint.run["world"] != plan.device.world
    return moved and zero.stage(plan.deepspeed) > 0


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
    in_pieces = (
        known.HfDeepSpeedConfig(settings) if zero.stage(settings) == 3 else None
    )  # Transformers finds it while it exists
    try:
        return load(
            plan.source,
            plan.config,
            plan.device,
            plan.dtype,
            plan.where,
            plan.attention.asked,
            liger=plan.kernels.liger,
        )
    finally:
        known.unset_hf_deepspeed_config()
        del in_pieces


def restore(wrapped: Any, plan: RunPlan) -> None:
    """Load the state of the plan's checkpoint, if it has one; all processes call it together.

    For another number of processes, the first process converts the state first.
    """
    checkpoint = plan.checkpoint
    if checkpoint is None:
        return
    initial.check_again(wrapped.module, checkpoint.path)
    if not _is_moved(plan):
        checkpoints.load(wrapped, checkpoint.path / files.STATE)
        return
    folder = plan.output / f".universal-{checkpoint.step}"
    groups = [{**group, "params": None} for group in wrapped.optimizer.param_groups]
    try:
        if plan.device.rank == 0:
            own.make(folder, files.RUN, {"made_by": files.MADE_BY, "run": plan.run})
            unpickle.convert(checkpoint.path / files.STATE / checkpoints.TAG, folder / checkpoints.TAG)
        torch.distributed.barrier()
        checkpoints.load(wrapped, folder)
        _mend(wrapped.optimizer, groups)
        torch.distributed.barrier()
    finally:
        if plan.device.rank == 0:
            own.clear(folder, files.RUN, files.MADE_BY)


def _mend(optimizer: Any, groups: list[dict[str, Any]]) -> None:
    """Give each group of parameters its own settings and steps again.

    For ZeRO-3, DeepSpeed 0.19 loads the settings of the first group into all, so that biases and norms would decay too,
    and one tensor of steps, which every group would count up.
    """
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in before.items() if key != "params"})
    for state in optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
