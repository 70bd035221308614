"""`cli why`, `cli diff` and `cli stats`: questions about sets. The answers are in compiler/questions."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import click

from compiler.commands.cache import cache_option
from compiler.commands.completion import format_names, names, template_names
from compiler.commands.sets import opened_set
from schemas.errors import EXIT_CODES, UsageError, shown
from schemas.printed import json_line
from schemas.stores import AnyPath, path_of


@click.command(
    params=[cache_option("cache", "The cache, as in compile; for sources that are read again.")], epilog=EXIT_CODES
)
@click.argument("out", type=path_of)
@click.argument("place")
@click.option("--sources", is_flag=True, help="Read the sources again also where the set can say what became of it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def why(out: AnyPath, place: str, sources: bool, as_json: bool, cache: Path) -> None:
    """Say what became of the source row at PLACE in the compiled set OUT.

    PLACE is what messages print: chats.jsonl:4 is line 4 of a file of lines, data.json#/3 is row 3 of an array or a
    table, counted from 0. The answer: its examples in the set with their share of trained tokens, or why it was
    rejected, or that --where, the mix or --dedup left it out, and which row a duplicate repeats. A set does not hold
    what it left out; where it cannot tell, its sources are compiled again into the cache, and compared with it.

    \b
    Examples:
      cli why shards chats.jsonl:4
      cli why shards data.json#/3 --json
    """
    from compiler.questions.why import RemadePlan, said
    from compiler.questions.why import why as answers_of

    opened = opened_set(out, "why")
    made: list[RemadePlan] = []

    def make_again() -> RemadePlan:
        from compiler.commands import terminal
        from compiler.commands.cores import cores
        from compiler.questions.again import plan_again

        if not made:
            with terminal.watch() as watcher:
                made.append(plan_again(opened, cache, cores(), watcher))
        return made[0]

    answers = answers_of(opened, place, make_again, sources=sources)
    if as_json:
        click.echo(json_line({"rows": [answer.json() for answer in answers]}))
        return
    for answer in answers:
        for line in said(answer):
            click.echo(shown(line))


@click.command(epilog=EXIT_CODES)
@click.argument("a", type=path_of)
@click.argument("b", type=path_of)
@click.option(
    "--limit", type=click.IntRange(0), default=3, show_default=True, metavar="N", help="Most rows of each kind."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(a: AnyPath, b: AnyPath, limit: int, as_json: bool) -> None:
    """Compare the compiled sets A and B: rows added, removed and changed, and what was asked otherwise.

    A row is known by its dataset, file, number, part and repeat. It is changed if its ids, its labels or its weights
    are others, and moved if it is in another split or in another order with the rows that both sets have. The first
    line says whether content_digest is equal. The exit code is 0 for sets that differ, too; "equal" of --json tells.

    \b
    Examples:
      cli diff shards-monday shards
      cli diff a b --json | jq .counts
    """
    from compiler.questions.diff import diff as compare
    from compiler.questions.diff import said

    found = compare(opened_set(a, "diff"), opened_set(b, "diff"), limit)
    if as_json:
        click.echo(json_line(found))
        return
    for line in said(found, str(a), str(b)):
        click.echo(shown(line))


@click.command(params=[cache_option("cache", "The cache, as in compile; for --exact.")], epilog=EXIT_CODES)
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--tokenizer", metavar="DIR|ID[@REVISION]", help="Tokenizer for tokens.  [default: the embedded demo tokenizer]"
)
@click.option(
    "--template", metavar="auto|NAME", shell_complete=names(template_names), help="Chat template, as in compile."
)
@click.option(
    "--format",
    "format_",
    metavar="NAME",
    shell_complete=names(format_names),
    help="Format of the rows.  [default: recognised]",
)
@click.option(
    "--sample",
    type=click.IntRange(0),
    metavar="N",
    help="Rows that tokens are estimated by; 0 = no tokens.  [default: 1000]",
)
@click.option("--seed", type=int, metavar="N", help="Seed of the sample.  [default: 0]")
@click.option("--exact", is_flag=True, help="Compile all rows, not a sample.")
@click.option(
    "--near", type=float, metavar="SIMILARITY", help="Count rows that repeat another nearly: 0.8 as --dedup near does."
)
@click.option("--languages", is_flag=True, help="Share of each language, by a sample of the rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stats(
    files: tuple[str, ...], as_json: bool, cache: Path, near: float | None, languages: bool, **given: Any
) -> None:
    """Count what is in a compiled set, or in FILES that are not compiled.

    Of a set: rows, tokens, trained tokens, turns, results of tools and images by dataset, quantiles of length and
    trained share, and how many rows and trained tokens each --max-length would keep whole. Of files, named as in
    compile: rows, keys and characters of all, and tokens of a seeded sample with a 95% interval, or of all rows with
    --exact. --near and --languages say more of both; the other options are for files.

    \b
    Examples:
      cli stats shards
      cli stats chats.jsonl --tokenizer ./Qwen2.5-7B-Instruct
      cli stats data/*.jsonl.gz --sample 0 --json
      cli stats chats.jsonl --near 0.8 --languages
    """
    _check_more(near, languages=languages)
    if _is_set(files):
        used = [name for name, value in given.items() if value not in (None, False)]
        if len(files) > 1 or used:
            what = (
                "a set is counted by itself"
                if len(files) > 1
                else f"--{used[0].rstrip('_')} is for files, and this is a set"
            )
            raise UsageError(files[0], what, "Name one set, or files that are not compiled.")
        from compiler.questions import figures

        opened = opened_set(path_of(files[0]), "stats")
        found = figures.figures(opened)
        lines = figures.said(found, files[0])
        if languages:
            from compiler.questions import languages as spoken

            found["languages"] = spoken.of_set(opened)
            lines = chain(lines, [""], spoken.said(found["languages"]))
        if near is not None:
            from compiler.questions import alike

            found["near"] = alike.of_set(opened, near)
            lines = chain(lines, [""], alike.said(found["near"]))
    else:
        from compiler.questions import raw

        found = _raw(files, cache, given, near, languages=languages)
        lines = raw.said(found)
    if as_json:
        click.echo(json_line(found))
        return
    for line in lines:
        click.echo(shown(line))


def _is_set(files: tuple[str, ...]) -> bool:
    """Whether one of the arguments is a set, or what is left of one."""
    from schemas.arrow import MANIFEST
    from schemas.manifest import whole

    folders = [path_of(file) for file in files]
    return any(
        (whole(folder) / MANIFEST).exists() or (isinstance(folder, Path) and any(folder.glob("*/shard-*.arrow")))
        for folder in folders
    )


