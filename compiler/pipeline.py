"""The story of `compile`: datasets -> units -> objects -> plan -> shards -> manifest.

1. Names become datasets; each dataset's files are cut into units (`sources`, `read`).
2. A unit whose object is in the cache is not compiled again; the others are, by the engine (`collect`, `unit`).
3. Rejects are counted; too many stop the run before anything is published.
4. The plan draws rows by share, count and seed (`mix`); the link copies them into shards (`link`).
5. The balance is checked, and the manifest is written last (`manifest`, `shards`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import registry
from compiler.cache import objects
from compiler.cache.prune import in_use
from compiler.conversation import Kind
from compiler.datasets import hub
from compiler.datasets.catalogue import SELF_COGNITION, Catalogue, Dataset, self_cognition, with_weights
from compiler.datasets.request import Request
from compiler.proof.documents import certify_documents
from compiler.proof.template import certify
from compiler.rows.lift import Layout
from compiler.rows.persona import DEMO_AUTHOR, DEMO_NAME, persona
from compiler.sets.folder import Output
from compiler.sets.gather import Part, Rows
from compiler.sets.link import Split, packed, split_of, write_split
from compiler.sets.manifest import (
    check_balance,
    dataset_entry,
    encoders_entry,
    packing_entry,
    rejects_jsonl,
    split_entry,
    tokenizer_entry,
    total_balance,
    versions,
    write_files,
)
from compiler.sets.mix import Options, Plan, check_options, make_plan
from compiler.templates.load import DOCUMENT, Template, load_template
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units import local, plan_file, ray
from compiler.units.collect import Collector, Compiled
from compiler.units.progress import Watcher
from compiler.units.task import Settings
from schemas import install
from schemas.arrow import FORMAT_VERSION, PACKED_VERSION, SPLITS
from schemas.errors import Reason, TooManyRejects, UsageError
from schemas.stores import AnyPath, StorePath

if TYPE_CHECKING:
    from compiler.sets.store import StoreOutput


@dataclass(frozen=True)
class Config:
    """One run, as the command line asks for it."""

    catalogue: Catalogue
    mix: list[Request]
    out: AnyPath
    cache: Path
    tokenizer: Path = registry.DEMO_TOKENIZER
    template: str = "auto"
    weights: str = "auto"
    special_text: str = "text"
    max_length: int | None = None
    overlength: str = "turns"
    pack: int | None = None
    """Tokens of a pack; None = each example is a row of its own."""
    merge_system: bool = False
    repairs: tuple[str, ...] = ()
    strict: bool = False
    dialect: str = "template"
    max_rejects: str = "1%"
    self_cognition: int = 0
    pool: Path | None = None
    """The self-cognition rows to use instead of the embedded ones."""
    name: str = DEMO_NAME
    author: str = DEMO_AUTHOR
    options: Options = field(default_factory=Options)
    workers: int = 1
    engine: str = "local"
    ray_address: str = ""


@dataclass(frozen=True)
class Result:
    """What a run made: the manifest, and how many units were compiled or found in the cache."""

    manifest: dict[str, Any]
    compiled: int
    cached: int


def plan_units(config: Config, watcher: Watcher) -> plan_file.Written:
    """Write what is to be compiled as a plan beside the output, for `cli run-unit` to compile it anywhere."""
    if isinstance(config.out, StorePath):
        raise UsageError(
            "--plan-only", "a plan is written beside a local OUT", "Name one with -o, and OUT in the compile."
        )
    return plan_file.write(config.out.parent / f"{config.out.name}.plan.jsonl", begin(config, watcher)[-1])


def compile_set(config: Config, watcher: Watcher) -> Result:
    """Compile, link and publish; return the manifest. Every problem leaves what was compiled in the cache."""
    kind, template, certified, collector = begin(config, watcher)
    tokenizer = collector.tokenizer
    with in_use(config.cache, watcher.say), _output(config, watcher) as output:
        compiled = collector.run(config.workers)
        certificate = certified()  # the collector asked for it if it compiled anything
        _check_rejects(config, compiled)
        examples = [one.examples() for one in compiled]
        plan = make_plan([one.request for one in compiled], examples, config.options)
        rows = _rows(compiled)
        splits = _splits(config, plan, compiled, rows)
        entries = [dataset_entry(i, one, examples[i], plan) for i, one in enumerate(compiled)]
        manifest: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "versions": versions(),
            "tokenizer": tokenizer_entry(tokenizer),
            "template": {
                "name": template.name,
                "digest": template.digest,
                "provenance": template.provenance,
                "reply_start": template.reply_start,
                "certificate": certificate,
            },
            "media": _media_entry(template),
            "seed": config.options.seed,
            "options": _options(config),
            "datasets": entries,
            "balance": total_balance(entries),
            "run": {"encoders": encoders_entry(compiled)},
            "splits": {
                name: split_entry(write_split(output.partial / name, split, rows, kind))
                for name, split in splits.items()
            },
        }
        if config.pack is not None:
            manifest |= {"format_version": PACKED_VERSION, "packing": packing_entry(config.pack, manifest["splits"])}
        check_balance(manifest)
        write_files(output.partial, manifest, compiled, tokenizer)
        output.publish(manifest)
        for path in _reject_files(config):
            path.unlink(missing_ok=True)  # of an earlier run that failed: OUT/rejects.jsonl says what is true now
    return Result(manifest, collector.done.compiled, collector.done.cached)


def _output(config: Config, watcher: Watcher) -> Output | StoreOutput:
    if not isinstance(config.out, StorePath):
        return Output(config.out)
    try:
        from compiler.sets.store import StoreOutput  # an extra
    except ImportError:
        what = "writing into object stores needs boto3"
        raise UsageError(f"-o {config.out}", what, install.extra("s3")) from None
    return StoreOutput(config.out, config.cache, watcher)


def begin(config: Config, watcher: Watcher) -> tuple[str, Template, Callable[[], dict[str, Any]], Collector]:
    """Return the kind of the datasets, the template, what certifies it, and what collects the datasets' objects."""
    datasets = _datasets(config)
    for dataset, _, _ in datasets:
        for note in dataset.notes:
            watcher.say(f"{dataset.name}: {note}")
    kind = _one_kind(datasets)
    _check_effects(config, datasets, kind)
    tokenizer = Tokenizer.load(config.tokenizer)
    documents = kind == Kind.PRETRAIN
    template = load_template(config.template, tokenizer, special_text=config.special_text, documents=documents)
    certified = cache(partial(_certificate, config, template, tokenizer))
    settings = _settings(config, tokenizer, template, documents)
    on_ray = partial(ray.run, address=config.ray_address, say=watcher.say)
    warm = local.Warm(settings)
    run_tasks = on_ray if config.engine == "ray" else partial(local.run, warm=warm)
    collector = Collector(datasets, settings, config.cache, watcher, tokenizer, run_tasks, certified, warm.trial)
    return kind, template, certified, collector


