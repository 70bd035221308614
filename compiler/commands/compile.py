"""`cli compile`: check the options, compile, print the summary."""

from __future__ import annotations

import contextlib
import gc
import os
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compiler.commands.compile_options import SECTIONS
from compiler.commands.cores import cores
from compiler.commands.sections import SectionedCommand
from schemas.errors import EXIT_CODES, Problem, UsageError
from schemas.printed import json_line

if TYPE_CHECKING:
    from compiler.options import CompileOptions

T = TypeVar("T")

SMALL, LARGE = 16 << 20, 48 << 20
"""Bytes of files. Where there are fewer, workers take longer to start than they gain (compiler/units/run.py), and this
process loads an encoder early; where there are more, what workers load is loaded early."""


@click.command("compile", cls=SectionedCommand, sections=SECTIONS, epilog=EXIT_CODES)
@click.argument("files", nargs=-1)
def compile_(**given: Any) -> None:
    """Compile FILES and registry datasets into OUT.

    Each of FILES is a dataset named by its stem, and all its rows are used unless --mix says otherwise. NAME=FILE
    names it, a folder is a dataset of its files, and so are the files of a pattern: 'NAME=DIR/*.jsonl'. Rejected rows
    are listed in OUT/rejects.jsonl with the reason and the place; the run goes on. A single FILE.yaml is a recipe: it
    says all of this.

    \b
    Examples:
      cli compile --mix agent:1,bench:2 --self-cognition 3000
      cli compile data/a.json data/b.jsonl.gz --tokenizer DIR -o out
      cli compile chats=data/train.jsonl tools=more/train.jsonl --mix chats:1,tools:2
      zcat logs/*.gz | jq -c .chat | cli compile chats=-
      cli compile --registry LLaMA-Factory/data --mix alpaca_en_demo:1,glaive_toolcall_en_demo:1 --tokenizer DIR
      cli compile chats.jsonl --mix chats#1000,bench:1 --val-size 0.05 --max-length 2048
      cli compile train.jsonl --val dev.jsonl --test test.jsonl --tokenizer DIR
      cli compile chats.jsonl --cache /shared/cache --only $SLURM_ARRAY_TASK_ID/16
      cli compile recipe.yaml -o out
      cli compile chats.jsonl --max-length 2048 --dry-run
      cli compile s3://bucket/data/chats.jsonl.gz -o s3://bucket/sets/chats
      cli compile chats.jsonl --engine ray --ray-address auto --cache /shared/cache -o /shared/shards
    """
    gc.set_threshold(100_000)  # there is little cyclic garbage; looking for it is a twentieth of a small compile
    with _started_early(given), asked_options(given) as options:
        _compile(options, given)


