"""`cli train`."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from schemas.errors import EXIT_CODES, Problem
from schemas.printed import json_line
from trainer.commands import libraries
from trainer.progress import Heartbeat

LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "safetensors", "yaml", "matplotlib")


@click.command(epilog=EXIT_CODES)
@click.argument("out")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--model",
    metavar="DIR|ID",
    help="The model's folder or hub id, if CONFIG names none; same as --set model_name_or_path=DIR.",
)
@click.option(
    "--hub",
    type=click.Choice(["huggingface", "modelscope"]),
    help="Hub of a model that is no folder; same as --set hub=NAME.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override a key (in the names of cli train's own files); null unsets it. Can be repeated.",
)  # fmt: skip
@click.option("--resume", metavar="yes|N", help="Resume from the last complete checkpoint, or from checkpoint-N.")
@click.option("--dry-run", is_flag=True, help="Check everything and print what would run, without loading weights.")
@click.option(
    "--profile", type=click.IntRange(min=1), metavar="N",
    help="Record N steps, from the second on, with the profiler of torch: a trace in output_dir.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the summary (or the dry run) as JSON.")
def train(
    out: str,
    config: Path,
    model: str | None,
    hub: str | None,
    overrides: tuple[str, ...],
    resume: str | None,
    dry_run: bool,
    profile: int | None,
    as_json: bool,
) -> None:
    """Fine-tune a model on the compiled set OUT, as CONFIG says.

    CONFIG is YAML with the names of Transformers (docs/train.md), or an unmodified file of CogAgent, ChatGLM3,
    LLaMA-Factory or ms-swift; a shell file is read, not run. Runs on one device, or on several under torchrun or
    deepspeed.

    \b
    Examples:
      cli train shards lora.yaml
      cli train shards lora.yaml --dry-run
      cli train shards lora.yaml --resume yes
      cli train shards lora.yaml --model ./Qwen2.5-7B-Instruct --set learning_rate=1e-4 --set max_steps=100
      torchrun --nproc-per-node 2 --no-python cli train shards lora.yaml
    """
    libraries.need("train", *LIBRARIES)
    from trainer import device
    from trainer.config import load as configs

    named = {"model_name_or_path": model, "hub": hub}
    given = [*(f"{key}={json.dumps(value)}" for key, value in named.items() if value), *overrides]
    try:
        loaded = configs.load(config, given)
        with Heartbeat("importing libraries", silent=device.launched()[0] > 0) as beat:
            summary = _train(out, loaded, resume, dry_run, profile or 0, as_json, beat)
    except Problem as problem:
        if not device.first_to_say(str(problem)):
            sys.exit(problem.exit_code)
        raise
    if summary is not None:
        click.echo(json_line(summary) if as_json else _sentence(summary))


def _sentence(summary: dict[str, Any]) -> str:
    if not summary["trained"]:
        return f"nothing left to do: this run ended with {summary['checkpoint']}"
    steps = "1 step" if summary["trained"] == 1 else f"{summary['trained']:,} steps"
    early = " (stopped early)" if "stopped_early" in summary else ""
    best = "best: {metric} {value:.4f} at step {step:,}, ".format(**summary["best"]) if "best" in summary else ""
    return f"trained {steps}{early}, {summary['tokens']:,} tokens in total: {best}{summary['checkpoint']}"


def _train(
    out: str, loaded: Any, resume: str | None, dry_run: bool, profile: int, as_json: bool, beat: Heartbeat
) -> dict[str, Any] | None:
    from trainer import device
    from trainer.run import plan, report
    from trainer.run import resume as resumes

    found = device.find(use_cpu=loaded.config.use_cpu)
    beat.doing("checking the set and the model")
    again = partial(plan.make, out, loaded, resume, found)
    decided = again()
    if dry_run:
        beat.doing("checking the checkpoint")
        decided = resumes.whole(decided, again)
        beat.doing("counting tokens and parameters")
        click.echo(json_line(report.facts(decided)) if as_json else report.text(decided))
        return None
    from trainer.train import train as run

    libraries.quiet(bars=False)
    beat.doing("starting DeepSpeed")
    with device.process_group(found, loaded.config.ddp_timeout):
        if decided.checkpoint:
            beat.doing("checking the checkpoint")
            decided = resumes.whole(decided, again)
        if found.rank == 0:
            for line in (*decided.remarks, *report.lints(decided)):
                click.echo(f"note: {line}", err=True)
        summary = run(decided, beat, profile)
    return summary if found.rank == 0 else None
