"""A run, from its plan to its last checkpoint."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from registry import PROCESSOR_FILES, TOKENIZER_FILES
from schemas.errors import LockedError, UsageError
from trainer.config import zero
from trainer.data import images
from trainer.data.collate import Collator, pad_id
from trainer.data.loader import Loader
from trainer.models.tune import count
from trainer.progress import Heartbeat
from trainer.run import checkpoints, deepspeed, log, probe, sanity, step
from trainer.run.evaluate import Evaluator
from trainer.run.log import Log
from trainer.run.plan import RunPlan
from trainer.run.schedule import learning_rate

MODEL_FILES = (*TOKENIZER_FILES, *PROCESSOR_FILES, "generation_config.json")
"""Files copied from the model's folder into every checkpoint, in addition to those that PEFT or Transformers write."""


def train(plan: RunPlan, beat: Heartbeat) -> dict[str, Any]:
    """Run the plan and return its summary. All processes call it, in a process group."""
    if plan.checkpoint and plan.start >= plan.steps:
        return _summary(plan, plan.checkpoint.run["tokens"], plan.start)
    first = plan.device.rank == 0
    with locked(plan.output) if first else contextlib.nullcontext():
        if first and plan.checkpoint is None:
            _clear(plan.output)
        trackers = log.open_trackers(plan.config.report_to, plan.output, plan.config.run_name, plan.config.as_dict())
        view = log.watch(plan.output, plan.start, trackers, beat) if first else contextlib.nullcontext()
        with view as shown:
            return _run(plan, shown, beat)


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Lock the output folder: two runs in one folder would destroy each other's checkpoints."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another run is writing to it"
            raise LockedError(f"output_dir: {output}", what, "Wait for it, or choose another output_dir.") from None
        yield


def _clear(output: Path) -> None:
    """Remove the files of an earlier run; the plan has decided that this is wanted."""
    for path in (*output.glob("checkpoint-*"), *output.glob(".universal-*")):
        shutil.rmtree(path)
    for path in (output / log.LOG, output / log.PLOT, *output.glob("predictions-*.jsonl")):
        path.unlink(missing_ok=True)


def _run(plan: RunPlan, shown: Log | None, beat: Heartbeat) -> dict[str, Any]:
    config = plan.config

    def training(done: int) -> None:
        beat.doing("training", plan.steps, done=done, unit="steps")

    beat.doing("reading the validation split")
    collate = Collator(plan.set.is_packed, pad_id(plan.set.manifest), plan.objective.sides, _images(plan))
    loader = Loader(
        plan.train, plan.order, collate, plan.device.rank, plan.device.world, plan.micro, plan.accumulation,
        config.dataloader_num_workers, plan.objective.pair,
    )  # fmt: skip
    rates = learning_rate(config, plan.steps)
    evaluator = Evaluator.make(plan, collate, beat) if plan.val else None
    beat.doing("loading the model")
    wrapped = deepspeed.wrap(plan)
    if shown:
        _introduce(plan, wrapped, shown)
    if plan.set.is_packed:
        beat.doing("comparing a pack with its sequences")
        difference = probe.check_packs(wrapped, plan, collate)
        if shown and difference is not None:
            shown.say(f"packs: the losses equal those of their sequences alone (difference {difference:.1e})")
    tokens = plan.checkpoint.run["tokens"] if plan.checkpoint else 0
    wrapped.train()
    training(plan.start)
    began = time.perf_counter()
    for one in loader.steps(plan.start, plan.steps):
        rate = rates(one.number)
        result = step.run(wrapped, plan, one, rate)
        done, tokens = one.number + 1, tokens + result.tokens
        if shown:
            _record(plan, shown, done, rate, result, tokens, time.perf_counter() - began)
        if evaluator and plan.is_due(config.eval_strategy, config.eval_steps or config.logging_steps, done):
            _evaluate(plan, evaluator, wrapped, done, shown)
            training(done)
        if done == plan.steps or plan.is_due(config.save_strategy, config.save_steps, done):
            beat.doing("saving a checkpoint")
            _save(plan, wrapped, done, tokens, shown)
            training(done)
        began = time.perf_counter()  # waiting for rows counts for a step, evaluating and saving do not
    return _summary(plan, tokens, plan.steps)


def _summary(plan: RunPlan, tokens: int, done: int) -> dict[str, Any]:
    path = checkpoints.folder(plan.output, done)
    return {"steps": plan.steps, "trained": done - plan.start, "tokens": tokens, "checkpoint": str(path)}


