"""What a run will be, known before any weight is loaded: checks, steps, order. `--dry-run` ends here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from registry import PROCESSOR_FILES, TOKENIZER_FILES
from schemas.errors import UsageError
from trainer import checkpoints, model, stream, zero
from trainer.checkpoints import Checkpoint
from trainer.config import Config, Loaded
from trainer.device import Device
from trainer.order import Order
from trainer.schedule import warmup

OBJECTIVES = {"sft": "sft", "pretrain": "pretrain", "dpo": "preference", "kto": "kto"}
"""Objective -> the kind of set it is for."""


@dataclass(frozen=True)
class Plan:
    """A run, decided."""

    config: Config
    where: str
    """The configuration file, for messages."""
    set: stream.Set
    train: stream.Split
    val: stream.Split | None
    source: model.Source
    device: Device
    order: Order
    micro: int
    accumulation: int
    steps: int
    bf16: bool
    fp16: bool
    deepspeed: dict[str, Any]
    """As given; `zero.complete` fills it in."""
    checkpoint: Checkpoint | None
    """Where the run goes on; None = from the start."""
    remarks: tuple[str, ...]

    @property
    def output(self) -> Path:
        """The folder of checkpoints and logs."""
        return Path(self.config.output_dir)

    @property
    def start(self) -> int:
        """Steps that are done."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def kind(self) -> str:
        """The kind of the set, which the objective is for."""
        return self.set.kind

    def is_due(self, strategy: str, every: int, step: int) -> bool:
        """Return whether something that happens by "steps", "epoch" or "no" happens after `step` steps."""
        if strategy == "epoch":
            return step % self.order.steps_per_epoch == 0
        return strategy == "steps" and step % every == 0


def make(where: str, loaded: Loaded, resume: str | None, device: Device) -> Plan:
    """Return the plan of a run on the set at `where`; a Problem with one message where it cannot be."""
    config = loaded.config
    opened = stream.Set.open(where)
    remarks = list(loaded.remarks)
    _check_objective(opened, config, loaded.where)
    train = opened.split("train")
    val = None if config.eval_strategy == "no" else opened.split("val")
    source = model.find(config)
    stream.check_files(opened.manifest, source.folder, (*TOKENIZER_FILES, *PROCESSOR_FILES))
    remarks += _check_expected(opened, config, loaded.where)
    deepspeed = zero.read(config, loaded.where)
    _check_model(opened, source, config, deepspeed, loaded.where)
    checkpoint = _checkpoint(config, resume, remarks)
    grouped = config.group_by_length and not opened.packed
    accumulation = config.gradient_accumulation_steps
    if checkpoint:
        accumulation = _check_resume(checkpoint, opened, config, device, grouped, remarks)
    micro = config.per_device_train_batch_size
    rows = micro * accumulation * device.world
    order = Order(len(train), rows, config.seed, train.lengths if grouped else None)
    if opened.kind == "kto" and rows < 2:
        what = "a step has 1 row, and its mismatched pair needs another"
        raise UsageError(f"{loaded.where}#/gradient_accumulation_steps", what, "Have at least 2 rows a step.")
    steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * order.steps_per_epoch)
    bf16, fp16 = _precision(config, device, loaded.where)
    return Plan(
        config=config, where=loaded.where, set=opened, train=train, val=val, source=source, device=device, order=order,
        micro=micro, accumulation=accumulation, steps=steps, bf16=bf16, fp16=fp16, deepspeed=deepspeed,
        checkpoint=checkpoint, remarks=tuple(remarks),
    )  # fmt: skip


def _check_objective(opened: stream.Set, config: Config, where: str) -> None:
    asked = config.objective
    if asked is not None and OBJECTIVES[asked] != opened.kind:
        fitting = next(name for name, kind in OBJECTIVES.items() if kind == opened.kind)
        what = f"{asked} needs a set of kind {OBJECTIVES[asked]}, and {opened.where} is of kind {opened.kind}"
        raise UsageError(f"{where}#/objective", what, f"Use another set, or objective: {fitting} (or leave it out).")
    if opened.kind in ("preference", "kto") and config.tuning != "lora":
        what = f"the reference of a {opened.kind} set is the model without its LoRA; tuning is {config.tuning}"
        raise UsageError(f"{where}#/tuning", what, "Use tuning: lora.")


