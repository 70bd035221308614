"""`cli inspect FILE`: rows that are not compiled, and with a tokenizer the masks that a compile gives them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from compiler.commands import terminal
from compiler.commands.compile import repairs_of
from compiler.datasets import hub
from compiler.formats import get
from compiler.inspect import Query, show
from compiler.inspect.choose import choose
from compiler.inspect.page import Page
from compiler.inspect.raw import RawRows, raw_rows, show_raw
from compiler.inspect.rows import SplitExamples
from compiler.inspect.tokens import decode_row
from compiler.inspect.vocabulary import TokenBytes
from compiler.options import CompileOptions, MixOptions, Request, UnitOptions, parse_keys, parse_names
from compiler.pipeline import compile_set
from schemas.errors import TooManyRejects, UsageError, nearest
from schemas.printed import json_line
from schemas.reader import CompiledSet

_INFO = "dataset_info.json"


def inspect_files(
    out: Path, dataset: str | None, limit: int, format_: str | None, given: dict[str, Any], *, as_json: bool
) -> None:
    """Print what a compile would read of the files."""
    if given["template"] and not given["tokenizer"]:
        raise UsageError(f"--template {given['template']}", "it is about masks", "Add --tokenizer DIR|ID.")
    with TemporaryDirectory(prefix="inspect-") as folder:
        options = _options(out, dataset, format_, given, Path(folder))
        found = list(raw_rows(options, limit))
        page = Page.on(sys.stdout)
        if not as_json:
            for one in found:
                show_raw(one, page, conversations=not given["tokenizer"])
        opened = _compiled(replace(options, limit=limit)) if given["tokenizer"] else None
        if as_json:
            datasets = [one.as_json() for one in found]
            masks = None if given["tokenizer"] is None else [] if opened is None else _decoded(opened, limit)
            click.echo(json_line({"datasets": datasets, "masks": masks}))
        elif opened is not None:
            page.say("")
            show(opened, Query(limit=limit * len(found)), rejected=False, checks=(), style="text")
            _say_new_rejects(opened, found, page)


def _options(
    out: Path, dataset: str | None, format_: str | None, given: dict[str, Any], folder: Path
) -> CompileOptions:
    if format_ is not None:
        get(format_, "--format")
    more: dict[str, Any] = {"files": (str(out),)}
    if out.name == _INFO:
        entries = list(json.loads(out.read_text("utf-8")))
        if dataset is None or dataset not in entries:
            what = f"it has {len(entries):,} datasets" if dataset is None else f"it has no dataset {dataset!r}"
            raise UsageError(str(out), what, f"Name one with --dataset: {nearest(dataset or '', entries)}")
        more = {"registries": (out.parent,), "mix": (Request(dataset),)}
    elif dataset is not None:
        raise UsageError(f"--dataset {dataset}", f"it is about a set or a {_INFO}", "Leave it out.")
    if given["tokenizer"]:
        more["tokenizer"] = hub.tokenizer(given["tokenizer"], None)[0]
    return CompileOptions(
        out=folder / "set",
        cache=folder / "cache",
        format=format_ or "auto",
        kind=given["kind"] or "auto",
        columns=parse_names("--columns", given["columns"]),
        tags=parse_names("--tags", given["tags"]),
        template=given["template"] or "auto",
        units=UnitOptions(
            repairs=repairs_of(given["repair"] or ""), ignore=parse_keys("--ignore", given["ignore"] or "")
        ),
        mixing=MixOptions(shuffle=False),
        max_rejects="100%",
        **more,
    )


def _compiled(options: CompileOptions) -> CompiledSet | None:
    """The first rows as a set; None if all are rejected, and their messages are said already."""
    with terminal.watch() as watcher:
        try:
            compile_set(options, watcher)
        except TooManyRejects as problem:
            click.echo(f"no masks: {problem}", err=True)
            return None
    return CompiledSet.open(options.out)


def _decoded(opened: CompiledSet, limit: int) -> list[dict[str, Any]]:
    split, vocabulary = SplitExamples(opened, "train"), TokenBytes(opened)
    numbers, _ = choose(split, Query(limit=limit), vocabulary)
    return [decode_row(split, number, vocabulary).as_json() for number in numbers]


def _say_new_rejects(opened: CompiledSet, found: list[RawRows], page: Page) -> None:
    """Print rows that the tokenizer or its template refuses."""
    before = sum(not hasattr(made, "messages") for one in found for row in one.rows for made in row.made)
    if sum(entry["balance"]["rejected"] for entry in opened.manifest["datasets"]) > before:
        page.say("with this tokenizer and template:")
        show(opened, Query(), rejected=True, checks=(), style="text")