def _images(plan: RunPlan) -> images.Images | None:
    if not plan.set.has_media:
        return None
    if plan.source.sees_one_size:
        return images.fixed_images(plan.set, plan.source, plan.config.media_dir)
    token = getattr(plan.source.config, "image_token_id", None)
    if token is None:
        what = "no image_token_id, but the set has images"
        raise UsageError(
            str(plan.source.folder / "config.json"), what, "Use the vision model that the set was compiled for."
        )
    return images.load_images(plan.set, plan.source.folder, plan.config.media_dir, int(token))


def _introduce(plan: RunPlan, wrapped: Any, shown: Log) -> None:
    """Print what will run, and the first sequence as it will be trained."""
    total, some = count(wrapped.module)
    for line in sanity.lines(plan.train.sequences(int(plan.order.step(plan.start)[0]))[0], plan.source.folder):
        shown.say(line)
    shown.say(
        f"{type(wrapped.module).__name__}: {some:,} of {total:,} parameters are trained ({some / total:.2%}); "
        f"steps {plan.start + 1:,} to {plan.steps:,} of {plan.order.step_rows} rows on {plan.device.world} x "
        f"{plan.device.name}"
    )
    shown.start(plan.start, plan.steps)


def _record(
    plan: RunPlan, shown: Log, done: int, rate: float, result: step.StepResult, tokens: int, seconds: float
) -> None:
    speed = result.tokens / seconds
    record = {
        "step": done, "epoch": round(done / plan.order.steps_per_epoch, 4), "loss": result.loss,
        "learning_rate": rate, "grad_norm": result.grad_norm, "weight": result.weight, "tokens": tokens,
        "tokens_per_second": round(speed, 1),
    } | result.logs  # fmt: skip
    shown.write(record)
    shown.advance(done, f"loss {result.loss:.4f}  {speed:,.0f} tokens/s")
    if done % plan.config.logging_steps == 0 or done == plan.steps:
        mean = shown.mean_loss(min(plan.config.logging_steps, done))
        left = f"  {shown.left()} left" if done < plan.steps else ""
        shown.say(
            f"step {done:,}/{plan.steps:,}  epoch {record['epoch']:.2f}  loss {mean:.4f}  lr {rate:.3g}  "
            f"grad {result.grad_norm or 0:.3g}  {speed:,.0f} tokens/s{left}"
        )
        shown.report(record | {"loss": mean})


def _evaluate(plan: RunPlan, evaluator: Evaluator, wrapped: Any, done: int, shown: Log | None) -> None:
    loss, by_dataset = evaluator.loss(wrapped)
    record = {"step": done, "eval_loss": loss, "eval_loss_by_dataset": by_dataset}
    parts = ", ".join(f"{name} {value:.4f}" for name, value in by_dataset.items())
    said = [f"step {done:,}  eval loss {loss:.4f} ({parts})"]
    if plan.config.predict_with_generate:
        path = plan.output / f"predictions-{done}.jsonl"
        scores = evaluator.scores(wrapped, path)
        record["eval_scores"] = scores
        said.append(f"step {done:,}  {'  '.join(f'{n} {v:.1f}' for n, v in scores.items())}  ({path})")
    if shown:
        shown.write(record)
        for line in said:
            shown.say(line)
        shown.report(record)


def _save(plan: RunPlan, wrapped: Any, done: int, tokens: int, shown: Log | None) -> None:
    files = {n: (plan.source.folder / n).read_bytes() for n in MODEL_FILES if (plan.source.folder / n).is_file()}
    path = checkpoints.save(
        wrapped, plan.output, _run_record(plan, done, tokens), files, keep=plan.config.save_total_limit
    )
    if shown:
        if plan.config.plot_loss:
            shown.plot()
        shown.say(f"step {done:,}  saved {path}")


def _run_record(plan: RunPlan, done: int, tokens: int) -> dict[str, Any]:
    """The contents of a checkpoint's run.json: the run, its data and its model."""
    manifest = plan.set.manifest
    return {
        "step": done,
        "steps": plan.steps,
        "step_rows": plan.order.step_rows,
        "steps_per_epoch": plan.order.steps_per_epoch,
        "tokens": tokens,
        "world": plan.device.world,
        "resumes": plan.resumes,
        "seed": plan.config.seed,
        "grouped": plan.order.lengths is not None,
        "tuning": plan.config.tuning,
        "zero_stage": zero.stage(plan.deepspeed),
        "config": plan.config.as_dict(),
        "set": manifest["digest"],
        "base_model": str(plan.source.folder),
        "model": plan.source.record,
        "provenance": {
            "out": plan.set.where,
            "kind": plan.set.kind,
            "datasets": [one["name"] for one in manifest["datasets"]],
            "template": {key: manifest["template"][key] for key in ("name", "digest", "provenance")},
            "stops": manifest["template"]["certificate"]["stops"],
            "tokenizer": manifest["tokenizer"]["digest"],
            "versions": manifest["versions"],
        },
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "deepspeed")}
