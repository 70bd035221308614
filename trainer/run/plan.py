"""The plan of a run: checks, steps and order, before any weights are loaded. `--dry-run` ends here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import PROCESSOR_FILES, TOKENIZER_FILES
from schemas.errors import UsageError
from trainer.config import zero
from trainer.config.config import Loaded, TrainConfig
from trainer.data import stream
from trainer.data.order import Order
from trainer.device import Device
from trainer.models import folder
from trainer.objectives.objective import Objective
from trainer.run import checkpoints, checks
from trainer.run.checkpoints import Checkpoint


@dataclass(frozen=True)
class RunPlan:
    """Everything that is decided about a run."""

    config: TrainConfig
    where: str
    """The configuration file, for messages."""
    set: stream.TrainingSet
    objective: Objective
    train: stream.SplitRows
    val: stream.SplitRows | None
    source: folder.ModelFolder
    device: Device
    order: Order
    micro: int
    accumulation: int
    steps: int
    bf16: bool
    fp16: bool
    deepspeed: dict[str, Any]
    """As given; `zero.complete` fills in the rest."""
    checkpoint: Checkpoint | None
    """Where the run resumes; None = it starts from the beginning."""
    resumes: int
    """How often runs in the output folder were resumed, including this time."""
    remarks: tuple[str, ...]

    @property
    def output(self) -> Path:
        """The folder of checkpoints and logs."""
        return Path(self.config.output_dir)

    @property
    def start(self) -> int:
        """Steps already done."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def objective_settings(self) -> dict[str, Any]:
        """The settings of the objective, by name."""
        return {name: getattr(self.config, name) for name in self.objective.settings}

    def is_due(self, strategy: str, every: int, step: int) -> bool:
        """Whether something with strategy "steps", "epoch" or "no" is due after `step` steps."""
        if strategy == "epoch":
            return step % self.order.steps_per_epoch == 0
        return strategy == "steps" and step % every == 0


def make(where: str, loaded: Loaded, resume: str | None, device: Device) -> RunPlan:
    """Plan a run on the set at `where`; raise a Problem if it is impossible."""
    config = loaded.config
    opened = stream.TrainingSet.open(where)
    remarks = list(loaded.remarks)
    objective = checks.choose_objective(opened, config, loaded.where)
    train = opened.split("train")
    val = None if config.eval_strategy == "no" else opened.split("val")
    source = folder.find(config)
    remarks += _about(source, config)
    stream.check_files(opened.manifest, source.folder, (*TOKENIZER_FILES, *PROCESSOR_FILES))
    remarks += checks.check_expected(opened, source, config, loaded.where)
    deepspeed = zero.read(config, loaded.where)
    checks.check_model(opened, source, config, deepspeed, loaded.where)
    checkpoint = _checkpoint(config, resume, remarks)
    grouped = config.group_by_length and not opened.is_packed
    accumulation = config.gradient_accumulation_steps
    if checkpoint:
        facts = {"set": opened.manifest["digest"], "seed": config.seed, "grouped": grouped, "tuning": config.tuning}
        facts["zero_stage"] = zero.stage(deepspeed)
        accumulation = _check_resume(checkpoint, facts, config, device, remarks)
    micro = config.per_device_train_batch_size
    rows = micro * accumulation * device.world
    order = Order(len(train), rows, config.seed, train.lengths if grouped else None)
    if objective.pair and rows < 2:
        what = f"a step has 1 row, and {objective.name} pairs each row with the next one"
        raise UsageError(f"{loaded.where}#/gradient_accumulation_steps", what, "Use at least 2 rows per step.")
    steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * order.steps_per_epoch)
    earlier = [one.run["resumes"] for one in checkpoints.complete(Path(config.output_dir))]
    resumes = max(earlier) + 1 if checkpoint else 0
    bf16, fp16 = _precision(config, device, loaded.where)
    return RunPlan(
        config=config, where=loaded.where, set=opened, objective=objective, train=train, val=val,
        source=source, device=device, order=order,
        micro=micro, accumulation=accumulation, steps=steps, bf16=bf16, fp16=fp16, deepspeed=deepspeed,
        checkpoint=checkpoint, resumes=resumes, remarks=tuple(remarks),
    )  # fmt: skip


def _about(source: folder.ModelFolder, config: TrainConfig) -> list[str]:
    """What the user should know of a model in its original layout."""
    if source.family is None:
        return []
    family = source.family
    remarks = [f"{source.folder} is read as {source.auto_class.__name__}; its own code is not run"]
    remarks += [family.remark] if family.remark else []
    asked = config.lora.target_modules
    for name in [asked] if isinstance(asked, str) else asked:
        if config.tuning == "lora" and len(names := family.modules.get(name, ())) > 1:
            remarks.append(f"{name} is {', '.join(names)} here, each with an adapter of its own")
    return remarks


def _checkpoint(config: TrainConfig, resume: str | None, remarks: list[str]) -> Checkpoint | None:
    output = Path(config.output_dir)
    if resume is not None:
        if config.overwrite_output_dir:
            remarks.append("overwrite_output_dir has no effect: the run is resumed")
        found = checkpoints.find(output, resume)
        if found is None:
            remarks.append(f"--resume yes: {output} has no complete checkpoint; the run starts from the beginning")
        return found
    existing = checkpoints.complete(output)
    if existing and not config.overwrite_output_dir:
        raise UsageError(
            f"output_dir: {output}", f"it has checkpoints, the last of step {existing[-1].step}",
            "Resume with --resume yes, choose another output_dir, or set overwrite_output_dir: true to remove them.",
        )  # fmt: skip
    return None


def _check_resume(
    checkpoint: Checkpoint, facts: dict[str, Any], config: TrainConfig, device: Device, remarks: list[str]
) -> int:
    """The gradient accumulation that keeps the rows of a step; UsageError if the run would be a different one.

    `facts` must be as in the checkpoint.
    """
    run, where = checkpoint.run, str(checkpoint.path)
    for key, value in facts.items():
        if run[key] != value:
            what = f"it was made with another {key}: {run[key]}, now {value}"
            raise UsageError(where, what, "Resume with the same settings, or start a new run in another output_dir.")
    rows, micro = run["step_rows"], config.per_device_train_batch_size
    accumulation, left = divmod(rows, micro * device.world)
    if left:
        what = f"its steps have {rows} rows, which {device.world} processes cannot share in batches of {micro}"
        raise UsageError(where, what, "Choose another per_device_train_batch_size or number of processes.")
    if accumulation != config.gradient_accumulation_steps:
        remarks.append(f"gradient_accumulation_steps is {accumulation}, so that steps keep their {rows} rows")
    return accumulation


def _precision(config: TrainConfig, device: Device, where: str) -> tuple[bool, bool]:
    bf16 = config.bf16 is True or (config.bf16 == "auto" and not config.fp16 and device.has_bf16)
    if config.fp16 and device.kind == "cpu":
        raise UsageError(f"{where}#/fp16", "a CPU does not compute in fp16", "Use bf16: true, or neither.")
    if bf16 and device.kind != "cpu" and not device.has_bf16:
        raise UsageError(f"{where}#/bf16", f"{device.name} has no bf16", "Use fp16: true.")
    return bf16, config.fp16
