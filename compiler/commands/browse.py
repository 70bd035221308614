"""`cli browse`: the rows of a set in the browser."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from compiler.commands.sets import opened_set
from schemas.errors import EXIT_CODES, UsageError
from schemas.printed import json_line
from schemas.stores import AnyPath, path_of


@click.command(epilog=EXIT_CODES)
@click.argument("out", type=path_of)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    metavar="N",
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--no-open", is_flag=True, help="Print the address, and open no browser.")
@click.option(
    "--log",
    type=path_of,
    metavar="FILE|RUN",
    help="log.jsonl of a run of cli train, or its output_dir: shows the steps of the run and their rows.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the address and the set as one JSON object.")
def browse(out: AnyPath, port: int, no_open: bool, log: AnyPath | None, as_json: bool) -> None:
    """Show the rows of the compiled set OUT in the browser, until Ctrl-C.

    OUT is a folder, or s3://BUCKET/SETS/NAME. Rows are shown as in cli report, of sets of any size: page by page,
    filtered by split, dataset and text, ordered by length or trained share, by their number, by their place in a
    source file, and with --log by the step that trained them.

    The server listens on 127.0.0.1 alone, and answers only the address that is printed, which holds a secret.

    \b
    Examples:
      cli browse shards
      cli browse shards --log output --no-open --port 8400
    """
    from compiler.report.browse import Server, Site
    from compiler.report.browse.run import TrainedRun

    opened = opened_set(out, "browse")
    if log is not None and not isinstance(log, Path):
        raise UsageError(f"--log {log}", "a log is a file of this machine", "Copy the run here.")
    site = Site(opened, None if log is None else TrainedRun.open(log, opened))
    with Server(site, port) as server, tempfile.TemporaryDirectory(prefix="browse-") as folder:
        said = {"address": server.address, "set": opened.manifest["digest"], "rows": site.splits}
        click.echo(json_line(said) if as_json else f"{out}: {server.address}  (Ctrl-C ends it)")
        if not no_open and click.launch(_redirect(Path(folder), server.address).as_uri()) != 0:
            click.echo("no browser could be opened; open the address yourself", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("\nstopped", err=as_json)


def _redirect(folder: Path, address: str) -> Path:
    """A file that leads to the address. All users of a machine see the arguments of a browser, and not this file."""
    path = folder / "browse.html"
    path.touch(0o600)
    path.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">\n')
    return path
