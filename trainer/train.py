"""A run, from its plan to its last checkpoint."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import PROCESSOR_FILES, TOKENIZER_FILES
from schemas.checkpoint import MADE_BY
from schemas.errors import Terminated
from trainer.data.collate import Collator, pad_id
from trainer.data.images import Images, images_of
from trainer.data.loader import Loader
from trainer.data.vision import find as eyes
from trainer.models.tune import count
from trainer.progress import Heartbeat
from trainer.run import checkpoints, deepspeed, log, memory, output, peers, probe, sanity, step
from trainer.run.best import History
from trainer.run.evaluate import Evaluator
from trainer.run.log import Log
from trainer.run.plan import RunPlan
from trainer.run.readme import readme
from trainer.run.schedule import learning_rate
from trainer.run.stop import Stop, on_sigterm
from trainer.run.throughput import Throughput, in_words

MODEL_FILES = (*TOKENIZER_FILES, *PROCESSOR_FILES, "generation_config.json")
"""Files copied from the model's folder into every checkpoint, in addition to those that PEFT or Transformers write."""


def train(plan: RunPlan, beat: Heartbeat, profile: int = 0) -> dict[str, Any]:
    """Run the plan and return its summary. All processes call it, in a process group.

    The profiler of torch records `profile` steps.
    """
    if plan.checkpoint and plan.start >= plan.steps:
        return _summary(plan, plan.checkpoint.run["tokens"], plan.start)
    if plan.device.rank:
        return _run(plan, None, beat, profile)
    c = plan.config
    with output.locked(plan.output, beat.write):
        output.begin(plan.output, beat.write, replaces=plan.checkpoint is None)
        trackers = log.open_trackers(c.report_to, plan.output, c.run_name, c.as_dict(), beat.write)
        with log.watch(plan.output, plan.start, trackers, beat) as shown:
            return _run(plan, shown, beat, profile)


def _run(plan: RunPlan, shown: Log | None, beat: Heartbeat, profile: int) -> dict[str, Any]:
    with on_sigterm() as stop, memory.explained(plan, beat), peers.explained(plan.device.rank):
        return _Run(plan, shown, beat, stop, profile=profile).to_the_end()


