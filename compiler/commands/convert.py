"""`cli convert`: a set in the layout that another trainer reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compiler.commands.cache import cache_option
from compiler.commands.sets import opened_set
from schemas.errors import EXIT_CODES, InputError
from schemas.printed import json_line
from schemas.stores import AnyPath, path_of

if TYPE_CHECKING:
    from compiler.convert.base import RowLines

TARGETS = ("hf", "llamafactory", "megatron-bridge", "messages")
"""As in compiler/convert/targets.py, which is imported when the command runs; a test compares them."""


@click.command(
    "convert",
    params=[cache_option("cache", "The cache, as in compile; for messages, whose sources are read again.")],
    epilog=EXIT_CODES,
)
@click.argument("out", type=path_of)
@click.option("--to", "target", type=click.Choice(TARGETS), required=True, help="Layout to write.")
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write."
)
@click.option(
    "--split", "splits", multiple=True, type=click.Choice(["train", "val", "test"]),
    help="Only this split. Can be repeated.  [default: all that have rows]",
)  # fmt: skip
@click.option("--drop-weights", is_flag=True, help="Train all trained tokens alike.  [default: refuse loss weights]")
@click.option("--unpack", is_flag=True, help="Write the examples of packs one by one.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def convert_command(out: AnyPath, target: str, folder: Path, as_json: bool, cache: Path, **asked: Any) -> None:
    """Write the compiled set OUT for another trainer: the same token ids and labels in its own layout.

    hf is for TRL, Unsloth, transformers' Trainer and axolotl. llamafactory is LLaMA-Factory's tokenized_path, with
    neat packing for packed sets. megatron-bridge is packed Parquet. messages is for trainers that tokenize: JSON Lines
    of the conversations, read again from the set's sources, which must be as they were. What a layout cannot carry is
    refused. DIR is written whole or not at all; an earlier conversion is replaced, a folder with anything else is left
    alone.

    \b
    Examples:
      cli convert shards --to hf -o shards-hf
      cli convert shards --to llamafactory -o tokenized --drop-weights
      cli convert packed --to megatron-bridge -o packed-parquet --split train
      cli convert shards --to messages -o conversations
    """
    from compiler.commands import terminal
    from compiler.convert.convert import Choices, convert
    from compiler.convert.targets import TARGETS as TABLE

    opened = opened_set(out, "convert")
    with terminal.watch("converting") as watcher:

        @contextmanager
        def lines(kept_in: Path) -> Iterator[RowLines]:
            from compiler.commands.cores import cores
            from compiler.convert.messages import source_lines
            from compiler.sets.again import Unknown, made_again

            try:
                with made_again(opened, cache, cores(), watcher) as plan, source_lines(plan, kept_in) as found:
                    yield found
            except Unknown as reason:
                what = f"its conversations cannot be read again: {reason}"
                raise InputError(str(out), what, "The other layouts need no sources.") from reason

        result = convert(opened, TABLE[target], folder, Choices(**asked), partial(watcher.linked, target), lines)
    if as_json:
        click.echo(json_line(result))
        return
    what = "packs" if result["packed"] else "rows"
    counts = ", ".join(f"{name} {one['rows']:,} {what}" for name, one in result["splits"].items())
    click.echo(f"{folder}: {counts}, for {TABLE[target].readers}")
    if asked["drop_weights"]:
        dropped = result["dropped_weights"]
        click.echo(f"--drop-weights: {dropped:,} {what}" if dropped else "--drop-weights: no effect, all weights are 1")
