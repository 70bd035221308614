"""`cli safetensors`."""

from __future__ import annotations

from pathlib import Path

import click

from schemas.errors import EXIT_CODES
from schemas.printed import json_line
from trainer.commands import libraries
from trainer.progress import Heartbeat


@click.command("safetensors", epilog=EXIT_CODES)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def safetensors_command(model: Path, out: Path | None, as_json: bool) -> None:
    """Write the weights of MODEL, a folder with pytorch_model.bin or *.pt files, as safetensors files.

    They go beside the old ones, or into the new folder OUT with everything else of MODEL. Old files can hold code that
    runs when they are read; here only tensors are read, and a file that asks for more is refused.

    \b
    Examples:
      cli safetensors ./chatglm3-6b
      cli safetensors ~/models/baichuan-7b ./baichuan-7b-safetensors
    """
    libraries.load("safetensors", "torch", "safetensors")
    from trainer.models.safetensors import convert

    with Heartbeat("converting"):
        done = convert(model, out)
    if as_json:
        shown = {"folder": str(done.folder), "files": done.files, "tensors": done.tensors, "bytes": done.bytes}
        click.echo(json_line(shown | {"copied": done.copied}))
        return
    files = f"{len(done.files)} file{'s' if len(done.files) > 1 else ''}"
    click.echo(f"{done.folder}: {done.tensors:,} tensors in {files}, {done.bytes / 2**30:.2f} GiB")
    if done.copied:
        click.echo(f"{done.copied} of them shared memory with others, and are stored on their own now")
