"""`cli inspect` and `cli verify`: what a set holds, and whether it is whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import EXIT_CODES, UsageError
from schemas.printed import json_line
from schemas.stores import AnyPath, path_of

if TYPE_CHECKING:
    from schemas.reader import CompiledSet


@click.command(epilog=EXIT_CODES)
@click.argument("out", type=path_of)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="train",
    show_default=True,
    help="The split to show.",
)
@click.option("--row", metavar="N|PLACE", help="One row, by its number in the split or its place in a source file.")
@click.option("--find", metavar="TEXT", help="Rows whose decoded text contains TEXT; case matters.")
@click.option("--dataset", metavar="NAME", help="Only rows of this dataset; also with --find, --sample or --rejected.")
@click.option("--sample", type=click.IntRange(1), metavar="K", help="K random rows, drawn with --seed.")
@click.option("--rejected", is_flag=True, help="Rejected rows, and why.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "sanity"]),
    default="text",
    show_default=True,
    help="Marked tokens, or ChatGLM3's sanity check: 'token': id -> label.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row; for --assert, one in all.")
@click.option(
    "--assert",
    "checks",
    multiple=True,
    metavar="NAME:0",
    help="Fail if a token of this role or policy key is trained in any row of any split. Can be repeated.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of --sample.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="Most rows to show.  [default: 5; 1 with --dataset alone]",
)
def inspect(out: AnyPath, rejected: bool, style: str, as_json: bool, checks: tuple[str, ...], **query: Any) -> None:
    """Show rows of the compiled set OUT token by token: which tokens are trained, and which are control tokens.

    OUT is a folder, or s3://BUCKET/SETS/NAME. Without options, the first row of each dataset is shown; with --limit
    alone, the first rows. For packed sets, row numbers count examples, not packs. A PLACE is what messages print:
    chats.jsonl:4#/messages/1 is line 4 of a file of lines, data.json#/3/messages/1 is row 3 of an array or a table,
    counted from 0; what follows the row may be left out. Roles are system, user, assistant,
    tool (a tool's result) and template. Policy keys are those of the weights policy, such as Observation: of react.

    \b
    Examples:
      cli inspect shards
      cli inspect shards --row 17
      cli inspect shards --row chats.jsonl:4
      cli inspect shards --find 'Action Input' --dataset agent --limit 2
      cli inspect shards --rejected
      cli inspect shards --assert tool:0 --assert Observation:0
    """
    from compiler.inspect import Query, show

    if as_json and style != "text":
        raise UsageError(f"--json --format {style}", "they do not go together", "Choose one of them.")
    chosen = Query(**query)
    if not show(
        opened_set(out, "inspect"), chosen, rejected=rejected, checks=checks, style="json" if as_json else style
    ):
        sys.exit(4)


def opened_set(out: AnyPath, command: str) -> CompiledSet:
    """Open the set. A file is either rows that are not compiled yet, or a part of a set."""
    from schemas.arrow import MANIFEST
    from schemas.reader import CompiledSet

    if isinstance(out, Path) and out.is_file():
        folder = next((place for place in out.parents if (place / MANIFEST).is_file()), None)
        how = (
            f"Name the folder of the set: cli {command} {folder}"
            if folder
            else f"Rows are compiled first: cli compile {out} -o shards, then cli {command} shards."
        )
        raise UsageError(str(out), "expected the folder of a compiled set, found a file", how)
    return CompiledSet.open(out)


@click.command(epilog=EXIT_CODES)
@click.argument("out", type=path_of)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(out: AnyPath, as_json: bool) -> None:
    """Check every file of OUT, a set or a checkpoint, against its digest, and name any damage by file and batch.

    \b
    Examples:
      cli verify shards
      cli verify s3://bucket/sets/chats
      cli verify output/checkpoint-600
    """
    from schemas import checkpoint

    if isinstance(out, Path) and ((out / checkpoint.COMPLETE).is_file() or (out / checkpoint.RUN).is_file()):
        _verify_checkpoint(out, as_json=as_json)
        return
    from compiler.commands import terminal
    from compiler.sets.verify import find_damage

    while True:
        opened = opened_set(out, "verify")
        problems = find_damage(opened, lambda shards: terminal.track(shards, "verifying"))
        if not problems or not opened.was_replaced():
            break
    shards = sum(len(opened.shards(split)) for split in opened.manifest["splits"])
    whole = f"{shards} shard{'' if shards == 1 else 's'} and {len(opened.manifest['files'])} files are whole"
    _report(out, {"shards": shards}, problems, whole, as_json=as_json)


def _verify_checkpoint(out: Path, *, as_json: bool) -> None:
    from schemas import checkpoint

    problems = checkpoint.damage(out)
    names = checkpoint.files(out)
    if not problems:
        problems = [f"{name}: not in {checkpoint.COMPLETE}" for name in checkpoint.strangers(out)]
        checkpoint.read_run(out)
    _report(out, {"files": len(names)}, problems, f"{len(names)} files are whole", as_json=as_json)


def _report(out: AnyPath, counts: dict[str, int], problems: list[str], whole: str, *, as_json: bool) -> None:
    """Print what was found; the exit code is 4 where something was."""
    if as_json:
        click.echo(json_line({"ok": not problems, **counts, "problems": problems}))
    elif not problems:
        click.echo(f"{out}: {whole}")
    else:
        for problem in problems:
            click.echo(problem, err=True)
    if problems:
        sys.exit(4)