def _datasets(config: Config) -> list[tuple[Dataset, Request, Layout]]:
    """Return the datasets with what is asked of each and how it is read; self-cognition is the last one."""
    chosen = []
    requests = config.catalogue.requests(config.mix)
    check_options(requests, config.options)
    for request in requests:
        dataset = with_weights(config.catalogue.resolve(request.name), _weights(config))
        chosen.append((dataset, request, _layout(dataset)))
    if config.self_cognition:
        if any(dataset.name == SELF_COGNITION for dataset, _, _ in chosen):
            raise UsageError("--self-cognition", f"another dataset is called {SELF_COGNITION!r}", "Rename that one.")
        pool = self_cognition(config.pool)
        layout = replace(_layout(pool), persona=persona(config.name, config.author))
        chosen.append((pool, Request(SELF_COGNITION, count=config.self_cognition), layout))
    return chosen


def _weights(config: Config) -> str:
    """Return the weights policy to use; ReAct text needs one that leaves out what tools answered."""
    if config.dialect == "template" or "react" in config.weights.split("+"):
        return config.weights
    if config.weights != "auto":
        what = "--tools writes results into replies, and only the policy react leaves them untrained"
        raise UsageError(f"--weights {config.weights}", what, "Use --weights react, or last_round+react.")
    return "react"


def _layout(dataset: Dataset) -> Layout:
    return Layout(
        format=dataset.format,
        columns=dataset.columns,
        tags=dataset.tags,
        weights=dataset.weights,
        kind=dataset.kind,
        clean=dataset.clean,
        react=dataset.react,
        kind_by_rows=dataset.kind_by_rows,
        media=str(dataset.media.resolve() if isinstance(dataset.media, Path) else dataset.media),
    )


def _one_kind(datasets: list[tuple[Dataset, Request, Layout]]) -> str:
    """Return the kind of the datasets; kinds do not mix (decision 25)."""
    kinds: dict[str, list[str]] = {}
    for dataset, _, _ in datasets:
        kinds.setdefault(dataset.kind, []).append(dataset.name)
    if len(kinds) > 1:
        found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(kinds.items()))
        raise UsageError("compile", f"a set holds rows of one kind, found {found}", "Compile each kind by itself.")
    return next(iter(kinds))


def _check_effects(config: Config, datasets: list[tuple[Dataset, Request, Layout]], kind: str) -> None:
    """Raise for options that would do nothing with these datasets."""
    if config.strict and not any(layout.react for _, _, layout in datasets):
        raise UsageError("--strict", "it is about ReAct replies, and no dataset has those", "Leave it out.")
    asked = {
        "--tools": config.dialect != "template",
        "--system": config.merge_system,
        "--weights": config.weights != "auto",
    }
    used = [option for option, is_asked in asked.items() if is_asked]
    if config.pack is not None and kind in (Kind.PREFERENCE, Kind.KTO):
        what = f"a {kind} set is trained on whole replies, each judged by itself, and a pack has no such row"
        raise UsageError(f"--pack {config.pack}", what, "Leave it out; group rows by length when training.")
    if kind == Kind.PRETRAIN and used:
        raise UsageError(used[0], "it is about conversations, and these are documents", "Leave it out.")


