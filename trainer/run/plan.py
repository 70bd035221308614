"""The plan of a run: checks, steps and order, before any weights are loaded. `--dry-run` ends here."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from registry import PROCESSOR_FILES, TOKENIZER_FILES
from schemas.digests import content_digest
from schemas.errors import UsageError
from schemas.steps import Order
from trainer.config import zero
from trainer.config.config import TrainConfig
from trainer.config.load import Loaded
from trainer.data import media, stream
from trainer.device import Device
from trainer.device import remarks as limits
from trainer.models import demo, experts, folder, kernels, optimizers, tune
from trainer.models.kernels import Kernels
from trainer.objectives.objective import Objective
from trainer.run import attention, checkpoints, checks, shuffle
from trainer.run import resume as resumes
from trainer.run.attention import Attention
from trainer.run.checkpoints import Checkpoint
from trainer.run.schedule import in_steps

LOOKED_AT = 1024
"""Rows, at the beginning of the split, among which the longest one is looked for."""


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
    test: stream.SplitRows | None
    """Evaluated when the run ends."""
    source: folder.ModelFolder
    device: Device
    order: Order
    micro: int
    accumulation: int
    steps: int
    bf16: bool
    fp16: bool
    attention: Attention
    kernels: Kernels
    optimizer: str
    """Its name in the configuration; never auto."""
    deepspeed: dict[str, Any]
    """As given; `zero.complete` fills in the rest."""
    checkpoint: Checkpoint | None
    """Where the run resumes; None = it starts from the beginning."""
    facts: dict[str, Any]
    """What the run is by, for checkpoints: set, seed, precision and more."""
    run: str
    """What tells the run from others: a random number that resumes keep."""
    starts: int
    """How often a run in the output folder, with checkpoints in it, was started or resumed before."""
    replaces: int
    """Checkpoints of fewer starts are of a run that this one replaces."""
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
        """The settings of the objective, by name; those that the configuration leaves out have its own defaults."""
        given = {name: getattr(self.config, name) for name in self.objective.settings}
        return self.objective.defaults() | {name: value for name, value in given.items() if value is not None}

    @property
    def flat(self) -> bool:
        """Whether a pass has one row of packs: FlashAttention tells the sequences of several rows apart by none."""
        return self.set.is_packed and self.attention.is_flash

    @property
    def objective_in_words(self) -> str:
        """The objective and its settings but zeros, those that the configuration leaves out too."""
        settings = ", ".join(f"{name} {value:g}" for name, value in self.objective_settings.items() if value)
        return f"{self.objective.name}: {settings}" if settings else self.objective.name

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32

    @property
    def longest_row(self) -> int:
        """The tokens of the longest of the first rows, of both sides of a pair."""
        return int(self.train.lengths(np.arange(min(len(self.train), LOOKED_AT))).max())

    @property
    def first_row(self) -> int:
        """The row that this start of the run trains first; rows of other lanes are not looked at for it."""
        return int(self.order.step(self.start, np.array([0]))[0])

    @property
    def order_in_words(self) -> str:
        """How rows are shuffled."""
        return shuffle.in_words(self.train, self.order, self.facts["shuffle_shards"])

    @property
    def keeps_reference(self) -> bool:
        """Whether the reference's log-probabilities are computed before the first step, since training changes it."""
        return self.objective.needs_reference and self.config.tuning != "lora"

    def is_due(self, strategy: str, every: float, step: int) -> bool:
        """Whether something with strategy "steps", "epoch" or "no" is due after `step` steps."""
        if strategy == "epoch":
            return step % self.order.steps_per_epoch == 0
        return strategy == "steps" and step % every == 0


