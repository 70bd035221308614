"""`cli report`: a set as one HTML file that shows what it is and which tokens are trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compiler.commands.sets import opened_set
from schemas.errors import EXIT_CODES
from schemas.printed import json_line
from schemas.stores import AnyPath, path_of

if TYPE_CHECKING:
    from compiler.report.page import Changes
    from schemas.reader import CompiledSet

_EXAMPLES = 5
"""Rows of each kind of change that are named."""


@click.command("report", epilog=EXIT_CODES)
@click.argument("out", type=path_of)
@click.option(
    "-o",
    "--output",
    type=path_of,
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="The file to write. One that exists is replaced only if it is a report.",
)
@click.option(
    "--rows",
    "shown",
    type=click.IntRange(0, 2000),
    default=100,
    show_default=True,
    metavar="N",
    help="Most rows to show. The file stays below 5 MB: of long rows fewer are shown, and the page says so.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed by which rows are drawn.")
@click.option(
    "--against", type=path_of, metavar="SET", help="Say what changed since this set: rows, settings and numbers."
)
@click.option("--open", "open_it", is_flag=True, help="Open the file in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print where the report is and what it shows as JSON.")
def report_(
    out: AnyPath, output: AnyPath, shown: int, seed: int, against: AnyPath | None, open_it: bool, as_json: bool
) -> None:
    """Write a report of the compiled set OUT: one HTML file, which needs no network and runs nothing from the data.

    OUT is a folder, or s3://BUCKET/SETS/NAME. The report shows the mix as it came out, lengths and trained shares,
    the balance, rejected rows by reason, remarks, and rows with their tokens: which are trained, and with which weight.
    With --against it has what cli diff says, too.

    \b
    Examples:
      cli report shards
      cli report shards -o shards.html --rows 300 --open
      cli report shards --against shards-monday
    """
    from compiler.commands import terminal
    from compiler.commands.report import remarks
    from compiler.report import check_place, make_report, write_report

    opened = opened_set(out, "report")
    path: Path = check_place(output, opened.folder)
    changes = None if against is None else _changes(opened_set(against, "report"), opened)
    made = make_report(
        opened,
        changes=changes,
        remarks=remarks(opened.manifest),
        shown=shown,
        seed=seed,
        track=lambda batches: terminal.track(batches, "reading", "batches"),
    )
    size = write_report(made.html, path)
    if as_json:
        summary: dict[str, Any] = {
            "report": str(path),
            "bytes": size,
            "set": opened.manifest["digest"],
            "rows": made.rows,
            "rows_shown": made.shown,
            "rejected": made.rejected,
            "rejected_shown": made.rejected_shown,
        }
        if changes is not None:
            summary["changes"] = changes.counts
        click.echo(json_line(summary))
    else:
        rejected = f", {made.rejected_shown:,} of {made.rejected:,} rejected rows" if made.rejected else ""
        click.echo(f"wrote {path}: {made.shown:,} of {made.rows:,} rows{rejected}, {size / 1e6:.1f} MB")
    if open_it and click.launch(path.absolute().as_uri()) != 0:
        click.echo(f"no browser could be opened; open {path} yourself", err=True)


def _changes(earlier: CompiledSet, opened: CompiledSet) -> Changes:
    """What `cli diff` says of the two."""
    from compiler.questions.diff import changed_rows, changed_values, diff
    from compiler.report.page import Changes

    found = diff(earlier, opened, limit=_EXAMPLES)
    rows, values = list(changed_rows(found)), list(changed_values(found))
    return Changes(str(earlier.folder), found["rows"], found["equal"], found["counts"], rows, values, found["remarks"])
