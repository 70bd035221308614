"""The story of `compile`: datasets -> units -> objects -> plan -> shards -> manifest.

1. `catalogue` names become datasets; each dataset's files are cut into units.
2. A unit whose object is in the cache is not compiled again; the others are, by the engine.
3. Rejects are counted; too many stop the run before anything is published.
4. The plan draws rows by share, count and seed; the link copies them into shards.
5. The balance is checked, and the manifest is written last.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import registry
from compiler import card, hub, objects
from compiler.engines import local
from compiler.link import Part, Source, fingerprints, write_split
from compiler.mix import Examples, Options, Plan, Request, make_plan
from compiler.persona import DEMO_AUTHOR, DEMO_NAME, persona
from compiler.read import cut, open_source
from compiler.shards import Output
from compiler.sources import SELF_COGNITION, Catalogue, Dataset, self_cognition, with_weights
from compiler.templates.certify import certify
from compiler.templates.load import load_template
from compiler.tokenizer import Tokenizer
from compiler.unit import Layout, Settings, Task
from schemas.arrow import FORMAT_VERSION, SPLITS
from schemas.errors import IntegrityError, TooManyRejects

IN_PROCESS_UNITS = 2
"""With this many units or fewer to compile, starting workers costs more than it gains."""


@dataclass(frozen=True)
class Config:
    """One run, as the command line asks for it."""

    catalogue: Catalogue
    mix: list[Request]
    out: Path
    cache: Path
    tokenizer: Path = registry.DEMO_TOKENIZER
    template: str = "auto"
    weights: str = "auto"
    special_text: str = "text"
    max_length: int | None = None
    overlength: str = "turns"
    merge_system: bool = False
    repairs: tuple[str, ...] = ()
    max_rejects: str = "1%"
    self_cognition: int = 0
    name: str = DEMO_NAME
    author: str = DEMO_AUTHOR
    options: Options = field(default_factory=Options)
    workers: int = 1


@dataclass
class Record:
    """One unit of a dataset: which file it is from and what its object is called."""

    file: str
    key: str
    digest: str


@dataclass
class Compiled:
    """A dataset with its objects loaded."""

    dataset: Dataset
    request: Request
    records: list[Record]
    loaded: list[objects.Object]

    def counts(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for one in self.loaded:
            total.update(one.info["counts"])
        return total

    def notes(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for one in self.loaded:
            total.update(one.info["notes"])
        return total

    def first_rows(self) -> list[int]:
        """Return, per unit, the number of rows of its file before it."""
        seen: Counter[str] = Counter()
        first = []
        for record, one in zip(self.records, self.loaded, strict=True):
            first.append(seen[record.file])
            seen[record.file] += one.info["counts"]["read"]
        return first

    def rejects(self) -> Iterator[dict[str, Any]]:
        """Yield the rejects with their dataset, file and row."""
        for record, one, first in zip(self.records, self.loaded, self.first_rows(), strict=True):
            for reject in one.info["rejects"]:
                row = {"dataset": self.dataset.name, "file": record.file, "row": first + reject["index"]}
                yield row | {key: value for key, value in reject.items() if key != "index"}

    def examples(self) -> Examples:
        """Return what the plan needs to know of the rows."""
        tables = [one.table for one in self.loaded]
        tokens = [np.diff(c.offsets.to_numpy()) for t in tables for c in t.column("input_ids").chunks]
        empty = [np.empty(0, np.int64)]
        return Examples(
            tokens=np.concatenate(tokens or empty).astype(np.int64),
            trained=np.concatenate([t.column("num_trained").to_numpy() for t in tables] or empty).astype(np.int64),
            fingerprints=np.concatenate([fingerprints(t) for t in tables] or [np.empty(0, "S16")]),
            cap=self.dataset.num_samples,
        )


@dataclass
class Result:
    """What a run made: the manifest, its digest, and how much was compiled or found in the cache."""

    manifest: dict[str, Any]
    digest: str
    units_compiled: int
    units_cached: int


class Watcher:
    """What a run tells while it works; the command line draws it, a library caller may ignore it."""

    def units(self, dataset: str, cached: int, compiled: int) -> None:
        """Say that so many units of a dataset are done."""

    def say(self, text: str) -> None:
        """Say one sentence that the user should see."""


def compile_set(config: Config, watcher: Watcher) -> Result:
    """Compile, link and publish; return the manifest. Every problem leaves what was compiled in the cache."""
    datasets = _datasets(config)
    for dataset, _ in datasets:
        for note in dataset.notes:
            watcher.say(f"{dataset.name}: {note}")
    tokenizer = Tokenizer.load(config.tokenizer)
    template = load_template(config.template, tokenizer, special_text=config.special_text)
    certificate = certify(template, tokenizer)
    settings = Settings(
        tokenizer=str(config.tokenizer.resolve()),
        tokenizer_digest=tokenizer.digest,
        template=config.template,
        template_digest=template.digest,
        special_text=config.special_text,
        max_length=config.max_length,
        overlength=config.overlength,
        merge_system=config.merge_system,
        repairs=config.repairs,
    )
    with Output(config.out) as output:
        compiled, counts = _compile(config, datasets, settings, watcher)
        _check_rejects(config, compiled)
        plan = make_plan([c.request for c in compiled], [c.examples() for c in compiled], config.options)
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": "sft",
            "versions": _versions(),
            "tokenizer": _tokenizer_entry(tokenizer),
            "template": {
                "name": template.name,
                "digest": template.digest,
                "provenance": template.provenance,
                "reply_start": template.reply_start,
                "certificate": certificate,
            },
            **_link(output, plan, compiled, config),
        }
        _check_balance(manifest)
        _write_files(output.partial, manifest, compiled, tokenizer)
        data = output.publish(manifest)
    return Result(manifest, hashlib.sha256(data).hexdigest(), counts["compiled"], counts["cached"])


def _datasets(config: Config) -> list[tuple[Dataset, Request]]:
    """Return the datasets of the run with what is asked of each; self-cognition comes last, as in the mix's table."""
    requests = config.catalogue.requests(config.mix)
    datasets = [(with_weights(config.catalogue.resolve(r.name), config.weights), r) for r in requests]
    if config.self_cognition:
        datasets.append((self_cognition(), Request(SELF_COGNITION, count=config.self_cognition)))
    return datasets


