"""`cli export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from schemas.errors import EXIT_CODES
from schemas.printed import json_line
from schemas.stores import AnyPath, path_of
from trainer.commands import libraries
from trainer.progress import Heartbeat


@click.command("export", epilog=EXIT_CODES)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--set", "data", type=path_of, metavar="DIR", help="Where the compiled set is, if it has moved.")
@click.option(
    "--model", "base", type=click.Path(path_type=Path), metavar="DIR", help="Where the base model is, if it has moved."
)
@click.option(
    "--dtype", type=click.Choice(("bf16", "fp16", "fp32")), help="Type of the weights; by default the base model's own."
)
@click.option(
    "--layout",
    type=click.Choice(("transformers", "original")),
    help="original: names and files of the model's own code (ChatGLM3, Qwen-7B and others), for tools that know those.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the provenance as JSON.")
def export_command(
    checkpoint: Path,
    out: Path,
    data: AnyPath | None,
    base: Path | None,
    dtype: str | None,
    layout: str | None,
    as_json: bool,
) -> None:
    """Write CHECKPOINT as a Hugging Face folder OUT: LoRA merged, tokenizer, chat template, stop tokens, provenance.

    OUT is written completely or not at all. An earlier export is replaced; a folder with anything else is left alone.

    \b
    Examples:
      cli export output/checkpoint-600 exported
      cli export output/checkpoint-600 exported --model /models/Qwen2.5-7B-Instruct --set /data/shards
      cli export output/checkpoint-600 chatglm3-mine --layout original --dtype fp16
    """
    libraries.load("export", "torch", "transformers", "peft")
    libraries.quiet()
    from trainer.use.checkpoint import open_checkpoint
    from trainer.use.export import DTYPES, export

    with Heartbeat("exporting"):
        trained = open_checkpoint(checkpoint, data=data, base=base)
        provenance = export(trained, out, dtype=DTYPES[dtype] if dtype else None, layout=layout)
    if as_json:
        click.echo(json_line(provenance))
        return
    names = ", ".join(entry["name"] for entry in provenance["set"]["datasets"] if _is_trained(entry["realized"]))
    click.echo(f"{out}: {provenance['base_model']} after {provenance['step']:,} steps on {names}")
    click.echo(provenance["note"])


def _is_trained(realized: dict[str, Any]) -> bool:
    """Whether some rows of a dataset are not held out."""
    return bool(realized["rows"] > realized["val_rows"] + realized.get("test_rows", 0))