def _check_expected(opened: stream.Set, config: Config, where: str) -> list[str]:
    """Raise, naming all, where the set is not what the configuration expects; return what could not be compared."""
    expect, manifest = config.expect, opened.manifest
    wrong: list[tuple[str, str]] = []
    remarks = []
    names = [one["name"] for one in manifest["datasets"]]
    if expect.datasets is not None and set(expect.datasets) != {n for n in names if n != "self-cognition"}:
        wrong.append(("datasets", f"expected {', '.join(sorted(expect.datasets))}, the set has {', '.join(names)}"))
    template = manifest["template"]
    if expect.template not in (None, template["name"]):
        if template["name"] == "auto":
            remarks.append(f"template {expect.template}: the set has the chat template of the model's own tokenizer")
        else:
            wrong.append(("template", f"expected {expect.template}, the set was compiled with {template['name']}"))
    if expect.max_length is not None:
        longest = _longest(opened)
        if longest > expect.max_length:
            wrong.append(("max_length", f"expected at most {expect.max_length} tokens, the set has rows of {longest}"))
    if expect.max_samples is not None:
        more = [one["name"] for one in manifest["datasets"] if one["realized"]["rows"] > expect.max_samples]
        if more:
            wrong.append(("max_samples", f"expected at most {expect.max_samples} rows a dataset, {more[0]} has more"))
    if expect.val_size is not None and expect.val_size != manifest["options"]["val_size"]:
        found = manifest["options"]["val_size"]
        wrong.append(("val_size", f"expected {expect.val_size}, the set was compiled with --val-size {found}"))
    if expect.packing is not None and expect.packing != opened.packed:
        wrong.append(("packing", f"expected {expect.packing}, the set is {'' if opened.packed else 'not '}packed"))
    if wrong:
        listed = "\n  ".join(f"{key}: {what}" for key, what in wrong)
        hint = f"Compile the set so, or go without the check: --set expect.{wrong[0][0]}=null."
        raise UsageError(f"{where}", f"the set {opened.where} is not what it expects\n  {listed}", hint)
    return remarks


def _longest(opened: stream.Set) -> int:
    """Return the tokens of the longest sequence, or its limit where the set has one."""
    limit = opened.manifest["options"].get("max_length")
    if limit is not None:
        return int(limit)
    splits = [name for name, entry in opened.manifest["splits"].items() if entry["rows"]]
    return max(int(opened.split(name).longest_sequence()) for name in splits)


def _check_model(
    opened: stream.Set, source: model.Source, config: Config, deepspeed: dict[str, Any], where: str
) -> None:
    """Raise for combinations that would be wrong without a word."""
    vocabulary = getattr(source.text_config, "vocab_size", None)
    largest = max(opened.manifest["tokenizer"]["controls"].values(), default=0)
    if vocabulary is not None and largest >= vocabulary:
        what = f"the set has the token id {largest}, the model has {vocabulary} embeddings"
        raise UsageError(str(source.folder), what, "Use the model that the set was compiled for.")
    if opened.packed and config.tuning == "prefix":
        what = "with a prefix, models do not see where sequences of a pack begin, and each would see those before it"
        raise UsageError(f"{where}#/tuning", what, "Use tuning: lora, or compile the set without --pack.")
    if opened.packed and opened.has_media:
        what = "packs with images are not supported: positions of image tokens do not restart"
        raise UsageError(opened.where, what, "Compile the set without --pack.")
    if config.predict_with_generate and (opened.has_media or opened.kind == "pretrain"):
        what = "documents have no replies to write" if opened.kind == "pretrain" else "images are not generated from"
        raise UsageError(f"{where}#/predict_with_generate", what, "Set it to false; the evaluation loss is there.")
    if opened.has_media and not opened.manifest["media"]["repeats_pad"]:
        what = f"models of the kind {opened.manifest['media']['name']} take images through code of their own"
        raise UsageError(opened.where, what, "Train them with their own tools on this set, or use another model.")
    if config.quantization_bit and zero.stage(deepspeed) == 3:
        what = "weights of 4 or 8 bits cannot be cut up between processes"
        raise UsageError(f"{where}#/quantization_bit", what, "Use zero_stage: 2, or leave quantization_bit out.")


def _checkpoint(config: Config, resume: str | None, remarks: list[str]) -> Checkpoint | None:
    output = Path(config.output_dir)
    if resume is not None:
        found = checkpoints.find(output, resume)
        if found is None:
            remarks.append(f"--resume yes: {output} has no complete checkpoint; the run starts from the beginning")
        return found
    existing = checkpoints.complete(output)
    if existing and not config.overwrite_output_dir:
        raise UsageError(
            f"output_dir: {output}", f"it has checkpoints, the last of step {existing[-1][0]}",
            "Go on with --resume yes, choose another output_dir, or set overwrite_output_dir: true to remove them.",
        )  # fmt: skip
    return None


def _check_resume(
    checkpoint: Checkpoint, opened: stream.Set, config: Config, device: Device, grouped: bool, remarks: list[str]
) -> int:
    """Return the accumulation that keeps a step's rows as they were; UsageError where the run would be another one."""
    run, where = checkpoint.run, str(checkpoint.path)
    facts = {"set": opened.manifest["digest"], "seed": config.seed, "grouped": grouped, "tuning": config.tuning}
    for key, value in facts.items():
        if run[key] != value:
            what = f"it was made with another {key}: {run[key]}, now {value}"
            raise UsageError(
                where, what, "Resume with what it was made with, or start a new run in another output_dir."
            )
    rows, micro = run["step_rows"], config.per_device_train_batch_size
    accumulation, left = divmod(rows, micro * device.world)
    if left:
        what = f"its steps have {rows} rows, which {device.world} processes cannot share in batches of {micro}"
        raise UsageError(where, what, "Choose another per_device_train_batch_size or number of processes.")
    if accumulation != config.gradient_accumulation_steps:
        remarks.append(f"gradient_accumulation_steps is {accumulation}, so that steps keep their {rows} rows")
    return accumulation


