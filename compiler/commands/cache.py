"""`cli cache`: what is in the cache of compiled units, whether it is whole, and what is to be removed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from schemas.errors import EXIT_CODES


def _user_cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("finetune-data-compiler"))


def cache_option(name: str, what: str) -> Callable[[Any], Any]:
    """Return the option `--cache` for a command: its parameter, its help."""
    return click.option(
        "--cache",
        name,
        type=click.Path(path_type=Path, file_okay=False),
        default=_user_cache,
        show_default="the user's cache folder",
        metavar="DIR",
        help=what,
    )


@click.group(epilog=EXIT_CODES)
def cache() -> None:
    """List, verify and prune the cache of compiled units, which only grows by itself.

    \b
    Examples:
      cli cache list
      cli cache verify --remove
      cli cache prune --unused-for 30d --keep 10GB --dry-run
    """


_CACHE_OPTION = cache_option("folder", "The cache, as in compile.")


@cache.command("list", epilog=EXIT_CODES)
@_CACHE_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print the contents as JSON.")
def cache_list(folder: Path, as_json: bool) -> None:
    """Say what is in the cache: by version of the code that made it, and by dataset.

    An object is a compiled unit; a record alone is a template's certificate or the check of a fast encoder. What
    another version made, or this one with other libraries, is never used again by this one.

    \b
    Examples:
      cli cache list
      cli cache list --cache /data/cache --json
    """
    from compiler.cache import prune
    from compiler.commands import cache_report, terminal

    said = cache_report.contents(folder, prune.entries(folder), prune.left_over(folder))
    if as_json:
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        terminal.print_out(cache_report.listing(said))


@cache.command("verify", epilog=EXIT_CODES)
@_CACHE_OPTION
@click.option("--remove", is_flag=True, help="Remove what is damaged; the exit code is 0 then.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def cache_verify(folder: Path, remove: bool, as_json: bool) -> None:
    """Check every object and record against its digest, and name what is damaged.

    A damaged object is never used in any case: it is compiled again. Damage says something of the disk.

    \b
    Examples:
      cli cache verify
      cli cache verify --remove
    """
    from compiler.cache import prune
    from compiler.commands import terminal

    check = prune.remove_damaged if remove else prune.verify
    wrong = check(folder, terminal.track)
    if as_json:
        click.echo(json.dumps({"ok": not wrong, "damaged": wrong, "removed": remove and bool(wrong)}))
    else:
        for path, what in wrong.items():
            click.echo(f"{path}: {what}{'; removed' if remove else ''}", err=True)
        if not wrong:
            click.echo(f"{folder}: everything is whole")
    if wrong and not remove:
        sys.exit(4)


@cache.command("prune", epilog=EXIT_CODES)
@_CACHE_OPTION
@click.option("--unused-for", metavar="TIME", help="Remove what no compile used for so long: 45m, 12h, 30d, 2w.")
@click.option("--keep", metavar="SIZE", help="Remove the least recently used until at most so much is left: 10GB.")
@click.option("--other-versions", is_flag=True, help="Remove what this version cannot use.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what was removed as JSON.")
def cache_prune(
    folder: Path, unused_for: str | None, keep: str | None, other_versions: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove objects and records. Whatever is removed is compiled again when it is needed.

    What is damaged and what killed runs left is removed in any case. While a compile uses the cache nothing is
    removed, and the exit code is 6.

    \b
    Examples:
      cli cache prune --unused-for 30d
      cli cache prune --keep 10GB --other-versions --dry-run
    """
    from compiler.cache import prune
    from compiler.commands import cache_report

    wanted = {
        "unused_for": None if unused_for is None else cache_report.parse_age(unused_for),
        "keep": None if keep is None else cache_report.parse_size(keep),
        "other_versions": other_versions,
    }
    said = cache_report.removal(*prune.prune(folder, dry_run=dry_run, **wanted), dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(said))
        return
    rest = f" and {said['left_over']:,} files of killed runs" if said["left_over"] else ""
    click.echo(f"{'would remove' if dry_run else 'removed'} {cache_report.amount(said)}{rest}")