def _compile(
    config: Config, datasets: list[tuple[Dataset, Request]], settings: Settings, watcher: Watcher
) -> tuple[list[Compiled], Counter[str]]:
    """Return the datasets with their objects, and how many units were compiled and cached."""
    records: list[list[Record]] = [[] for _ in datasets]
    loaded: dict[str, objects.Object] = {}
    counts: Counter[str] = Counter()
    names: dict[str, str] = {}
    for dataset, _ in datasets:
        # Found before any unit is compiled, so that a typo in the registry costs no time.
        _layout(dataset, config)

    def missing() -> Iterator[Task]:
        queued = set()
        for (dataset, _), mine in zip(datasets, records, strict=True):
            for file in dataset.files:
                source = open_source(file.path)
                for note in source.notes:
                    watcher.say(f"{file.label}: {note}")
                for unit in cut(source):
                    task = Task(unit, _layout(dataset, config), settings, str(config.cache))
                    key = task.key
                    mine.append(Record(file.label, key, unit.digest))
                    names[key] = dataset.name
                    if key in loaded or key in queued:
                        continue
                    found = objects.load(config.cache, key)
                    if found is not None:
                        loaded[key] = found
                        counts["cached"] += 1
                        watcher.units(dataset.name, counts["cached"], counts["compiled"])
                    else:
                        queued.add(key)
                        yield task

    def done(task: Task) -> None:
        counts["compiled"] += 1
        watcher.units(names[task.key], counts["cached"], counts["compiled"])

    tasks = missing()
    first = [task for _, task in zip(range(IN_PROCESS_UNITS + 1), tasks, strict=False)]
    workers = config.workers if len(first) > IN_PROCESS_UNITS else 1
    trouble = local.run(_chain(first, tasks), workers, done)
    if trouble:
        watcher.say(f"{trouble}; every row is rendered instead, which is slower")
        return _compile(config, datasets, replace(settings, skeletons=False), watcher)
    for key in {record.key for mine in records for record in mine} - set(loaded):
        found = objects.load(config.cache, key)
        if found is None:
            raise IntegrityError(str(config.cache), "an object that was just compiled is gone or damaged", "Run again; if it stays so, check the disk.")
        loaded[key] = found
    compiled = [
        Compiled(dataset, request, mine, [loaded[record.key] for record in mine])
        for (dataset, request), mine in zip(datasets, records, strict=True)
    ]
    return compiled, counts


