"""The story of `compile`: datasets -> units -> objects -> plan -> shards -> manifest.

1. Names become datasets, and the files of a dataset are cut into units (`datasets`, `read`).
2. A unit whose object is in the cache is not compiled again; the others are (`units`).
3. Rejects are counted. Too many of them end the run before anything is published (`sets/rejects`).
4. The plan draws rows by share, count and seed (`sets/mix`); the link copies them into shards (`sets/link`).
5. The balance is checked, and the manifest is written last (`sets/manifest`, `sets/folder`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from compiler.cache.prune import in_use
from compiler.conversation import Kind
from compiler.datasets.chosen import choose_datasets, kind_of
from compiler.options import CompileOptions
from compiler.proof.certificate import certificate_of
from compiler.sets.folder import Output
from compiler.sets.gather import rows_of
from compiler.sets.link import splits_of, write_split
from compiler.sets.manifest import (
    check_balance,
    dataset_entry,
    encoders_entry,
    media_entry,
    options_entry,
    packing_entry,
    split_entry,
    template_entry,
    tokenizer_entry,
    total_balance,
    versions,
    write_files,
)
from compiler.sets.mix import make_plan
from compiler.sets.rejects import check_rejects, forget_rejects
from compiler.templates.load import Template, load_template
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units import local, plan_file, ray
from compiler.units.collect import Collector
from compiler.units.progress import Watcher
from compiler.units.task import Setup
from schemas import install
from schemas.arrow import FORMAT_VERSION, PACKED_VERSION
from schemas.errors import UsageError
from schemas.manifest import Manifest
from schemas.stores import StorePath

if TYPE_CHECKING:
    from compiler.sets.store import StoreOutput


@dataclass(frozen=True)
class Result:
    """What a run made: the manifest, and how many units were compiled or found in the cache."""

    manifest: Manifest
    compiled: int
    cached: int


def plan_units(options: CompileOptions, watcher: Watcher) -> plan_file.Written:
    """Write what is to be compiled as a plan beside the output, for `cli run-unit` to compile it anywhere."""
    if isinstance(options.out, StorePath):
        raise UsageError(
            "--plan-only", "a plan is written beside a local OUT", "Name one with -o, and OUT in the compile."
        )
    return plan_file.write(options.out.parent / f"{options.out.name}.plan.jsonl", begin(options, watcher)[-1])


def compile_set(options: CompileOptions, watcher: Watcher) -> Result:
    """Compile, link and publish; return the manifest. Every problem leaves what was compiled in the cache."""
    kind, template, certified, collector = begin(options, watcher)
    tokenizer = collector.tokenizer
    with in_use(options.cache, watcher.say), _output(options, watcher) as output:
        compiled = collector.run(options.workers)
        certificate = certified()  # the collector asked for it if it compiled anything
        check_rejects(compiled, options)
        examples = [one.examples() for one in compiled]
        plan = make_plan([one.request for one in compiled], examples, options.mixing)
        rows = rows_of(compiled)
        splits = splits_of(plan, compiled, rows, options.pack)
        entries = [dataset_entry(i, one, examples[i], plan) for i, one in enumerate(compiled)]
        manifest: Manifest = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "versions": versions(),
            "tokenizer": tokenizer_entry(tokenizer),
            "template": template_entry(template, certificate),
            "media": media_entry(template),
            "seed": options.mixing.seed,
            "options": options_entry(options),
            "datasets": entries,
            "balance": total_balance(entries),
            "run": {"encoders": encoders_entry(compiled)},
            "splits": {
                name: split_entry(write_split(output.partial / name, split, rows, kind, watcher.linked))
                for name, split in splits.items()
            },
            "files": {},  # filled in below, as is the digest
            "digest": "",
        }
        if options.pack is not None:
            manifest["format_version"] = PACKED_VERSION
            manifest["packing"] = packing_entry(options.pack, manifest["splits"])
        check_balance(manifest)
        write_files(output.partial, manifest, compiled, tokenizer)
        output.publish(manifest)
        forget_rejects(options)
    return Result(manifest, collector.done.compiled, collector.done.cached)


def _output(options: CompileOptions, watcher: Watcher) -> Output | StoreOutput:
    if not isinstance(options.out, StorePath):
        return Output(options.out)
    try:
        from compiler.sets.store import StoreOutput  # an extra
    except ImportError:
        what = "writing into object stores needs boto3"
        raise UsageError(f"-o {options.out}", what, install.extra("s3")) from None
    return StoreOutput(options.out, options.cache, watcher)


def begin(options: CompileOptions, watcher: Watcher) -> tuple[str, Template, Callable[[], dict[str, Any]], Collector]:
    """Return the kind of the datasets, the template, what certifies it, and what collects the datasets' objects."""
    datasets = choose_datasets(options)
    for dataset, _ in datasets:
        for note in dataset.notes:
            watcher.say(f"{dataset.name}: {note}")
    kind = kind_of(datasets, options)
    tokenizer = Tokenizer.load(options.tokenizer)
    documents, special_text = kind == Kind.PRETRAIN, options.units.special_text
    template = load_template(options.template, tokenizer, special_text=special_text, documents=documents)
    certified = cache(partial(certificate_of, template, tokenizer, special_text, options.cache))
    setup = Setup(
        options=options.units,
        tokenizer=str(options.tokenizer.resolve()),
        tokenizer_digest=tokenizer.digest,
        template=options.template,
        template_digest=template.digest,
        documents=documents,
        vision=template.program.rendering.vision is not None,
    )
    on_ray = partial(ray.run, address=options.ray_address, say=watcher.say)
    warm = local.Warm(setup)
    run_tasks = on_ray if options.engine == "ray" else partial(local.run, warm=warm)
    collector = Collector(datasets, setup, options.cache, watcher, tokenizer, run_tasks, certified, warm.trial)
    return kind, template, certified, collector
