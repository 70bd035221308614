"""The story of `compile`: datasets -> units -> objects -> plan -> shards -> manifest.

1. Names become datasets, and the files of a dataset are cut into units (`datasets`, `read`).
2. A unit whose object is in the cache is not compiled again; the others are (`units`).
3. Rejects are counted. Too many of them end the run before anything is published (`sets/rejects`).
4. The plan draws rows by share, count and seed (`sets/mix`); the link copies them into shards (`sets/link`).
5. The balance is checked, and the manifest is written last (`sets/manifest`, `sets/folder`).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import registry
from compiler.cache.prune import in_use
from compiler.cache.records import has
from compiler.conversation import Kind
from compiler.datasets.catalogue import SELF_COGNITION
from compiler.datasets.chosen import choose_datasets, kind_of
from compiler.datasets.dataset import Dataset
from compiler.options import CompileOptions, Request
from compiler.proof.certificate import certificate_of
from compiler.read.decompress import Expansion
from compiler.rows.overlap import benchmarks_note
from compiler.rows.persona import named_others, persona
from compiler.sets.asked import options_entry, run_entry
from compiler.sets.embedded import link_embedded
from compiler.sets.estimate import Forecast, forecast
from compiler.sets.folder import Output, existing
from compiler.sets.link import link, plan_splits
from compiler.sets.manifest import (
    check_balance,
    dataset_entry,
    media_entry,
    packing_entry,
    split_entry,
    template_entry,
    tokenizer_entry,
    total_balance,
    versions,
    write_files,
)
from compiler.sets.mix import make_plan
from compiler.sets.near import find_near
from compiler.sets.rejects import check_keys, check_rejects, check_where, forget_rejects
from compiler.sets.rows import examples_of, forget_columns, rows_of
from compiler.templates.load import Template, load_template
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units.progress import Done, Pace, Watcher
from compiler.units.run import UnitRun, compile_units, paths_of, setup_of
from compiler.units.sample import UnitSample
from schemas import install
from schemas.arrow import FORMAT_VERSION, PACKED_VERSION
from schemas.errors import InputError, UsageError
from schemas.kept import keeping
from schemas.manifest import Manifest
from schemas.stores import StorePath

if TYPE_CHECKING:
    from compiler.sets.store import StoreOutput


LINKED = 200e6
"""Bytes of a set that are written in a second, about; only for the time that a dry run says."""


@dataclass(frozen=True)
class CompileResult:
    """What a run made: the manifest, and how many units were compiled or found in the cache."""

    manifest: Manifest
    compiled: int
    cached: int


@dataclass(frozen=True)
class DryRun:
    """What a compile would do. `missing` units are not in the cache yet; `seconds` is None where no unit was timed."""

    forecast: Forecast
    kind: str
    sample: UnitSample
    done: Done
    missing: int
    seconds: float | None
    free: int | None
    """Bytes that are free where OUT would be; None in an object store."""


@keeping()
def compile_set(options: CompileOptions, watcher: Watcher) -> CompileResult:
    """Compile, link and publish. Every problem leaves what was compiled in the cache."""
    run, kind, template = begin(options, watcher)
    with in_use(options.cache, watcher.say), _output(options, watcher) as output, run.engines() as engines:
        plan = compile_units(run, engines)
        compiled = plan.load()
        check_where(compiled)
        check_rejects(compiled, options)
        check_keys(compiled, options)
        examples = [examples_of(one) for one in compiled]
        requests, rows = [one.request for one in compiled], rows_of(compiled)
        find_near(requests, examples, rows, options.mixing)
        forget_columns(compiled, rows)
        mix = make_plan(requests, examples, options.mixing)
        splits = plan_splits(mix, compiled, rows, options.pack)
        entries = [dataset_entry(i, one, examples[i], mix, options.units) for i, one in enumerate(compiled)]
        del examples, mix  # a few hundred bytes a row, before workers hold rows too
        embedded = link_embedded(output.partial, splits, rows, options.cache)
        written = link(output.partial, splits, rows, kind, engines.linking(output.partial).run, watcher.linked)
        manifest: Manifest = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "versions": versions(),
            "tokenizer": tokenizer_entry(run.tokenizer),
            "template": template_entry(template, _certificate(run, template)),
            "media": media_entry(template, rows, [split.rows for split in splits.values()], embedded),
            "seed": options.mixing.seed,
            "options": options_entry(options),
            "datasets": entries,
            "balance": total_balance(entries),
            "run": run_entry(compiled, options),
            "splits": {name: split_entry(shards) for name, shards in written.items()},
            "files": {},  # filled in below, as is the digest
            "digest": "",
        }
        if options.pack is not None:
            manifest["format_version"] = PACKED_VERSION
            manifest["packing"] = packing_entry(options.pack, manifest["splits"])
        check_balance(manifest)
        write_files(output.partial, manifest, compiled, run.tokenizer)
        output.publish(manifest)
        forget_rejects(options)
    return CompileResult(manifest, plan.done.compiled, plan.done.cached)


@keeping()
def compile_part(options: CompileOptions, watcher: Watcher) -> Done:
    """Compile the part of the units that `options.only` names into the cache, for a later `compile_set` to link."""
    run = begin(options, watcher)[0]
    with in_use(options.cache, watcher.say), run.engines() as engines:
        return compile_units(run, engines).done


@keeping()
def dry_run(options: CompileOptions, watcher: Watcher, units: int | None) -> DryRun:
    """Say what `compile_set` would do, by a sample of the units, which are compiled into the cache. Nothing is written.

    `units` of each dataset and kind of file are compiled; None = enough.
    """
    pace, sample = Pace(watcher), UnitSample(options.mixing.seed, units)
    run, kind, template = begin(options, pace)
    _output(options, watcher).check()
    run = replace(run, sample=sample)
    with in_use(options.cache, watcher.say), run.engines() as engines:
        plan = compile_units(run, engines)
        compiled = plan.load()
        _certificate(run, template)
        files = run.tokenizer.files
        beside = sum(
            len(data) for some in (files.tokenizer, files.processor, files.converted()) for data in some.values()
        )
        found = forecast(compiled, sample, options, beside)
        works = [work for key, work in sample.works.items() if not has(options.cache, key)]
    missing, is_much = len(works), sum(works) > run.few
    # If workers compiled the sample, its pace is theirs already.
    at_once = min(options.workers or 1, missing) if is_much and engines.current is engines.in_process else 1
    seconds = pace.seconds(missing, at_once, sample.seconds)
    if seconds is not None:
        seconds += found.figures.numbers.get(("set_bytes",), 0.0) / LINKED
    free = None if isinstance(options.out, StorePath) else shutil.disk_usage(existing(options.out)).free
    if free is not None and found.figures.problem is None:
        found = replace(found, figures=replace(found.figures, problem=_too_small(options, found, free)))
    return DryRun(found, kind, sample, plan.done, missing, seconds, free)


def _too_small(options: CompileOptions, found: Forecast, free: int) -> InputError | None:
    """The error if the disk is too small for the set, at the lower end of its interval."""
    needed = found.figures.numbers["set_bytes",] - found.errors["set_bytes",]
    if needed <= free:
        return None
    what = f"cannot be written: it would take about {needed / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free"
    return InputError(str(options.out), what, "Free some space, or choose another -o folder.")


def _certificate(run: UnitRun, template: Template) -> dict[str, Any]:
    of = run.options
    return certificate_of(template, run.tokenizer, of.units.special_text, of.cache)


def _demo_tokenizer(datasets: list[tuple[Dataset, Request]], options: CompileOptions) -> str:
    """A warning if the user's own rows meet the embedded tokenizer, else ""."""
    own = [one.name for one, _ in datasets if not one.sample and one.name != SELF_COGNITION]
    if not own or options.tokenizer != registry.DEMO_TOKENIZER:
        return ""
    return f"warning: {', '.join(own)}: the demo tokenizer is no model's; pass --tokenizer DIR|ID"


