"""`cli follow`."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path

import click

from schemas import disk
from schemas.errors import EXIT_CODES, UsageError
from schemas.printed import json_line
from trainer.commands import libraries

_MODULES = {"torchrun": "torch.distributed.run", "deepspeed": "deepspeed.launcher.runner"}
"""What starts several processes, as modules of this Python."""


@click.command(
    "follow", epilog=EXIT_CODES, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--print", "only_print", is_flag=True, help="Only print the two calls and what they do not take over.")
@click.option("-o", "--out", default="shards", show_default=True, metavar="OUT", help="The set that is compiled.")
@click.option(
    "--config", default="follow.yaml", show_default=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Where the settings of a call without a file of its own are written.",
)  # fmt: skip
@click.option("--model", metavar="DIR", help="The model's folder, in place of the one that COMMAND names.")
@click.option("--compile", "more_compile", default="", metavar="OPTIONS", help="More options for cli compile.")
@click.option("--train", "more_train", default="", metavar="OPTIONS", help="More options for cli train.")
@click.option("--json", "as_json", is_flag=True, help="Print the two calls as JSON, and do not run them.")
@click.pass_context
def follow_command(
    ctx: click.Context, command: tuple[str, ...], only_print: bool, out: str, config: Path, model: str | None,
    more_compile: str, more_train: str, as_json: bool,
) -> None:  # fmt: skip
    """Do what a call of CogAgent, ChatGLM3, LLaMA-Factory or ms-swift does, with cli compile and cli train.

    The two calls are printed first; notes say what of COMMAND has no equivalent. A shell file is read, not run.
    torchrun and deepspeed in front of COMMAND start cli train with the same options.

    \b
    Examples:
      cli follow finetune.py data/CogAgentData ./cogagent-9b-20241220 configs/lora.yaml yes
      cli follow --print llamafactory-cli train examples/train_lora/qwen2.5_14B_lora_sft.yaml
      cli follow ./scripts/finetune_pt_multiturn.sh
      cli follow --train '--set max_steps=100' swift sft --model ./Qwen2.5-7B-Instruct --dataset chats.jsonl
    """
    libraries.need("follow", "yaml")
    from trainer.follow import plan as plans

    plan = plans.of(command, out, config, model, more_compile, more_train)
    if as_json:
        click.echo(json_line(plan.as_dict()))
        return
    if only_print and plan.file is not None:
        click.echo(f"cat > {shlex.quote(str(plan.file[0]))} <<'END'\n{plan.file[1]}END")
    for line in plan.lines():
        click.echo(line, err=not only_print)
    for note in (*plan.notes, *(plan.remarks if only_print else ())):  # cli train says its remarks itself
        click.echo(f"note: {note}", err=True)
    if only_print:
        return
    if plan.file is not None:
        _write(*plan.file)
    os.environ.update(plan.environment)
    root = ctx.find_root().command
    if code := root.main(list(plan.compile), prog_name="cli", standalone_mode=False):
        ctx.exit(code)
    if not plan.launcher:
        ctx.exit(root.main(list(plan.train), prog_name="cli", standalone_mode=False) or 0)
    spec = importlib.util.find_spec("cli")
    assert spec is not None and spec.origin is not None
    program = [sys.executable, "-m", _MODULES[plan.launcher[0]], *plan.launcher[1:], sys.executable, spec.origin]
    sys.stdout.flush()
    os.execv(sys.executable, [*program, *plan.train])


def _write(path: Path, text: str) -> None:
    """Write the settings of a call, unless the place is taken by a file that cli follow did not write."""
    from trainer.follow.plan import WRITTEN

    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(WRITTEN):
        what = "the settings of the call are to be written here, and another file is in the place"
        raise UsageError(str(path), what, "Give another place with --config FILE.")
    disk.write(path, text.encode())
