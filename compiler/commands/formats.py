"""`cli formats`: the source formats in a table, or one of them with an example."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import Any

import click

from compiler.commands.completion import format_names, names
from schemas.errors import EXIT_CODES
from schemas.printed import VERSION


@click.command(epilog=EXIT_CODES)
@click.argument("name", required=False, shell_complete=names(format_names))
@click.option("--json", "as_json", is_flag=True, help="Print everything about the formats as JSON.")
def formats(name: str | None, as_json: bool) -> None:
    """List the source formats, or describe the format NAME with an example row.

    \b
    Examples:
      cli formats
      cli formats sharegpt
    """
    from compiler.formats import FORMATS, get

    described = [_described(format_) for format_ in ([get(name, "formats")] if name else FORMATS.values())]
    if as_json:
        click.echo(json.dumps([{"version": VERSION, **one} for one in described], ensure_ascii=False))
    elif name:
        _print_one(described[0])
    else:
        _print_table(described)


def _described(format_: Any) -> dict[str, Any]:
    """A format as `--json` prints it."""
    card = format_.about
    return {
        "name": format_.name,
        "like": format_.like or None,
        "title": card["title"],
        "description": card["description"],
        "columns": format_.columns,
        "tags": format_.tags,
        "weights": format_.weights,
        "kinds": list(format_.kinds),
        "examples": card["examples"],
    }


def _print_table(described: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from compiler.commands import terminal

    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("format", no_wrap=True)
    table.add_column("rows")
    table.add_column("kinds", no_wrap=True)
    for entry in described:
        looks = _looks(entry["examples"][0], set(entry["columns"].values()))
        table.add_row(entry["name"], f"{entry['title']}\n{looks}", ", ".join(entry["kinds"]))
    terminal.print_out(table)
    click.echo("\ncli formats NAME shows an example row; cli formats --json prints everything.")


def _looks(row: Any, columns: set[str]) -> str:
    """The keys of a row that the format reads, with those inside lists: {conversations: [{from, value}]}."""
    if isinstance(row, list):
        return _items(row).removeprefix(": ")
    return "{" + ", ".join(f"{key}{_items(value)}" for key, value in row.items() if key in columns) + "}"


def _items(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else None
    return ": [{" + ", ".join(first) + "}]" if isinstance(first, dict) else ""


def _print_one(entry: dict[str, Any]) -> None:
    click.echo(_wrapped(f"{entry['name']}: ", entry["description"], indent=2))
    click.echo()
    click.echo(_wrapped("columns  ", ", ".join(_pair(*pair) for pair in entry["columns"].items())))
    if entry["tags"]:
        click.echo(_wrapped("tags     ", ", ".join(_pair(*pair) for pair in entry["tags"].items())))
    click.echo(f"kinds    {', '.join(entry['kinds'])}")
    click.echo(f"weights  {entry['weights']}")
    click.echo()
    click.echo(_pretty(entry["examples"][0]))
    if more := len(entry["examples"]) - 1:
        click.echo(f"\n{more} more example{'s' * (more > 1)}: cli formats {entry['name']} --json")


def _pair(name: str, actual: str | None) -> str:
    """A column or tag: its name in dataset_info.json, and its key in the rows."""
    return name if actual == name else f"{name}={actual}"


def _pretty(value: Any, indent: str = "", key: str = "") -> str:
    """A JSON value in 80 columns where its texts allow it; what fits on one line is on one line."""
    line = key + json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, dict | list) or len(indent + line) < 80:
        return indent + line
    inner = indent + "  "
    if isinstance(value, dict):
        first, last = "{}"
        items = [_pretty(item, inner, f"{json.dumps(name, ensure_ascii=False)}: ") for name, item in value.items()]
    else:
        first, last = "[]"
        items = [_pretty(item, inner) for item in value]
    return f"{indent}{key}{first}\n" + ",\n".join(items) + f"\n{indent}{last}"


def _wrapped(label: str, text: str, indent: int | None = None) -> str:
    width = min(shutil.get_terminal_size().columns, 110)
    begin = " " * (len(label) if indent is None else indent)
    return textwrap.fill(label + text, width, subsequent_indent=begin, break_long_words=False, break_on_hyphens=False)