@dataclass
class _Run:
    """A run in this process. `shown` is None in all processes but the first."""

    plan: RunPlan
    shown: Log | None
    beat: Heartbeat
    stop: Stop
    wrapped: Any = None
    evaluator: Evaluator | None = None
    history: History | None = None
    tokens: int = 0
    profile: int = 0
    """Steps that the profiler of torch records."""
    speed: Throughput | None = None

    def to_the_end(self) -> dict[str, Any]:
        """Load the model, train, and return the summary."""
        plan, shown, config = self.plan, self.shown, self.plan.config
        self.beat.doing("reading what is evaluated")
        collate = Collator(
            plan.set.is_packed, pad_id(plan.set.manifest), plan.objective.sides, _images(plan), flat=plan.flat
        )
        loader = Loader(
            plan.train, plan.order, collate, plan.device.rank, plan.device.world, plan.micro, plan.accumulation,
            config.dataloader_num_workers, plan.objective.pair, plan.device.pinned,
        )  # fmt: skip
        self.evaluator = Evaluator.make(plan, plan.val, collate, self.beat) if plan.val else None
        tested = Evaluator.make(plan, plan.test, collate, self.beat) if plan.test else None
        self.history = History.make(config, plan.where, shown.records if shown else ()) if config.compares else None
        self.tokens = plan.checkpoint.run["tokens"] if plan.checkpoint else 0
        if self.history and self.history.stalled():
            return _summary(plan, self.tokens, plan.start, self.history)
        self.beat.doing("loading the model")
        self.wrapped = deepspeed.wrap(plan)
        if plan.keeps_reference:
            from trainer.run import reference

            evaluators = {"val": self.evaluator, "test": tested}
            reference.attach(plan, self.wrapped, collate, evaluators, self.beat, shown)
        deepspeed.restore(self.wrapped, plan)
        if shown:
            self.speed = Throughput.of(plan, self.wrapped.module)
            _introduce(plan, self.wrapped, shown)
        said = probe.check_head(self.wrapped, plan, collate)
        if shown and said:
            shown.say(said)
        if plan.set.is_packed:
            self.beat.doing("comparing packs with their sequences")
            difference = probe.check_packs(self.wrapped, plan, collate)
            if shown and difference is not None:
                shown.say(f"packs: the losses equal those of their sequences alone (difference {difference:.1e})")
        self.wrapped.train()
        done = self._train(loader)
        if tested:
            _evaluate(plan, tested, self.wrapped, done, shown, "test")
        return _summary(plan, self.tokens, done, self.history) | (self.speed.summary() if self.speed else {})

    def _train(self, loader: Loader) -> int:
        """Train until the last step, or until evaluations get no better; return the number of the last step."""
        plan, rates = self.plan, learning_rate(self.plan.config, self.plan.steps)
        self._training(plan.start)
        steps = loader.steps(plan.start, plan.steps)
        if self.profile and self.shown:
            from trainer.run.profile import profiled

            steps = profiled(steps, self.profile, plan, self.shown.say)
        began = time.perf_counter()
        for one in steps:
            waited, rate = time.perf_counter() - began, rates(one.number)
            result = step.run(self.wrapped, plan, one, rate, self.stop)
            done = one.number + 1
            self.tokens += result.tokens
            if self.shown and self.speed:
                seconds = time.perf_counter() - began
                speed = self.speed.step(result.tokens, result.trained, result.squares, seconds, waited)
                _record(plan, self.shown, done, rate, result, self.tokens, speed)
            if self._after(done, stopped=result.stop):
                return done
            began = time.perf_counter()  # waiting for rows counts for a step, evaluating and saving do not
        return plan.steps

    def _after(self, done: int, *, stopped: bool) -> bool:
        """Save and evaluate what is due after a step; whether the run ends early. Terminated if it was `stopped`."""
        plan, config = self.plan, self.plan.config
        # Saved before it is evaluated: an evaluation that fails must not cost the step.
        saves = stopped or done == plan.steps or plan.is_due(config.save_strategy, config.save_steps, done)
        if saves:
            self._save(done)
        if stopped:
            where, what = str(checkpoints.folder(plan.output, done)), f"saved after step {done:,}, as SIGTERM came"
            raise Terminated(where, what, "Run the same command again with --resume yes.")
        if not self.evaluator:
            return False
        if plan.is_due(config.eval_strategy, config.eval_steps or config.logging_steps, done):
            record = _evaluate(plan, self.evaluator, self.wrapped, done, self.shown)
            self._training(done)
            if self.history:
                self.history.add(record)
                if self.history.stalled():
                    if not saves:
                        self._save(done)
                    return True
        return False

    def _save(self, done: int) -> None:
        self.beat.doing("saving a checkpoint")
        best = self.history.best() if self.history and self.plan.config.load_best_model_at_end else None
        began = time.perf_counter()
        path = _save(self.plan, self.wrapped, done, self.tokens, self.shown, best.step if best else None)
        if self.shown and self.speed:
            self.speed.saving += (took := time.perf_counter() - began)
            self.shown.say(f"step {done:,}  saved {path} ({took:.1f} s)")
        self._training(done)

    def _training(self, done: int) -> None:
        self.beat.doing("training", self.plan.steps, done=done, unit="steps")


def _summary(plan: RunPlan, tokens: int, done: int, history: History | None = None) -> dict[str, Any]:
    path = checkpoints.folder(plan.output, done)
    said = {"steps": plan.steps, "trained": done - plan.start, "tokens": tokens, "checkpoint": str(path)}
    if history and history.stalled():
        said["stopped_early"] = done
    if history and (best := history.best()):
        said["best"] = {"step": best.step, "metric": history.metric, "value": best.value}
        if plan.config.load_best_model_at_end:
            said["checkpoint"] = str(checkpoints.folder(plan.output, best.step))
    return said


def _images(plan: RunPlan) -> Images | None:
    if not plan.set.has_media:
        return None
    return images_of(plan.set, eyes.eyes_of(plan.source.config, plan.source.folder), plan.config.media_dir)


def _introduce(plan: RunPlan, wrapped: Any, shown: Log) -> None:
    """Print what will run, and the first sequence as it will be trained."""
    total, some = count(wrapped.module)
    for line in sanity.lines(plan.train.sequences(plan.first_row)[0], plan.set):
        shown.say(line)
    if plan.order.windows or plan.set.cache:
        shown.say(f"order: {plan.order_in_words}")
    if plan.objective.settings:
        shown.say(plan.objective_in_words)
    shown.say(f"attention: {plan.attention.in_words}")
    shown.say(f"kernels: {plan.kernels.in_words}; optimizer: {plan.optimizer}")
    shown.say(
        f"{type(wrapped.module).__name__}: {some:,} of {total:,} parameters are trained ({some / total:.2%}); "
        f"steps {plan.start + 1:,} to {plan.steps:,} of {plan.order.step_rows} rows on {plan.device.world} x "
        f"{plan.device.name}"
    )
    shown.start(plan.start, plan.steps)


