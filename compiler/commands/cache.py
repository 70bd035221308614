"""`cli cache`: the contents of the cache of compiled units, whether they are whole, and what to remove."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from schemas.errors import EXIT_CODES
from schemas.printed import json_line


def _user_cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("finetune-data-compiler"))


def cache_option(name: str, what: str) -> click.Option:
    """The option `--cache` of a command: its parameter, its help."""
    return click.Option(
        ["--cache", name],
        type=click.Path(path_type=Path, file_okay=False),
        default=_user_cache,
        show_default="the user's cache folder",
        metavar="DIR",
        help=what,
    )


@click.group(epilog=EXIT_CODES)
def cache() -> None:
    """List, verify and prune the cache of compiled units, which is never pruned automatically.

    \b
    Examples:
      cli cache list
      cli cache verify --remove
      cli cache prune --unused-for 30d --keep 10GB --dry-run
    """


_CACHE_OPTION = cache_option("folder", "The cache, as in compile.")


@cache.command("list", params=[_CACHE_OPTION], epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="Print the contents as JSON.")
def cache_list(folder: Path, as_json: bool) -> None:
    """List the contents of the cache, by the version of the code that made them and by dataset.

    An object is a compiled unit. A record alone is the certificate of a template or the check of a fast encoder.
    Contents that another version made, or this version with other libraries, are not usable.

    \b
    Examples:
      cli cache list
      cli cache list --cache /data/cache --json
    """
    from compiler.cache import prune
    from compiler.commands import cache_report, terminal

    found = prune.entries(folder)
    said = cache_report.contents(folder, found, prune.left_over(folder, found))
    if as_json:
        click.echo(json_line(said))
    else:
        terminal.print_out(cache_report.listing(said))


@cache.command("verify", params=[_CACHE_OPTION], epilog=EXIT_CODES)
@click.option("--remove", is_flag=True, help="Remove the damaged ones, and exit with 0.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def cache_verify(folder: Path, remove: bool, as_json: bool) -> None:
    """Check every object and record against its digest, and name the damaged ones.

    A damaged object is never used; its unit is compiled again. Damage points to a failing disk.

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
        click.echo(json_line({"ok": not wrong, "damaged": wrong, "removed": remove and bool(wrong)}))
    else:
        for path, what in wrong.items():
            click.echo(f"{path}: {what}{'; removed' if remove else ''}", err=True)
        if not wrong:
            click.echo(f"{folder}: everything is whole")
    if wrong and not remove:
        sys.exit(4)


@cache.command("prune", params=[_CACHE_OPTION], epilog=EXIT_CODES)
@click.option("--unused-for", metavar="TIME", help="Remove what no compile has used for this time: 45m, 12h, 30d, 2w.")
@click.option("--keep", metavar="SIZE", help="Remove the least recently used until at most this much is left: 10GB.")
@click.option("--other-versions", is_flag=True, help="Remove what this version cannot use.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what was removed as JSON.")
def cache_prune(
    folder: Path, unused_for: str | None, keep: str | None, other_versions: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove objects and records. Removed units are compiled again when they are needed.

    Damaged files and the remains of killed runs are always removed. While a compile uses the cache, nothing is
    removed and the exit code is 6.

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
        click.echo(json_line(said))
        return
    rest = f" and {said['left_over']:,} files of killed runs" if said["left_over"] else ""
    click.echo(f"{'would remove' if dry_run else 'removed'} {cache_report.amount(said)}{rest}")