def _precision(config: Config, device: Device, where: str) -> tuple[bool, bool]:
    bf16 = config.bf16 is True or (config.bf16 == "auto" and not config.fp16 and device.has_bf16)
    if config.fp16 and device.kind == "cpu":
        raise UsageError(f"{where}#/fp16", "a cpu does not compute in fp16", "Use bf16: true, or neither.")
    if bf16 and device.kind != "cpu" and not device.has_bf16:
        raise UsageError(f"{where}#/bf16", f"{device.name} has no bf16", "Use fp16: true.")
    return bf16, config.fp16


# -- the dry run --

SAMPLE_STEPS = 200
"""Steps whose padding is counted; more of a large set would have to be read for a few digits."""


def padding(plan: Plan) -> tuple[int, int, int]:
    """Return (steps looked at, tokens, positions computed for them) over the first steps of the first epoch."""
    steps = min(plan.order.steps_per_epoch, SAMPLE_STEPS)
    tokens = positions = 0
    for step in range(steps):
        lengths = plan.train.lengths(plan.order.step(step))
        for start in range(0, len(lengths), plan.micro):
            part = lengths[start : start + plan.micro]
            tokens += int(part.sum())
            positions += int(part.max()) * len(part)
    return steps, tokens, positions


def lints(plan: Plan) -> Iterator[str]:
    """Yield what is allowed and hardly meant."""
    c, steps = plan.config, plan.steps
    run = f"the {steps:,} steps of this run"
    if c.eval_strategy == "steps" and (c.eval_steps or c.logging_steps) > steps:
        yield f"eval_steps {c.eval_steps or c.logging_steps:,} is more than {run}: nothing is evaluated"
    if c.save_strategy == "steps" and c.save_steps > steps:
        yield f"save_steps {c.save_steps:,} is more than {run}: only its end is saved"
    if c.logging_steps > steps:
        yield f"logging_steps {c.logging_steps:,} is more than {run}: only its end is shown"
    if warmup(c, steps) >= steps > 0:
        yield f"warm-up takes {warmup(c, steps):,} steps, not less than {run}"
    if plan.order.step_rows > len(plan.train):
        yield f"a step takes {plan.order.step_rows:,} rows, the set has {len(plan.train):,}: an epoch is one step"
    epochs = steps / plan.order.steps_per_epoch
    if epochs > 20:
        yield f"every row is trained {epochs:.0f} times"
    if c.tuning == "full" and c.learning_rate > 1e-4:
        yield f"learning_rate {c.learning_rate:g} is high for full fine-tuning (1e-5 to 5e-5 is usual)"
    samples = [one["name"] for one in plan.set.manifest["datasets"] if one["sample"]]
    if samples:
        yield f"{', '.join(samples)}: embedded samples, good for trying things out"


def memory(plan: Plan, parameters: int, trained: int) -> dict[str, int]:
    """Return bytes on each device: weights, gradients with optimizer, activations of one pass (roughly), and all.

    AdamW in mixed precision has 16 bytes for a trained weight (2 weight, 2 gradient, 12 fp32 copy and moments), in fp32
    as many (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1); ZeRO divides by the number of processes: from
    stage 1 the optimizer, from 2 the gradients, from 3 the weights. Activations: 34 x tokens x hidden bytes a layer in
    half precision (Korthikanti et al. 2022, arXiv 2205.05198, without the attention's scores), 2 x where recomputed,
    and the logits.
    """
    half, world, stage = plan.bf16 or plan.fp16, plan.device.world, zero.stage(plan.deepspeed)
    size = 2 if half else 4
    bits = plan.config.quantization_bit
    frozen = (parameters - trained) * (bits / 8 if bits else size)
    weights = (frozen + trained * size) / (world if stage == 3 else 1)
    optimizer = trained * (12 if half else 8) / (world if stage >= 1 else 1)
    gradients = trained * size / (world if stage >= 2 else 1)
    text = plan.source.text_config
    lengths = plan.train.lengths(np.arange(min(len(plan.train), 1024)))
    tokens = plan.micro * int(lengths.max())
    layers, hidden = getattr(text, "num_hidden_layers", 0), getattr(text, "hidden_size", 0)
    factor = (2 if plan.config.gradient_checkpointing else 34) * size // 2
    activations = factor * tokens * hidden * layers + 2 * size * tokens * getattr(text, "vocab_size", 0)
    parts = {"weights": weights, "gradients": gradients, "optimizer": optimizer, "activations": activations}
    return {name: int(value) for name, value in parts.items()} | {"all": int(sum(parts.values()))}


def count_parameters(plan: Plan) -> tuple[int, int]:
    """Return (parameters, trained ones) of the model, without its weights."""
    import torch

    bare = replace(plan.config, quantization_bit=None)
    with torch.device("meta"):
        empty = model.auto_class(plan.source).from_config(plan.source.config, trust_remote_code=bare.trust_remote_code)
        return model.count(model.tune(empty, bare, plan.where))
