"""`cli compile`."""

from __future__ import annotations

import gc
import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compiler.commands.cache import cache_option
from schemas.errors import EXIT_CODES, UsageError
from schemas.stores import path_of

if TYPE_CHECKING:
    from compiler.options import CompileOptions

T = TypeVar("T")


def _workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@click.command("compile", epilog=EXIT_CODES)
@click.argument("files", nargs=-1)
@click.option(
    "--mix",
    multiple=True,
    metavar="NAME:SHARE,...",
    help="Datasets and their shares: NAME:SHARE, NAME#ROWS, or NAME for all of it. May be given again.",
)
@click.option(
    "--self-cognition",
    type=click.IntRange(0, 10**7),
    default=0,
    show_default=True,
    metavar="N",
    help="Add N rows of who the model is, drawn evenly from the embedded pool.",
)
@click.option(
    "--self-cognition-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Rows {query, response, tag: zh|en} with {{NAME}} and {{AUTHOR}} to draw from instead.",
)
@click.option("--name", metavar="ZH[,EN]", help="The model's name in self-cognition rows.")
@click.option("--author", metavar="ZH[,EN]", help="Who made it, in self-cognition rows.")
@click.option(
    "--registry",
    "registries",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with a dataset_info.json and its data, or with hub datasets. May be given again.",
)
@click.option(
    "--format",
    default="auto",
    show_default=True,
    metavar="auto|NAME",
    help="Format of FILES; see cli formats.",
)
@click.option(
    "--tokenizer",
    metavar="DIR|ID",
    help="Folder with a tokenizer.json, or a hub id.  [default: the embedded demo tokenizer]",
)
@click.option(
    "--template",
    default="auto",
    show_default=True,
    metavar="auto|NAME",
    help="Chat template: the tokenizer's own, or a card's name.",
)
@click.option(
    "--weights",
    default="auto",
    show_default=True,
    metavar="auto|none|NAME",
    help="Weights policy: none, react, hermes, ...; auto is the dataset's own.",
)
@click.option(
    "--max-length",
    type=click.IntRange(1, 2**31 - 1),
    metavar="N",
    help="Longest example in tokens.  [default: no limit]",
)
@click.option(
    "--overlength",
    type=click.Choice(["turns", "last-turns", "reject", "cut"]),
    default="turns",
    show_default=True,
    help="Longer ones: keep the first whole turns, keep the system text and last turns, reject, or cut.",
)
@click.option(
    "--pack",
    type=click.IntRange(1, 2**31 - 1),
    metavar="LENGTH",
    help="Put examples together to packs of at most LENGTH tokens; --max-length is LENGTH then.",
)
@click.option(
    "--mix-unit",
    type=click.Choice(["rows", "tokens", "trained_tokens"]),
    default="rows",
    show_default=True,
    help="What shares are shares of.",
)
@click.option(
    "--total",
    type=click.IntRange(1, 10**12),
    metavar="N",
    help="Size of the shared part of the mix, in --mix-unit.  [default: the most without repeats]",
)
@click.option(
    "--max-repeats",
    type=click.IntRange(0, 10**12),
    metavar="R",
    help="How often a row may be used again: 0 = never, 1 = twice in all.  [default: 0, or as --total needs]",
)
@click.option(
    "--val-size",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="X",
    help="Validation rows: a fraction below 1, or a number. A conversation is never on both sides.",
)
@click.option(
    "--dedup",
    type=click.Choice(["exact"]),
    help="Drop conversations that came before.  [default: count them]",
)
@click.option(
    "--system",
    type=click.Choice(["merge"]),
    help="Where the template takes no system message, put it before the first user message.",
)
@click.option(
    "--special-text",
    type=click.Choice(["text", "reject", "allow"]),
    default="text",
    show_default=True,
    help="Text that spells a control token stays text, is rejected, or becomes the token.",
)
@click.option(
    "--repair",
    metavar="NAME,...",
    default="",
    help="Repairs to make, each counted: dangling, media-first, unwrap, literals, arguments, content.",
)
@click.option("--strict", is_flag=True, help="Reject ReAct replies that do not hold together.  [default: count them]")
@click.option(
    "--tools",
    type=click.Choice(["template", "react", "react_zh"]),
    default="template",
    show_default=True,
    help="Tools and calls as the chat template has them, or as ReAct text for models without tool roles.",
)
@click.option(
    "--media-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Folder that images and videos are relative to.  [default: the folder of the dataset]",
)
@click.option(
    "--max-rejects",
    default="1%",
    show_default=True,
    metavar="N|P%",
    help="Rejected rows allowed in each dataset.",
)
@click.option(
    "--shuffle/--no-shuffle",
    default=True,
    show_default=True,
    help="Shuffle all rows, or keep datasets and files in order.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Decides sampling, split and order.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Processes; never changes a byte.  [default: the cores; with --engine ray those of the cluster]",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where units are compiled: on this machine, or on a Ray cluster that sees the same files.",
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="The cluster, or auto.  [default: $RAY_ADDRESS, or one on this machine for this run]",
)
@click.option(
    "--only",
    metavar="K/N",
    help="Compile the K-th of N parts of the units into the cache, counted from 0, and link nothing.",
)
@cache_option("cache", "Where compiled units are kept.")
@click.option(
    "-o",
    "--out",
    type=path_of,
    default="shards",
    show_default=True,
    metavar="OUT",
    help="Folder to write, here or in an object store (s3://BUCKET/SETS/NAME).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def compile_(**given: Any) -> None:
    """Compile FILES and registry datasets into OUT.

    FILES are used whole, each a dataset named by its stem, unless --mix says otherwise. Bad rows go to
    OUT/rejects.jsonl with the reason and where it is; the run goes on.

    \b
    Examples:
      cli compile --mix agent:1,bench:2 --self-cognition 3000
      cli compile data/a.json data/b.jsonl.gz --tokenizer DIR -o out
      cli compile --registry LLaMA-Factory/data --mix alpaca_en_demo:1,glaive_toolcall_en_demo:1 --tokenizer DIR
      cli compile chats.jsonl --mix chats#1000,bench:1 --val-size 0.05 --max-length 2048
      cli compile chats.jsonl --cache /shared/cache --only $SLURM_ARRAY_TASK_ID/16
      cli compile s3://bucket/data/chats.jsonl.gz -o s3://bucket/sets/chats
      cli compile chats.jsonl --engine ray --ray-address auto --cache /shared/cache -o /shared/shards
    """
    gc.set_threshold(100_000)  # there is little cyclic garbage; looking for it is a twentieth of a small compile
    from compiler.commands import report, terminal
    from compiler.pipeline import compile_part, compile_set

    options = _options(given)
    if options.only is not None:
        with terminal.watch() as watcher:
            done = compile_part(options, watcher)
        if given["as_json"]:
            units = {"units_compiled": done.compiled, "units_cached": done.cached}
            click.echo(json.dumps({"only": given["only"]} | units))
        else:
            terminal.print_out(report.part_summary(done, given["only"]))
        return
    with terminal.watch() as watcher:
        result = compile_set(options, watcher)
    if given["as_json"]:
        summary: dict[str, Any] = {
            key: result.manifest[key] for key in ("kind", "datasets", "balance", "options", "seed")
        }
        summary["splits"] = {
            name: {key: value for key, value in split.items() if key != "shards"} | {"shards": len(split["shards"])}
            for name, split in result.manifest["splits"].items()
        }
        summary |= {"out": str(given["out"]), "digest": result.manifest["digest"]}
        summary |= {"units_compiled": result.compiled, "units_cached": result.cached}
        summary["remarks"] = report.remarks(result.manifest)
        click.echo(json.dumps(summary, ensure_ascii=False))
    else:
        terminal.print_out(report.summary(result, str(given["out"])))


def _check_engine(given: dict[str, Any]) -> None:
    if given["ray_address"] is not None and given["engine"] != "ray":
        raise UsageError("--ray-address", "units are compiled on this machine", "Add --engine ray, or leave it out.")
    if given["only"] is not None and given["engine"] == "ray":
        raise UsageError("--only --engine ray", "each gives out units to machines", "Leave one of them out.")


def _options(given: dict[str, Any]) -> CompileOptions:
    """Turn what was given into options, with everything that can be checked without files checked."""
    from compiler.datasets import files, hub
    from compiler.options import CompileOptions, MixOptions, UnitOptions, parse_mix, parse_part

    _check(given)
    _check_engine(given)
    given = dict(given)
    given["repairs"] = _repairs(given["repair"])
    given["max_length"] = given["max_length"] or given["pack"]
    given["mix"] = parse_mix(files.readable(",".join(given["mix"]))) if given["mix"] else ()
    given |= {key: files.readable(given[key]) for key in ("name", "author") if given[key]}
    given["tokenizer"] = given["tokenizer"] and hub.tokenizer_folder(given["tokenizer"])
    given["workers"] = given["workers"] or (0 if given["engine"] == "ray" else _workers())
    given["only"] = given["only"] and parse_part(given["only"])
    given |= {"units": _filled(UnitOptions, given), "mixing": _filled(MixOptions, given)}
    return _filled(CompileOptions, given)


def _filled(options: type[T], given: dict[str, Any]) -> T:
    """The options with each value that was given for a field of theirs; the others keep their defaults."""
    names = [field.name for field in fields(options)]  # type: ignore[arg-type]
    return options(**{name: given[name] for name in names if given.get(name) is not None})


def _repairs(text: str) -> tuple[str, ...]:
    from compiler.rows.mend import ROW_REPAIRS
    from compiler.rows.repair import REPAIRS
    from schemas.errors import nearest

    asked, known = [name.strip() for name in text.split(",")], (*ROW_REPAIRS, *REPAIRS)
    for name in filter(None, asked):
        if name not in known:
            raise UsageError(f"--repair {name}", "unknown repair", nearest(name, known))
    return tuple(name for name in known if name in asked)


def _check(given: dict[str, Any]) -> None:
    from compiler.formats import get
    from registry import weights

    if not given["files"] and not given["mix"] and not given["self_cognition"]:
        raise UsageError(
            "compile",
            "nothing to compile",
            "Name files, --mix, or --self-cognition N; see cli compile --help.",
        )
    if given["format"] != "auto":
        get(given["format"], "--format")
    if given["weights"] != "auto":
        weights(given["weights"])
    if given["pack"] and (given["max_length"] or 0) > given["pack"]:
        what = f"an example of that length does not fit into a pack of {given['pack']}"
        raise UsageError(f"--max-length {given['max_length']}", what, "Leave --max-length out, or raise --pack.")
    if not re.fullmatch(r"(\d\d?(\.\d+)?|100)%|\d+", given["max_rejects"]):
        raise UsageError(
            f"--max-rejects {given['max_rejects']}",
            "expected a number of rows or a percentage",
            "--max-rejects 1%",
        )
    if (given["name"] or given["author"]) and not given["self_cognition"]:
        raise UsageError(
            "--name/--author",
            "they name the model in self-cognition rows, and none are asked for",
            "Add --self-cognition N.",
        )
    if given["self_cognition_file"] and not given["self_cognition"]:
        raise UsageError("--self-cognition-file", "no self-cognition rows are asked for", "Add --self-cognition N.")
    if bool(given["name"]) != bool(given["author"]):
        raise UsageError(
            "--name/--author", "expected both or neither", "--name 卡卡罗特,Kakarot --author 陶白白,Baibai"
        )