def _record(
    plan: RunPlan, shown: Log, done: int, rate: float, result: step.StepResult, tokens: int, speed: dict[str, Any]
) -> None:
    record = {
        "step": done, "epoch": round(done / plan.order.steps_per_epoch, 4), "loss": result.loss,
        "learning_rate": rate, "grad_norm": result.grad_norm, "weight": result.weight, "tokens": tokens,
    } | speed | result.logs  # fmt: skip
    shown.write(record)
    per_second = f"{speed['tokens_per_second']:,.0f} tokens/s"
    shown.advance(done, f"loss {result.loss:.4f}  {per_second}")
    if done % plan.config.logging_steps == 0 or done == plan.steps:
        means = {name: shown.mean(name, int(plan.config.logging_steps)) for name in ("loss", *result.logs)}
        rewards = log.brief({name: means[name] for name in result.logs})
        left = f"  {shown.left()} left" if done < plan.steps else ""
        shown.say(
            f"step {done:,}/{plan.steps:,}  epoch {record['epoch']:.2f}  loss {means['loss']:.4f}{rewards}  "
            f"lr {rate:.3g}  grad {result.grad_norm or 0:.3g}  {per_second} {in_words(speed)}{left}"
        )
        shown.report(record | means)


def _evaluate(
    plan: RunPlan, evaluator: Evaluator, wrapped: Any, done: int, shown: Log | None, name: str = "eval"
) -> dict[str, Any]:
    loss, by_dataset, logs = evaluator.loss(wrapped)
    record = {"step": done, f"{name}_loss": loss, f"{name}_loss_by_dataset": by_dataset}
    record |= {f"{name}_{key}": value for key, value in logs.items()}
    parts = ", ".join(f"{dataset} {value:.4f}" for dataset, value in by_dataset.items())
    said = [f"step {done:,}  {name} loss {loss:.4f} ({parts}){log.brief(logs)}"]
    if plan.config.predict_with_generate:
        path = plan.output / f"predictions-{done if name == 'eval' else name}.jsonl"
        scores = evaluator.scores(wrapped, path)
        record[f"{name}_scores"] = scores
        said.append(f"step {done:,}  {'  '.join(f'{n} {v:.1f}' for n, v in scores.items())}  ({path})")
    if shown:
        shown.write(record)
        for line in said:
            shown.say(line)
        shown.report(record)
    return record


def _save(plan: RunPlan, wrapped: Any, done: int, tokens: int, shown: Log | None, best: int | None) -> Path:
    files = {n: (plan.source.folder / n).read_bytes() for n in MODEL_FILES if (plan.source.folder / n).is_file()}
    if plan.config.trust_remote_code and plan.config.tuning == "full":  # without its code it is no model
        files |= {path.name: path.read_bytes() for path in plan.source.folder.glob("*.py")}
    files["README.md"] = readme(plan, done).encode()
    path = checkpoints.save(
        wrapped, plan.output, _run_record(plan, done, tokens), files, keep=plan.config.save_total_limit,
        best=best,
    )  # fmt: skip
    if shown:
        output.replaced(plan.output)
        if plan.config.plot_loss:
            shown.plot()
    return path


def _run_record(plan: RunPlan, done: int, tokens: int) -> dict[str, Any]:
    """The contents of a checkpoint's run.json: the run, its data and its model."""
    manifest = plan.set.manifest
    return plan.facts | {
        "made_by": MADE_BY,
        "run": plan.run,
        "step": done,
        "steps": plan.steps,
        "step_rows": plan.order.step_rows,
        "steps_per_epoch": plan.order.steps_per_epoch,
        "tokens": tokens,
        "world": plan.device.world,
        "resumes": plan.starts,
        "replaces": plan.replaces,
        "config": plan.config.as_dict(),
        "attention": plan.attention.record(),
        "kernels": plan.kernels.record(),
        "base_model": str(plan.source.folder.absolute()),
        "base_digest": plan.source.digest,
        "model": plan.source.record,
        "provenance": {
            "out": str(folder.absolute() if isinstance(folder := plan.set.folder, Path) else folder),
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