def _media_entry(template: Template) -> dict[str, Any] | None:
    """Return how this model takes images and videos, as the manifest keeps it; None where it takes none."""
    vision = template.program.rendering.vision
    if vision is None:
        return None
    return {"name": vision.name, "digest": vision.digest, "repeats_pad": vision.repeats_pad}


def _settings(config: Config, tokenizer: Tokenizer, template: Template, documents: bool) -> Settings:
    return Settings(
        tokenizer=str(config.tokenizer.resolve()),
        tokenizer_digest=tokenizer.digest,
        template=config.template,
        template_digest=template.digest,
        special_text=config.special_text,
        max_length=config.max_length,
        overlength=config.overlength,
        merge_system=config.merge_system,
        repairs=config.repairs,
        strict=config.strict,
        dialect=config.dialect,
        documents=documents,
        vision=template.program.rendering.vision is not None,
    )


def _certificate(config: Config, template: Template, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the template's certificate, kept in the cache: equal code, tokenizer and template give an equal one."""
    key = objects.key_of("certificate", tokenizer.digest, template.digest, config.special_text)
    kept = objects.load_record(config.cache, key)
    if kept is not None:
        return kept
    certificate = certify_documents(template, tokenizer) if template.name == DOCUMENT else certify(template, tokenizer)
    objects.store_record(config.cache, key, certificate)
    return certificate


def _check_rejects(config: Config, compiled: list[Compiled]) -> None:
    """Raise if a dataset has more rejects than allowed, or no row is left; the rejects are kept for the user then."""
    nothing_left = not any(unit.num_rows for one in compiled for unit in one.loaded)
    for one in compiled:
        read, reasons = one.num_examples(), one.rejected()
        what = "examples" if one.counts()["expanded"] else "rows"
        number = float(config.max_rejects.rstrip("%"))
        allowed = int(number * read / 100) if config.max_rejects.endswith("%") else int(number)
        rejected = sum(reasons.values())
        if rejected <= allowed and not nothing_left:
            continue
        limit = "No row is left" if nothing_left else f"--max-rejects {config.max_rejects} allows {allowed:,}"
        first = min(one.rejects(), key=lambda reject: reject["reason"] == Reason.CLEANED, default=None)
        if first is None:
            continue
        counted = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items())
        raise TooManyRejects(
            f"{first['file']}:{first['row']}#{first['pointer']}",
            f"{first['reason']}: {first['message']}",
            f"{rejected:,} of {read:,} {what} of {one.dataset.name!r} were rejected ({counted}). {limit}.\n"
            f"  Nothing was published. All rejects are in {_keep_rejects(config, compiled)}; what was compiled is kept "
            "for the next run.",
        )


def _keep_rejects(config: Config, compiled: list[Compiled]) -> Path:
    """Write the rejects beside the output, or into the cache where that cannot be written; return the path."""
    data = rejects_jsonl(compiled)
    *beside, in_cache = _reject_files(config)
    for path in beside:
        with suppress(OSError):
            path.write_bytes(data)
            return path
    in_cache.write_bytes(data)
    return in_cache


def _reject_files(config: Config) -> list[Path]:
    """Return where the rejects of a run that failed may be: beside the output, or in the cache."""
    name = f"{config.out.name}.rejects.jsonl"
    folders = [config.cache] if isinstance(config.out, StorePath) else [config.out.parent, config.cache]
    return [folder / name for folder in folders]


def _splits(config: Config, plan: Plan, compiled: list[Compiled], rows: Rows) -> dict[str, Split]:
    """Return what is written of each split, in order."""
    sizes = [sum(unit.num_rows for unit in one.loaded) for one in compiled]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    splits = {split: split_of(plan, split == "val", starts) for split in SPLITS}
    if config.pack is None:
        return splits
    return {name: packed(split, rows, config.pack) for name, split in splits.items()}


def _rows(compiled: list[Compiled]) -> Rows:
    parts = []
    for one in compiled:
        for unit, record, first in zip(one.loaded, one.records, one.first_rows(), strict=True):
            parts.append(Part(unit, one.dataset.name, record.file, first, record.offset))
    return Rows(parts)


def _options(config: Config) -> dict[str, Any]:
    """Return the options that decide bytes, as the manifest keeps them."""
    options = config.options
    return {
        "mix_unit": options.unit,
        "total": options.total,
        "max_repeats": options.max_repeats,
        "val_size": options.val_size,
        "dedup": "exact" if options.dedup else None,
        "shuffle": options.shuffle,
        "max_length": config.max_length,
        "overlength": config.overlength,
        "special_text": config.special_text,
        "system": "merge" if config.merge_system else None,
        "repairs": list(config.repairs),
        "strict": config.strict,
        "tools": config.dialect,
        "max_rejects": config.max_rejects,
        "persona": {"name": config.name, "author": config.author} if config.self_cognition else None,
    }


def tokenizer_path(name: str | None) -> Path:
    """Return the folder of `--tokenizer`; the demo tokenizer where none is named."""
    return registry.DEMO_TOKENIZER if name is None else hub.tokenizer_folder(name)