def make(
    where: str, loaded: Loaded, resume: str | None, device: Device, damaged: Mapping[Path, str] = MappingProxyType({})
) -> RunPlan:
    """Plan a run on the set at `where`, from no `damaged` checkpoint; raise a Problem if it is impossible."""
    config = loaded.config
    opened = stream.TrainingSet.open(where)
    remarks = list(loaded.remarks)
    objective = checks.choose_objective(opened, config, loaded.where)
    shuffle.limit_cache(opened, config, loaded.where)
    train = opened.split("train")
    val = None if config.eval_strategy == "no" else opened.split("val")
    test = opened.split("test") if config.eval_strategy != "no" and opened.shards("test") else None
    source = folder.find(config)
    remarks += _about(source, config, loaded.where)
    media_dir, said = media.find_folder(opened, config.media_dir, f"{loaded.where}#/media_dir")
    config, remarks = replace(config, media_dir=media_dir), remarks + said
    stream.check_files(opened.manifest, source.folder, (*TOKENIZER_FILES, *PROCESSOR_FILES))
    remarks += limits(device, config.ddp_timeout)
    remarks += checks.check_expected(opened, [s for s in (train, val, test) if s], source, config, loaded.where)
    deepspeed = zero.read(config, loaded.where)
    checks.check_model(opened, source, config, deepspeed, loaded.where)
    checks.check_libraries(config)
    bf16, fp16 = _precision(config, device, loaded.where)
    packed, stage = opened.is_packed, zero.stage(deepspeed)
    layers = kernels.choose(config, source, device, stage, loaded.where)
    optimizer = optimizers.check(config, device, stage, loaded.where)
    chosen = attention.choose(
        source, config.attn_implementation, device, loaded.where, half=bf16 or fp16, packed=packed
    )
    checkpoint = resumes.find(config, resume, remarks, damaged)
    grouped = config.group_by_length and not packed
    accumulation = config.gradient_accumulation_steps
    together = shuffle.together(train, config.shuffle_shards, checkpoint, remarks)
    facts = {
        "set": content_digest(opened.manifest), "seed": config.seed, "grouped": grouped, "shuffle_shards": together,
        "tuning": config.tuning, "zero_stage": stage, "objective": objective.name,
        "precision": "bf16" if bf16 else "fp16" if fp16 else "fp32", "optimizer": optimizers.states(optimizer),
    }  # fmt: skip
    if checkpoint:
        resumes.check(checkpoint, facts | {"base_digest": source.digest}, config, remarks)
        resumes.attention(checkpoint, chosen.name, remarks)
        optimizers.check_moved(optimizer, checkpoint.run["world"], device.world, loaded.where)
        accumulation = resumes.accumulation(checkpoint, config, device, remarks)
    micro = config.per_device_train_batch_size
    rows = micro * accumulation * device.world
    shards = [shard["rows"] for shard in train.shards]
    order = Order.of(shards, rows, config.seed, train.lengths if grouped else None, together)
    if objective.pair and rows < 2:
        what = f"a step has 1 row, and {objective.name} pairs each row with the next one"
        raise UsageError(f"{loaded.where}#/gradient_accumulation_steps", what, "Use at least 2 rows per step.")
    steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * order.steps_per_epoch)
    if checkpoint:
        resumes.rate(checkpoint, config, steps, remarks)
    config = in_steps(config, steps)
    earlier = [one.run["resumes"] for one in checkpoints.complete(Path(config.output_dir))]
    starts = max(earlier) + 1 if earlier else 0
    return RunPlan(
        config=config, where=loaded.where, set=opened, objective=objective, train=train, val=val,
        test=test, source=source, device=device, order=order,
        micro=micro, accumulation=accumulation, steps=steps, bf16=bf16, fp16=fp16, attention=chosen, kernels=layers,
        optimizer=optimizer, deepspeed=deepspeed,
        checkpoint=checkpoint, facts=facts, starts=starts,
        run=checkpoint.run["run"] if checkpoint else uuid.uuid4().hex,
        replaces=checkpoint.run["replaces"] if checkpoint else starts, remarks=tuple(remarks),
    )  # fmt: skip


def _about(source: folder.ModelFolder, config: TrainConfig, where: str) -> list[str]:
    """What the user should know of the embedded model, of one in its original layout, or of one with fused experts."""
    if source.record["model"] == demo.NAME:
        return [demo.ABOUT]
    if config.trust_remote_code and config.tuning == "lora":
        return [f"the code in {source.folder} is run for training only: cli export and cli chat do not run it"]
    if source.family is None:
        if config.tuning != "lora" or not any("experts" in key for key in source.text_config.to_dict()):
            return []
        with torch.device("meta"):
            targets = tune.targets(source.made(), config, where, {})
        return experts.remarks(targets, config) if targets else []
    family = source.family
    remarks = [f"{source.folder} is read as {source.auto_class.__name__}; its own code is not run"]
    remarks += [family.remark] if family.remark else []
    asked = config.lora.target_modules
    for name in [asked] if isinstance(asked, str) else asked:
        if config.tuning == "lora" and len(names := family.modules.get(name, ())) > 1:
            remarks.append(f"{name} is {', '.join(names)} here, each with an adapter of its own")
    return remarks


def _precision(config: TrainConfig, device: Device, where: str) -> tuple[bool, bool]:
    bf16 = config.bf16 is True or (config.bf16 == "auto" and not config.fp16 and device.has_bf16)
    if config.fp16 and device.kind == "cpu":
        raise UsageError(f"{where}#/fp16", "a CPU does not compute in fp16", "Use bf16: true, or neither.")
    if bf16 and device.kind != "cpu" and not device.has_bf16:
        raise UsageError(f"{where}#/bf16", f"{device.name} has no bf16", "Use fp16: true.")
    return bf16, config.fp16