def _other_name(template: Template, options: CompileOptions) -> str:
    """A warning if the template's own system text names another model than --name, else ""."""
    if not options.self_cognition:
        return ""
    text = template.program.rendering.rendered_or_none([{"role": "user", "content": "x"}], None) or ""
    others = named_others(text, dict(persona(options.name, options.author)))
    if not others:
        return ""
    what = f"the chat template's own system text names {' and '.join(others)}, and rows without a system text get it"
    return f"warning: --name: {what}; give rows a system text of their own, or choose a --template without one"


def _kept(template: Template) -> str:
    if not template.variables:
        return "the chat template keeps the thinking of earlier replies anyway"
    given = ", ".join(f"{name}={str(value).lower()}" for name, value in template.variables.items())
    return f"the chat template keeps the thinking of earlier replies with {given}; give it at inference too"


def begin(options: CompileOptions, watcher: Watcher) -> tuple[UnitRun, str, Template]:
    """Find the datasets, their kind, the tokenizer and the template; nothing is cut or compiled yet."""
    Expansion.most = options.max_expansion
    datasets = choose_datasets(options)
    for dataset, _ in datasets:
        for note in dataset.notes:
            watcher.say(f"{dataset.name}: {note}")
    kind = kind_of(datasets, options)
    tokenizer = Tokenizer.load(options.tokenizer, options.cache)
    documents, special_text = kind == Kind.PRETRAIN, options.units.special_text
    thinking = options.units.thinking
    template = load_template(
        options.template, tokenizer, special_text=special_text, documents=documents, thinking=thinking
    )
    if thinking == "keep":
        watcher.say(f"--thinking keep: {_kept(template)}")
    for warning in (_demo_tokenizer(datasets, options), _other_name(template, options)):
        if warning:
            watcher.say(warning)
    if options.units.decontaminate:
        watcher.say(benchmarks_note(options.units, paths_of(options.units)))
    setup = setup_of(options, tokenizer, template, documents=documents)
    return UnitRun(options, datasets, setup, tokenizer, watcher), kind, template


def _output(options: CompileOptions, watcher: Watcher) -> Output | StoreOutput:
    if not isinstance(options.out, StorePath):
        return Output(options.out, watcher.say)
    try:
        from compiler.sets.store import StoreOutput  # an extra
    except ImportError:
        what = "writing into object stores needs boto3"
        raise UsageError(f"-o {options.out}", what, install.extra("s3")) from None
    return StoreOutput(options.out, options.cache, watcher)