def _chain(first: list[Task], rest: Iterator[Task]) -> Iterator[Task]:
    yield from first
    yield from rest


def _layout(dataset: Dataset, config: Config) -> Layout:
    values: tuple[tuple[str, str], ...] = ()
    if dataset.name == SELF_COGNITION:
        values = persona(config.name, config.author)
    return Layout(dataset.format, dataset.columns, dataset.tags, dataset.weights, values)


def _check_rejects(config: Config, compiled: list[Compiled]) -> None:
    """Raise if a dataset has more rejects than allowed; the rejects are written beside the output then."""
    for one in compiled:
        counts = one.counts()
        rejected = sum(n for key, n in counts.items() if key.startswith("rejected:"))
        allowed = float(config.max_rejects.rstrip("%")) * (counts["read"] / 100 if config.max_rejects.endswith("%") else 1)
        if rejected <= allowed:
            continue
        path = config.out.parent / f"{config.out.name}.rejects.jsonl"
        path.write_bytes(_rejects(compiled))
        reasons = ", ".join(
            f"{key.removeprefix('rejected:')} {n:,}" for key, n in sorted(counts.items()) if key.startswith("rejected:")
        )
        first = next(one.rejects())
        raise TooManyRejects(
            f"{first['file']}:{first['row']}#{first['pointer']}",
            f"{first['reason']}: {first['message']}",
            f"{rejected:,} of {counts['read']:,} rows of {one.dataset.name!r} were rejected ({reasons}); --max-rejects "
            f"{config.max_rejects} allows {int(allowed):,}.\n  Nothing was published. All rejects are in {path}; what was "
            "compiled is kept for the next run.",
        )


