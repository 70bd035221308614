"""Where a run begins: at a checkpoint of the same run, or at the start. What has changed since is refused or said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas import checkpoint as files
from schemas.errors import IntegrityError, UsageError
from schemas.steps import ALL
from trainer.config.config import TrainConfig
from trainer.device import Device
from trainer.run import checkpoints
from trainer.run.checkpoints import Checkpoint
from trainer.run.output import check_ours
from trainer.run.schedule import learning_rate

if TYPE_CHECKING:
    from trainer.run.plan import RunPlan


_FREE = frozenset({
    "model_name_or_path", "model_revision", "hub", "trust_remote_code", "output_dir", "overwrite_output_dir",
    "media_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "bf16",
    "fp16", "zero_stage", "deepspeed", "use_cpu", "ddp_timeout", "group_by_length", "store_cache_gib",
    "dataloader_num_workers", "logging_steps", "report_to", "run_name", "plot_loss", "save_strategy", "save_steps",
    "save_total_limit", "attn_implementation", "use_liger_kernel", "logits_in_chunks", "optim", "peak_tflops",
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "gradient_checkpointing_kwargs",
    "eval_strategy", "eval_steps", "per_device_eval_batch_size", "predict_with_generate",
    "generation_max_new_tokens", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    "early_stopping_patience", "early_stopping_threshold", "expect", "max_steps", "num_train_epochs",
})  # fmt: skip
"""Keys that a resumed run may change: they decide no loss, or `facts` and the learning rate are compared instead."""
_SAID = frozenset({
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "lora.lora_dropout", "beta", "desirable_weight",
    "undesirable_weight", "dpo_label_smoothing", "simpo_gamma", "rpo_alpha",
})  # fmt: skip
"""Keys that a resumed run may change, and a remark says so. Any other key must be as it was."""


_EARLIER = {"shuffle_shards": ALL}
"""Facts that checkpoints of earlier versions do not have."""


def find(config: TrainConfig, resume: str | None, remarks: list[str], damaged: Mapping[Path, str]) -> Checkpoint | None:
    """The checkpoint to go on from; None for a run from the start. UsageError if there are checkpoints unasked.

    `damaged` ones, which say what is wrong in them, are not gone on from.
    """
    output = Path(config.output_dir)
    check_ours(output)
    if resume is not None:
        if config.overwrite_output_dir:
            remarks.append("overwrite_output_dir has no effect: the run is resumed")
        found = checkpoints.find(output, resume, remarks, damaged)
        if found is None:
            remarks.append(f"--resume yes: {output} has no complete checkpoint; the run starts from the beginning")
        return found
    broken: dict[Path, str] = {}
    existing = checkpoints.complete(output, broken)
    if (existing or broken) and not config.overwrite_output_dir:
        which = f"the last of step {existing[-1].step}" if existing else "all of them damaged"
        raise UsageError(
            f"output_dir: {output}", f"it has checkpoints, {which}",
            "Resume with --resume yes, choose another output_dir, or set overwrite_output_dir: true to replace them.",
        )  # fmt: skip
    return None


def whole(plan: RunPlan, again: Callable[[Mapping[Path, str]], RunPlan]) -> RunPlan:
    """The plan from a checkpoint that is whole: one that is damaged is left out, and the plan made `again` without it.

    All processes call it together, and each reads a part of the files. IntegrityError for a file that does not belong.
    """
    damaged: dict[Path, str] = {}
    while (checkpoint := plan.checkpoint) and (what := checkpoints.damage(checkpoint)):
        damaged[checkpoint.path] = what
        plan = again(damaged)
    if checkpoint and (strangers := files.strangers(checkpoint.path)):
        what = f"{strangers[0]}: no file of this checkpoint; it was put there later"
        raise IntegrityError(str(checkpoint.path), what, "Move it somewhere else.")
    return plan


def check(checkpoint: Checkpoint, facts: dict[str, Any], config: TrainConfig, remarks: list[str]) -> None:
    """Raise a UsageError that names everything in which this would be another run; remarks for what may change.

    `facts` is what a run is by (set, seed, precision, ...), as in `run.json`.
    """
    run = checkpoint.run
    before = _flat(_defaults()) | _flat(run["config"])  # keys may be newer than the checkpoint
    now = _flat(config.as_dict())
    was = _EARLIER | run
    wrong = [f"{key}: {was[key]}, now {value}" for key, value in facts.items() if was.get(key, value) != value]
    for key in sorted(before.keys() | now.keys()):
        old, new, top = before.get(key), now.get(key), key.partition(".")[0]
        if old == new or _FREE & {key, top} or key in facts:
            continue
        if _SAID & {key, top}:
            remarks.append(f"{key} is {new} from here on; until step {checkpoint.step} it was {old}")
        else:
            wrong.append(f"{key}: {old}, now {new}")
    if wrong:
        listed = "".join(f"\n  {line}" for line in wrong)
        raise UsageError(
            str(checkpoint.path), f"it was made by another run:{listed}",
            "Resume with the same settings, or start a new run in another output_dir.",
        )  # fmt: skip


def accumulation(checkpoint: Checkpoint, config: TrainConfig, device: Device, remarks: list[str]) -> int:
    """The gradient accumulation that keeps the rows of a step; UsageError if there is none."""
    rows, micro = checkpoint.run["step_rows"], config.per_device_train_batch_size
    passes, left = divmod(rows, micro * device.world)
    if left:
        what = f"its steps have {rows} rows, which {device.world} processes cannot share in batches of {micro}"
        hint = "Choose another per_device_train_batch_size or number of processes."
        raise UsageError(str(checkpoint.path), what, hint)
    if passes != config.gradient_accumulation_steps:
        remarks.append(f"gradient_accumulation_steps is {passes}, so that steps keep their {rows} rows")
    return passes


def attention(checkpoint: Checkpoint, now: str, remarks: list[str]) -> None:
    """Add a remark if attention is computed by something else now."""
    before = checkpoint.run.get("attention", {}).get("name", now)  # earlier versions did not write it
    if before != now:
        remarks.append(f"attention is computed by {now} from here on; until step {checkpoint.step} it was {before}")


def rate(checkpoint: Checkpoint, config: TrainConfig, steps: int, remarks: list[str]) -> None:
    """Add a remark if the run has another length now, and its learning rate goes on elsewhere."""
    before, at = checkpoint.run["steps"], checkpoint.step
    if before == steps or at >= steps:
        return
    now, then = learning_rate(config, steps)(at), learning_rate(config, before)(min(at, before))
    if now != then:
        remarks.append(
            f"the run has {steps:,} steps, {before:,} when it was saved: the learning rate of step {at + 1:,} is "
            f"{now:.3g} instead of {then:.3g}"
        )


def _defaults() -> dict[str, Any]:
    return TrainConfig(model_name_or_path="", output_dir="").as_dict()


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_leaves(values))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and key in _GROUPS:
            yield from _leaves(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value


_GROUPS = ("lora", "prefix")
