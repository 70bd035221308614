"""`cli why` and `cli diff`: questions about sets. The answers are in compiler/questions."""

from __future__ import annotations

import json
from pathlib import Path

import click

from compiler.commands.cache import cache_option
from compiler.commands.sets import opened_set
from schemas.errors import EXIT_CODES, shown
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
    from compiler.questions.why import Plan, said
    from compiler.questions.why import why as answers_of

    opened = opened_set(out, "why")
    made: list[Plan] = []

    def make_again() -> Plan:
        from compiler.commands import terminal
        from compiler.commands.compile import workers
        from compiler.questions.again import plan_again

        if not made:
            with terminal.watch() as watcher:
                made.append(plan_again(opened, cache, workers(), watcher))
        return made[0]

    answers = answers_of(opened, place, make_again, sources=sources)
    if as_json:
        click.echo(json.dumps({"version": 1, "rows": [answer.json() for answer in answers]}, ensure_ascii=False))
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
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for line in said(found, str(a), str(b)):
        click.echo(shown(line))
