"""`cli inspect` and `cli verify`: what a set holds, and whether it is whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import click

from compiler.commands.completion import inspect_formats, names, template_names
from schemas.errors import EXIT_CODES, UsageError
from schemas.printed import json_line
from schemas.stores import AnyPath, path_of

if TYPE_CHECKING:
    from schemas.reader import CompiledSet


@click.command(epilog=EXIT_CODES)
@click.argument("out", type=path_of)
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="The split to show.  [default: train]")
@click.option("--row", metavar="N|PLACE", help="One row, by its number in the split or its place in a source file.")
@click.option("--find", metavar="TEXT", help="Rows whose decoded text contains TEXT; case matters.")
@click.option("--dataset", metavar="NAME", help="Only rows of this dataset; also with --find, --sample or --rejected.")
@click.option("--sample", type=click.IntRange(1), metavar="K", help="K random rows, drawn with --seed.")
@click.option("--rejected", is_flag=True, help="Rejected rows, and why.")
@click.option(
    "--format",
    "style",
    metavar="NAME",
    shell_complete=names(inspect_formats),
    help="Of a set: text (marked tokens), or sanity (ChatGLM3's check). Of files: the format of their rows.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row; for --assert, one in all.")
@click.option(
    "--assert",
    "checks",
    multiple=True,
    metavar="NAME:0",
    help="Fail if a token of this role or policy key is trained in any row of any split. Can be repeated.",
)
@click.option("--seed", type=int, metavar="N", help="Seed of --sample.  [default: 0]")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="Most rows to show.  [default: 5; 1 with --dataset alone; 3 of files]",
)
@click.option("--tokenizer", metavar="DIR|ID[@REVISION]", help="Of files: show the masks that this tokenizer gives.")
@click.option(
    "--template",
    metavar="auto|NAME",
    shell_complete=names(template_names),
    help="Of files: the chat template, as in compile.",
)
@click.option("--kind", type=click.Choice(["sft", "preference", "kto", "pretrain"]), help="Of files, as in compile.")
@click.option("--columns", multiple=True, metavar="NAME=KEY,...", help="Of files, as in compile.")
@click.option("--tags", multiple=True, metavar="NAME=VALUE,...", help="Of files, as in compile.")
@click.option("--ignore", metavar="KEY,...", help="Of files, as in compile.")
@click.option("--repair", metavar="NAME,...", help="Of files, as in compile.")
def inspect(
    out: AnyPath, rejected: bool, style: str | None, as_json: bool, checks: tuple[str, ...], **query: Any
) -> None:
    """Show rows of the compiled set OUT token by token: which tokens are trained, and which are control tokens.

    OUT can also be a file or folder of rows that are not compiled, or a dataset_info.json with --dataset: the format
    and how it was recognised, what becomes of each key, and the first rows as conversations, or with --tokenizer as
    the tokens and masks that a compile gives.

    Of a set, OUT is a folder, or s3://BUCKET/SETS/NAME. Without options, the first row of each dataset is shown; with
    --limit alone, the first rows. For packed sets, row numbers count examples, not packs. A PLACE is what messages
    print: chats.jsonl:4#/messages/1 is line 4 of a file of lines, data.json#/3/messages/1 is row 3 of an array or a
    table, counted from 0; what follows the row may be left out. Roles are system, user, assistant, tool (a tool's
    result) and template. Policy keys are those of the weights policy, such as Observation: of react.

    \b
    Examples:
      cli inspect shards
      cli inspect shards --row 17
      cli inspect shards --row chats.jsonl:4
      cli inspect shards --find 'Action Input' --dataset agent --limit 2
      cli inspect shards --rejected
      cli inspect shards --assert tool:0 --assert Observation:0
      cli inspect chats.jsonl
      cli inspect chats.jsonl --format openai --limit 1
    """
    from compiler.inspect import Query, show

    for_files = {
        name: query.pop(name) for name in ("tokenizer", "template", "kind", "columns", "tags", "ignore", "repair")
    }
    if is_raw(out):
        from compiler.commands.raw import inspect_files

        of_a_set = query | {"rejected": rejected, "assert": checks}
        used = [key for key, value in of_a_set.items() if value and key not in ("limit", "dataset")]
        if used:
            raise UsageError(f"--{used[0]}", f"it is about a compiled set, and {out} is none", "Leave it out.")
        inspect_files(out, query["dataset"], query["limit"] or 3, style, for_files, as_json=as_json)
        return
    if used := [key for key, value in for_files.items() if value]:
        raise UsageError(f"--{used[0]}", "it is about files that are not compiled", "A set says how it was compiled.")
    style = style or "text"
    if style not in ("text", "sanity"):
        raise UsageError(f"--format {style}", "expected text or sanity for a set", "Formats of rows are for files.")
    query |= {"split": query["split"] or "train", "seed": query["seed"] or 0}
    if as_json and style != "text":
        raise UsageError(f"--json --format {style}", "they do not go together", "Choose one of them.")
    chosen = Query(**query)
    if not show(
        opened_set(out, "inspect"), chosen, rejected=rejected, checks=checks, style="json" if as_json else style
    ):
        sys.exit(4)


def is_raw(out: AnyPath) -> TypeGuard[Path]:
    """Whether a path names rows that are not compiled: a file, or a folder with such files, and no part of a set."""
    from schemas.arrow import MANIFEST
    from schemas.manifest import REPLACED

    if not isinstance(out, Path):
        return False
    if out.is_file():
        return not any((place / MANIFEST).is_file() for place in out.parents)
    if not out.is_dir() or any((out / name).exists() for name in (MANIFEST, REPLACED, ".partial")):
        return False
    from compiler.datasets.files import is_data

    return any(is_data(path) for path in out.iterdir() if path.is_file()) and not any(out.glob("*/shard-*.arrow"))


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