def _started_early(given: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Start the process that workers are copied from, where there will be workers, before this one imports the rest."""
    from compiler.units import processes

    size = _size_of(given["files"])
    will_copy = processes.CAN_FORK and given["engine"] == "local" and (given["workers"] or cores()) > 1
    if not will_copy or size is None or size < LARGE:
        return contextlib.nullcontext()
    is_folder = os.path.isdir(given["tokenizer"] or "")  # noqa: PTH112  # False for a name that no file can have
    folder = str(Path(given["tokenizer"]).absolute()) if is_folder else ""
    cache = str(given["cache"].absolute())
    early = ["compiler.tokenizer.ahead:begin_fast", "compiler.tokenizer.tokenizer:load_early"]
    return processes.started_early(early, folder, cache, then="compiler.units.asked")


def _compile(options: CompileOptions, given: dict[str, Any]) -> None:
    from compiler.commands import report, terminal
    from compiler.pipeline import compile_part, compile_set
    from compiler.tokenizer.tokenizer import Tokenizer
    from schemas.arrow import leave_pandas

    leave_pandas()
    size = _size_of(options.files)
    with contextlib.suppress(Problem, OSError):  # it is loaded again in its turn, which says what is wrong
        small, large = size is not None and size < SMALL, size is not None and size >= LARGE
        Tokenizer.load(options.tokenizer, options.cache, encodes=small, others_encode=large)
    if given["dry_run"]:
        from compiler.commands.dry_run import dry_run

        dry_run(options, given["sample"], str(given["out"]), as_json=given["as_json"])
        return
    if options.only is not None:
        with terminal.watch() as watcher:
            done = compile_part(options, watcher)
        if given["as_json"]:
            units = {"units_compiled": done.compiled, "units_cached": done.cached}
            click.echo(json_line({"only": given["only"]} | units))
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
        summary["content_digest"] = result.manifest["content_digest"]
        summary |= {"units_compiled": result.compiled, "units_cached": result.cached}
        summary["remarks"] = report.remarks(result.manifest)
        click.echo(json_line(summary))
    else:
        terminal.print_out(report.summary(result, str(given["out"])))


def _size_of(files: tuple[str, ...]) -> int | None:
    """The bytes of the files; None where there are none, or more than plain files."""
    paths = [file.rpartition("=")[2] for file in files]
    return sum(map(os.path.getsize, paths)) if paths and all(map(os.path.isfile, paths)) else None


@contextlib.contextmanager
def asked_options(given: dict[str, Any]) -> Iterator[CompileOptions]:
    """The options of a compile, in the folder from which its paths start while the block runs."""
    from compiler.commands import recipe

    found = None
    if given["made_from"] is not None:
        if given["files"]:
            raise UsageError("--from", "the set says what is compiled", "Leave the files out.")
        found = recipe.remembered(given["made_from"])
    elif recipe.is_recipe(given["files"]):
        found = recipe.read(Path(given["files"][0]))
    if found is None:
        asked = recipe.asked_by(given, click.get_current_context())
    else:
        given, asked = recipe.apply(found, given, click.get_current_context())
    saved = given["save_recipe"] and given["save_recipe"].absolute()
    with contextlib.chdir(found.base) if found else contextlib.nullcontext():
        if saved:
            recipe.save(asked, saved)
        options = _options(given)
        yield replace(options, recipe=recipe.to_remember(asked, options.tokenizer_source))


def _check_engine(given: dict[str, Any]) -> None:
    if given["only"] is not None and given["dry_run"]:
        raise UsageError("--only --dry-run", "a dry run is about the whole set", "Leave one of them out.")
    if given["sample"] is not None and not given["dry_run"]:
        raise UsageError(f"--sample {given['sample']}", "it is only used with --dry-run", "Add --dry-run.")
    if given["ray_address"] is not None and given["engine"] != "ray":
        raise UsageError("--ray-address", "it is only used with --engine ray", "Add --engine ray, or leave it out.")
    if given["only"] is not None and given["engine"] == "ray":
        raise UsageError("--only --engine ray", "both spread units over machines", "Leave one of them out.")


def _options(given: dict[str, Any]) -> CompileOptions:
    """The options of a compile, after the checks that need no files."""
    from compiler.datasets import files, hub
    from compiler.options import CompileOptions, MixOptions, UnitOptions, parse_keys, parse_mix, parse_names, parse_part
    from schemas.hub import chosen

    _check(given)
    _check_engine(given)
    given = dict(given)
    given["repairs"] = repairs_of(given["repairs"])
    given["ignore"] = parse_keys("--ignore", files.readable(given["ignore"]))
    given["scan_secrets"] = given["scan_secrets"] or given["redact"]
    given["max_length"] = given["max_length"] or given["pack"]
    given |= {name: parse_names(f"--{name}", tuple(map(files.readable, given[name]))) for name in ("columns", "tags")}
    given["mix"] = parse_mix(files.readable(",".join(given["mix"]))) if given["mix"] else ()
    given |= {key: files.readable(given[key]) if given[key] else None for key in ("name", "author")}
    if given["hub"] is not None:
        chosen(given["hub"], "--hub")  # a contradiction is said before anything is downloaded
    if given["tokenizer"] is not None:
        given["tokenizer"], given["tokenizer_source"] = hub.tokenizer(given["tokenizer"], given["hub"])
    given["workers"] = given["workers"] or (0 if given["engine"] == "ray" else cores())
    given["only"] = None if given["only"] is None else parse_part(given["only"])
    if given["dedup"] is not None:
        given |= _dedup(given["dedup"])
    given |= _decontamination(given)
    given |= {"units": _filled(UnitOptions, given), "mixing": _filled(MixOptions, given)}
    return _filled(CompileOptions, given)


def _filled(options: type[T], given: dict[str, Any]) -> T:
    """Fill a dataclass of options with the given values; the other fields keep their defaults."""
    names = [field.name for field in fields(options)]  # type: ignore[arg-type]
    return options(**{name: given[name] for name in names if given.get(name) is not None})


def _dedup(text: str) -> dict[str, Any]:
    """What --dedup asks, with the threshold that it leaves to the default; UsageError where it cannot be had."""
    from compiler.options import parse_dedup

    name, threshold = parse_dedup(text)
    if threshold is None:
        return {"dedup": name}
    from compiler.rows.shingles import require

    require()
    return {"dedup": f"{name}:{threshold:g}"}


def _decontamination(given: dict[str, Any]) -> dict[str, Any]:
    """What --decontaminate asks: the files with their digests, and the method."""
    for name in ("ngram", "threshold"):
        if given[f"decontaminate_{name}"] is not None and not given["decontaminate"]:
            what = "it is only used with --decontaminate"
            raise UsageError(f"--decontaminate-{name}", what, "Add --decontaminate FILE.")
    size = 8 if given["decontaminate_ngram"] is None else given["decontaminate_ngram"]
    if size not in (8, 13):
        raise UsageError(f"--decontaminate-ngram {size}", "expected 8 or 13", "They are the lengths of two papers.")
    if size != 8 and given["decontaminate_threshold"] is not None:
        what = "it is about runs of 8 words; of 13 one is enough"
        raise UsageError("--decontaminate-threshold", what, "Leave one of the two out.")
    if (threshold := given["decontaminate_threshold"]) is not None and not 0 <= threshold < 1:
        what = f"expected a part of a text, at least 0 and below 1, found {threshold:g}"
        raise UsageError("--decontaminate-threshold", what, "--decontaminate-threshold 0.5")
    files: dict[str, str] = {}
    if given["decontaminate"]:
        from compiler.datasets.files import readable
        from compiler.rows.overlap import digest_of

        files = {readable(file): digest_of(file) for file in given["decontaminate"]}
    return {"decontaminate": tuple(files.items()), "decontaminate_ngram": size}


def repairs_of(text: str) -> tuple[str, ...]:
    """The repairs that --repair names, in the order in which they are made."""
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
    if given["val"] and given["val_size"]:
        from compiler.datasets.files import readable

        what = f"--val {readable(given['val'][0])} gives the rows for validation already"
        raise UsageError(f"--val-size {given['val_size']:g}", what, "Leave one of them out.")
    for name in ("kind", "columns", "tags"):
        if given[name] not in ("auto", ()) and not given["files"]:
            what = "it is about files of the command line, and none is given"
            raise UsageError(f"--{name}", what, "An entry of a dataset_info.json says it itself.")
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
            "they are only used in self-cognition rows",
            "Add --self-cognition N.",
        )
    if given["self_cognition_file"] and not given["self_cognition"]:
        raise UsageError("--self-cognition-file", "it is only used with --self-cognition", "Add --self-cognition N.")
    if bool(given["name"]) != bool(given["author"]):
        raise UsageError(
            "--name/--author", "expected both or neither", "--name 卡卡罗特,Kakarot --author 陶白白,Baibai"
        )
