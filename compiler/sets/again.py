"""A set's plan, made again from its sources: what a set does not hold of them, its sources still do.

The manifest says what was asked, so the same units are compiled again (or found in the cache), and the same plan is
made. It counts only if every file has the manifest's digest and every number of the balance comes out the same; else
there is a sentence that says why not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from compiler.cache.prune import in_use
from compiler.conversation import Kind
from compiler.datasets.catalogue import SELF_COGNITION, Catalogue
from compiler.datasets.command_line import from_files
from compiler.datasets.dataset import Dataset
from compiler.datasets.files import File
from compiler.datasets.given import Given
from compiler.options import CompileOptions, MixOptions, Request, UnitOptions
from compiler.sets.manifest import dataset_entry, file_entries
from compiler.sets.mix import Examples, MixPlan, make_plan
from compiler.sets.near import NearDuplicates, find_near
from compiler.sets.rows import examples_of, rows_of
from compiler.templates.load import DOCUMENT, Template, load_template
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units.compiled import CompiledDataset
from compiler.units.plan import UnitPlan
from compiler.units.progress import Watcher
from compiler.units.run import UnitRun, compile_units, setup_of
from schemas.arrow import TEST, TRAIN, VAL
from schemas.errors import IntegrityError, Problem
from schemas.manifest import CONVERTED, DatasetEntry, Manifest
from schemas.reader import CompiledSet
from schemas.stores import path_of

T = TypeVar("T")


class Unknown(Exception):
    """The reason why the plan cannot be made again, as the end of a sentence."""


@dataclass(frozen=True)
class PlanAgain:
    """The plan of a set, made again."""

    units: UnitPlan
    compiled: list[CompiledDataset]
    examples: list[Examples]
    """Of each dataset."""
    near: NearDuplicates | None
    mix: MixPlan
    dedup: bool


@contextmanager
def made_again(opened: CompiledSet, cache: Path, workers: int, watcher: Watcher) -> Iterator[PlanAgain]:
    """Yield the plan of the set, made again, while its tokenizer is at hand and the cache is held.

    Unknown if its sources or its making are not as they were.
    """
    with ExitStack() as stack:
        try:
            plan = _made_again(opened, cache, workers, watcher, stack)
        except IntegrityError as problem:
            if problem.where == str(opened.folder):
                raise  # the set itself is damaged
            raise Unknown(f"{problem.where}: {problem.what}") from problem
        except Problem as problem:  # what a compile says of files that changed, or of a cache that it cannot write
            raise Unknown(f"{problem.where}: {problem.what}") from problem
        yield plan


def _made_again(opened: CompiledSet, cache: Path, workers: int, watcher: Watcher, stack: ExitStack) -> PlanAgain:
    manifest = opened.manifest
    options = _options(manifest, opened, cache, workers)
    datasets = [
        (_dataset(entry, manifest, opened, options), _request(entry, manifest)) for entry in manifest["datasets"]
    ]
    folder = _tokenizer(opened, stack)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.digest != manifest["tokenizer"]["digest"]:
        raise Unknown("the set's tokenizer is read differently by this version")
    name, template = _template(manifest, tokenizer, options)
    setup = setup_of(
        replace(options, tokenizer=folder, template=name),
        tokenizer,
        template,
        documents=manifest["kind"] == Kind.PRETRAIN,
    )
    stack.enter_context(in_use(cache, watcher.say))
    run = UnitRun(options, datasets, setup, tokenizer, watcher, certify=False)
    units = compile_units(run, stack.enter_context(run.engines()))
    compiled = units.load()
    for one, entry in zip(compiled, manifest["datasets"], strict=True):
        now = file_entries(one)
        if changed := [file["file"] for file in entry["files"] if file not in now]:
            raise Unknown(f"{changed[0]} is not the file that was compiled")
    examples = [examples_of(one) for one in compiled]
    requests = [one.request for one in compiled]
    near = find_near(requests, examples, rows_of(compiled), options.mixing)
    plan = make_plan(requests, examples, options.mixing)
    for i, (one, entry) in enumerate(zip(compiled, manifest["datasets"], strict=True)):
        found = dataset_entry(i, one, examples[i], plan, options.units)
        for key in ("balance", "realized", "rejected"):
            if found[key] != entry[key]:
                raise Unknown(f"compiled again, {one.dataset.name} does not give the same rows")
    return PlanAgain(units, compiled, examples, near, plan, options.mixing.dedup is not None)


def _filled(kind: type[T], given: dict[str, Any], **more: Any) -> T:
    """Fill a dataclass of options from those of a manifest, in which tuples are lists."""
    names = [field.name for field in fields(kind) if field.name in given]  # type: ignore[arg-type]
    return kind(**{name: tuple(given[name]) if isinstance(given[name], list) else given[name] for name in names} | more)


def _options(manifest: Manifest, opened: CompiledSet, cache: Path, workers: int) -> CompileOptions:
    given = manifest["options"]
    persona = given.get("persona")
    return CompileOptions(
        out=opened.folder,
        cache=cache,
        kind=given.get("kind", "auto"),
        columns=tuple(given.get("columns", {}).items()),
        tags=tuple(given.get("tags", {}).items()),
        where=given.get("where", ""),
        limit=given.get("limit"),
        units=_filled(UnitOptions, given, decontaminate=tuple(given.get("decontaminate", {}).items())),
        mixing=_filled(MixOptions, given, seed=manifest["seed"]),
        workers=workers,
        **({} if persona is None else {"name": persona["name"], "author": persona["author"]}),
    )


def _request(entry: DatasetEntry, manifest: Manifest) -> Request:
    """What was asked of a dataset. Its split is that of its rows, where --val-size did not choose them."""
    realized, split = entry["realized"], TRAIN
    if realized["rows"] and realized.get("test_rows", 0) == realized["rows"]:
        split = TEST
    elif realized["rows"] and realized["val_rows"] == realized["rows"] and not manifest["options"]["val_size"]:
        split = VAL
    return Request(entry["name"], entry["share"], entry["count"], repeats=entry["name"] == SELF_COGNITION, split=split)


def _dataset(entry: DatasetEntry, manifest: Manifest, opened: CompiledSet, options: CompileOptions) -> Dataset:
    """A dataset of the set, found where it was."""
    name = entry["name"]
    own = manifest["options"].get("own", {}).get(name, {})
    options = replace(
        options,
        format=entry["format"],
        kind=own.get("kind", options.kind),
        columns=tuple(own["columns"].items()) if "columns" in own else options.columns,
        tags=tuple(own["tags"].items()) if "tags" in own else options.tags,
        where=own.get("where", options.where),
    )
    if entry["sample"]:
        found = Catalogue(options).resolve(name)
    elif name == SELF_COGNITION and manifest["options"].get("persona"):
        found = Catalogue(options).self_cognition()
    else:
        files = [File(path_of(file["file"]), file["file"]) for file in entry["files"]]
        for file in files:
            if not file.path.is_file():
                raise Unknown(f"{file.label} is not there; names of files start at the current folder")
        given = Given(name, files, files[0].path.parent)
        try:
            found = from_files(name, given, options)
        except Problem as problem:
            raise Unknown(f"{files[0].label} is not the file that was compiled ({problem.what})") from problem
    media = manifest.get("run", {}).get("media", {}).get(name)
    folder = found.options.media
    if media is not None and isinstance(opened.folder, Path):
        folder = str((opened.folder / media).resolve())
    found.options = replace(
        found.options, weights=entry["weights"], policy=entry["policy"], where=options.where, media=folder
    )
    return found


def _tokenizer(opened: CompiledSet, stack: ExitStack) -> Path:
    """A folder with the set's tokenizer, every file of it checked."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="tokenizer-")))
    for name in opened.manifest["files"]:
        if name.startswith("tokenizer/") and not name.startswith(f"{CONVERTED}/"):
            path = folder / name.removeprefix("tokenizer/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(opened.read_file(name))
    return folder


def _template(manifest: Manifest, tokenizer: Tokenizer, options: CompileOptions) -> tuple[str, Template]:
    """The set's template, and the name by which it was asked for."""
    known = manifest["template"]["name"]
    for name in dict.fromkeys(["auto", known]):
        try:
            found = load_template(
                name,
                tokenizer,
                special_text=options.units.special_text,
                documents=known == DOCUMENT,
                thinking=options.units.thinking,
            )
        except Problem:
            continue
        if found.digest == manifest["template"]["digest"]:
            return name, found
    raise Unknown(f"the template {known} is not the one that the set was compiled with")