def _check_more(near: float | None, *, languages: bool) -> None:
    """UsageError where what --near or --languages asks cannot be, or needs something that is not installed."""
    if near is not None:
        from compiler.options import parse_dedup
        from compiler.rows.shingles import require

        parse_dedup(f"near:{near:g}", f"--near {near:g}")
        require(f"--near {near:g}")
    if languages:
        from compiler.questions.languages import require as require_detector

        require_detector()


def _raw(
    files: tuple[str, ...], cache: Path, given: dict[str, Any], near: float | None, *, languages: bool
) -> dict[str, Any]:
    """Count files that are not compiled."""
    from compiler.commands import terminal
    from compiler.commands.cores import cores
    from compiler.datasets import hub
    from compiler.formats import get
    from compiler.options import CompileOptions, MixOptions
    from compiler.questions.raw import raw_figures

    sample = 1000 if given["sample"] is None else given["sample"]
    if given["exact"] and given["sample"] is not None:
        raise UsageError("--sample --exact", "all rows are no sample", "Leave one of them out.")
    if not sample and not given["exact"]:
        for name, used in (("tokenizer", False), ("template", False), ("seed", languages)):
            if given[name] is not None and near is None and not used:
                raise UsageError(
                    f"--{name}", "it is about tokens, and --sample 0 counts none", "Leave one of them out."
                )
    if given["format_"] is not None:
        get(given["format_"], "--format")
    more: dict[str, Any] = (
        {} if given["tokenizer"] is None else {"tokenizer": hub.tokenizer(given["tokenizer"], None)[0]}
    )
    options = CompileOptions(
        out=Path(),
        cache=cache,
        format=given["format_"] or "auto",
        template=given["template"] or "auto",
        mixing=MixOptions(seed=given["seed"] or 0),
        workers=cores(),
        **more,
    )
    with terminal.watch("reading") as watcher:
        if given["tokenizer"] is None and (sample or given["exact"]):
            watcher.say("warning: tokens are those of the demo tokenizer, which is no model's; pass --tokenizer DIR|ID")
        return raw_figures(files, options, watcher, sample=sample, exact=given["exact"], near=near, languages=languages)