def _rejects(compiled: list[Compiled]) -> bytes:
    return b"".join(
        json.dumps(reject, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        for one in compiled
        for reject in one.rejects()
    )


def _link(output: Output, plan: Plan, compiled: list[Compiled], config: Config) -> dict[str, Any]:
    """Write the shards; return the manifest's part on datasets, mix, balance and splits."""
    sources = [
        Source(c.dataset.name, [Part(o.table, r.file, f) for o, r, f in zip(c.loaded, c.records, c.first_rows(), strict=True)])
        for c in compiled
    ]
    splits: dict[str, Any] = {}
    for split in SPLITS:
        shards = write_split(output.partial / split, plan, split == "val", sources)
        totals = {what: sum(shard[what] for shard in shards) for what in ("rows", "tokens", "trained_tokens")}
        splits[split] = totals | {"shards": shards}
    datasets = [_dataset_entry(number, one, plan) for number, one in enumerate(compiled)]
    balance: Counter[str] = Counter()
    for entry in datasets:
        balance.update(entry["balance"])
    options = config.options
    return {
        "seed": options.seed,
        "options": {
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
            "max_rejects": config.max_rejects,
            "persona": {"name": config.name, "author": config.author} if config.self_cognition else None,
        },
        "datasets": datasets,
        "balance": dict(balance),
        "splits": splits,
    }


def _dataset_entry(number: int, one: Compiled, plan: Plan) -> dict[str, Any]:
    """Return one dataset's part of the manifest: files, what became of every row, what was drawn."""
    counts, notes, draw = one.counts(), one.notes(), plan.draws[number]
    examples = one.examples()
    rejected = {key.removeprefix("rejected:"): n for key, n in sorted(counts.items()) if key.startswith("rejected:")}
    rows = len(draw.position)
    used = len(np.unique(draw.position))
    files: dict[str, Any] = {}
    for record, loaded in zip(one.records, one.loaded, strict=True):
        entry = files.setdefault(record.file, {"file": record.file, "rows": 0, "digest": hashlib.sha256()})
        entry["rows"] += loaded.info["counts"]["read"]
        entry["digest"].update(record.digest.encode())
    mine = plan.dataset == number
    return {
        "name": one.dataset.name,
        "format": one.dataset.format,
        "weights": one.dataset.weights,
        "policy": registry.weights(one.dataset.weights),
        "sample": one.dataset.sample,
        "source": one.dataset.source,
        "files": [entry | {"digest": entry["digest"].hexdigest()} for entry in files.values()],
        "share": one.request.share,
        "count": one.request.count,
        "target": draw.target,
        "realized": {
            "rows": rows,
            "tokens": int(examples.tokens[draw.position].sum()),
            "trained_tokens": int(examples.trained[draw.position].sum()),
            "val_rows": int((mine & plan.val).sum()),
        },
        "rejected": rejected,
        "duplicates": draw.duplicates,
        "notes": dict(sorted(notes.items())),
        "balance": {
            "read": counts["read"],
            "repeats": rows - used,
            "in_shards": rows,
            "rejected": sum(rejected.values()),
            "sampled_out": len(examples.tokens) - draw.dropped - used,
            "duplicates": draw.dropped,
        },
    }


def _check_balance(manifest: dict[str, Any]) -> None:
    """Raise unless rows read + repeats = rows in shards + rejected + sampled out + duplicates, everywhere."""
    written = sum(shard["rows"] for split in manifest["splits"].values() for shard in split["shards"])
    for name, b in [(d["name"], d["balance"]) for d in manifest["datasets"]] + [("in total", manifest["balance"])]:
        left, right = b["read"] + b["repeats"], b["in_shards"] + b["rejected"] + b["sampled_out"] + b["duplicates"]
        if left != right:
            raise IntegrityError(f"balance of {name}", f"{left:,} rows in, {right:,} rows out: {b}", "This is a bug; nothing was published.")
    if written != manifest["balance"]["in_shards"]:
        raise IntegrityError("balance", f"{manifest['balance']['in_shards']:,} rows were planned, {written:,} written", "This is a bug; nothing was published.")


def _tokenizer_entry(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "digest": tokenizer.digest,
        "files": sorted(tokenizer.files),
        "named_tokens": tokenizer.named_tokens,
        "controls": dict(sorted(tokenizer.controls.items(), key=lambda item: item[1])),
    }


def _versions() -> dict[str, str]:
    names = ("finetune-data-compiler", "tokenizers", "pyarrow", "jinja2", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _write_files(folder: Path, manifest: dict[str, Any], compiled: list[Compiled], tokenizer: Tokenizer) -> None:
    """Write everything beside the shards and list it with its digest in the manifest."""
    (folder / "rejects.jsonl").write_bytes(_rejects(compiled))
    (folder / "README.md").write_text(card.dataset_card(manifest), encoding="utf-8")
    (folder / "tokenizer").mkdir()
    for name, data in tokenizer.files.items():
        (folder / "tokenizer" / name).write_bytes(data)
    names = ["rejects.jsonl", "README.md", *(f"tokenizer/{name}" for name in sorted(tokenizer.files))]
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def tokenizer_path(name: str | None) -> Path:
    """Return the folder of `--tokenizer`; the demo tokenizer where none is named."""
    return registry.DEMO_TOKENIZER if name is None else hub.tokenizer_folder(name)
