"""`cli compile --dry-run`: what the compile would give, as text or JSON; then the error that would end it."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Group, RenderableType
from rich.text import Text

from compiler.commands import report, terminal
from compiler.commands.cache_report import size
from compiler.options import CompileOptions
from compiler.pipeline import DryRun
from compiler.pipeline import dry_run as try_out
from compiler.sets.estimate import EXAMPLES, SampledDataset
from compiler.sets.readme import mix_rows
from schemas.errors import shown
from schemas.printed import json_line

_LONG = 200
"""Characters of a reject's message that the text shows."""


def dry_run(options: CompileOptions, sample: int | None, out: str, *, as_json: bool) -> None:
    """Print what the compile would give; raise what would end it."""
    with terminal.watch("sampling") as watcher:
        found = try_out(options, watcher, sample)
    if as_json:
        click.echo(json_line(_as_json(found, out)))
    else:
        terminal.print_out(_as_text(found, out))
    if found.forecast.figures.problem is not None:
        raise found.forecast.figures.problem


class _Numbers:
    """The numbers of a forecast, each with its error."""

    def __init__(self, found: DryRun) -> None:
        self.values, self.errors = found.forecast.figures.numbers, found.forecast.errors

    def entry(self, *key: str) -> dict[str, int]:
        """A number as JSON."""
        return {"estimate": round(self.values[key]), "error": round(self.errors[key])}

    def below(self, *key: str) -> dict[str, dict[str, int]]:
        """The numbers below a key, by the last part of theirs."""
        return {one[-1]: self.entry(*one) for one in self.values if one[:-1] == key}

    def text(self, *key: str) -> str:
        """A number as text."""
        value, error = self.entry(*key).values()
        return f"{value:,} ± {error:,}" if error else f"{value:,}"


def _as_json(found: DryRun, out: str) -> dict[str, Any]:
    forecast, numbers = found.forecast, _Numbers(found)
    problem, manifest = forecast.figures.problem, forecast.figures.manifest
    datasets = []
    for one in forecast.datasets:
        name, examples = one.dataset.name, _examples(one)
        counted = {reason: entry | {"examples": examples.get(reason, [])}
                   for reason, entry in numbers.below(name, "rejected").items()}  # fmt: skip
        datasets.append(
            {
                "name": name,
                "format": one.dataset.options.format,
                "units": len(one.records),
                "read": numbers.entry(name, "read"),
                "examples": numbers.entry(name, "examples"),
                "tokens": numbers.entry(name, "tokens"),
                "trained_tokens": numbers.entry(name, "trained_tokens"),
                "rejected": numbers.entry(name, "rejected"),
                "reasons": counted,
                "notes": dict(sorted(one.notes().items())),
                "unread": one.unread(),
                "ignored": one.ignored(),
                "realized": numbers.below(name, "realized") or None,
                "balance": numbers.below(name, "balance") or None,
            }
        )
    splits = None
    if manifest is not None:
        splits = {name: numbers.below("splits", name) for name in manifest["splits"]}
    return {
        "out": out,
        "kind": found.kind,
        "exact": forecast.exact,
        "exit_code": 0 if problem is None else problem.exit_code,
        "exit_code_is_sure": forecast.sure,
        "problem": None if problem is None else str(problem),
        "units": {
            "all": len(found.sample.sizes),
            "sampled": sum(map(len, found.sample.places)),
            "compiled": found.done.compiled,
            "not_in_cache": found.missing,
        },
        "datasets": datasets,
        "splits": splits,
        "disk": {
            "set": numbers.entry("set_bytes") if manifest is not None else None,
            "cache": numbers.entry("cache_bytes"),
            "free": found.free,
        },
        "seconds": None if found.seconds is None else round(found.seconds, 1),
        "remarks": _remarks(found),
    }


def _examples(one: SampledDataset) -> dict[str, list[dict[str, str]]]:
    """The first rejects of each reason."""
    found: dict[str, list[dict[str, str]]] = {}
    for reject in one.rejects():
        some = found.setdefault(reject["reason"], [])
        if len(some) < EXAMPLES:
            some.append({"place": one.place_of(reject), "message": reject["message"]})
    return found


def _remarks(found: DryRun) -> list[str]:
    manifest = found.forecast.figures.manifest
    lines = [] if manifest is None else report.remarks(manifest, dry=True)
    if not found.forecast.exact:
        lines.append("duplicates are those within the sample: how many there are in all is not known")
    return lines


def _as_text(found: DryRun, out: str) -> RenderableType:
    numbers, sample = _Numbers(found), found.sample
    manifest, problem = found.forecast.figures.manifest, found.forecast.figures.problem
    sampled = sum(map(len, sample.places))
    how = f"dry run: {sampled:,} of {len(sample.sizes):,} units; ± is half of a 95% interval"
    if found.forecast.exact:
        how = f"dry run: all {sampled:,} unit{'' if sampled == 1 else 's'}; the numbers are those of the compile"
    parts: list[RenderableType] = [Text(how)]
    lines = []
    if manifest is not None:
        parts.append(report.Mix(mix_rows(manifest)))
        for name, split in manifest["splits"].items():
            if split["rows"]:
                at = ("splits", name)
                packs = f" packs of {numbers.text(*at, 'sequences')} examples" if "sequences" in split else " rows"
                lines.append(
                    f"{name}: {numbers.text(*at, 'rows')}{packs}, {numbers.text(*at, 'tokens')} tokens, "
                    f"{numbers.text(*at, 'trained_tokens')} of them trained"
                )
    for one in found.forecast.datasets:
        lines += _of_rejects(one, numbers)
    lines += _remarks(found)
    lines += _costs(found, numbers, out)
    code = 0 if problem is None else problem.exit_code
    sure = "" if found.forecast.sure else ", but the interval holds numbers that would give another one"
    lines.append(f"the compile would end with exit code {code}{sure}")
    return Group(*parts, *(Text(shown(line)) for line in lines))


def _of_rejects(one: SampledDataset, numbers: _Numbers) -> list[str]:
    """Lines on the rows of a dataset and its rejects, with the first ones of each reason."""
    name = one.dataset.name
    read, rejected = numbers.text(name, "read"), numbers.entry(name, "rejected")
    if not rejected["estimate"]:
        most = f"; at most {rejected['error']:,}, as there is none in the sample" if rejected["error"] else ""
        return [f"{name}: {read} rows read, none rejected{most}"]
    lines = [f"{name}: {read} rows read, {numbers.text(name, 'rejected')} rejected"]
    examples = _examples(one)
    for reason in numbers.below(name, "rejected"):
        lines.append(f"  {reason}: {numbers.text(name, 'rejected', reason)}")
        lines += [f"    {some['place']}: {some['message']}"[:_LONG] for some in examples.get(reason, [])]
    return lines


def _costs(found: DryRun, numbers: _Numbers, out: str) -> list[str]:
    """Lines on time and disk."""
    still, there = found.missing, len(found.sample.works) - found.missing
    time = "time: not known, because every sampled unit was in the cache"
    if found.seconds is not None:
        time = f"time: about {terminal.clock(found.seconds)}"
    lines = [f"{time}; {still:,} units to compile, {there:,} in the cache"]
    cache, free = size(round(numbers.values["cache_bytes",])), ""
    if found.free is not None:
        free = f"; {size(found.free)} are free there"
    if ("set_bytes",) in numbers.values:
        lines.append(f"disk: {out} about {size(round(numbers.values['set_bytes',]))}{free}; the cache about {cache}")
    return lines
