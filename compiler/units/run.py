"""The units of a compile, compiled: what the cache lacks is planned and run; then the plan can be loaded.

    plan.missing()  ->  engine  ->  plan.load()
    cut, look up        compile      objects

Two things can show only while units are compiled: that the fast encoder gives other ids than the reference, and that a
skeleton does not stand for the chat template. Then everything is planned and run again without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from compiler.datasets.dataset import Dataset
from compiler.options import CompileOptions, Request, UnitOptions, wants_near
from compiler.proof.encoders import agree, choose, refuse
from compiler.templates.load import Template
from compiler.tokenizer.encoders import FAST, REFERENCE
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units import local, ray
from compiler.units.plan import UnitPlan
from compiler.units.progress import Watcher
from compiler.units.sample import UnitSample
from compiler.units.task import Engine, Outcome, Setup, Task, Trouble
from schemas.stores import path_of

FEW_UNITS = 4
"""With this many units or fewer to compile, a fast encoder takes longer to load than it gains."""
IN_PROCESS_UNITS, LARGE_VOCABULARY = 16, 50_000
"""With this many units or fewer to compile, workers that load a large vocabulary take longer to start than they gain:
about two seconds, when a unit of text takes a fifth of one. Units with images take longer."""


def setup_of(options: CompileOptions, tokenizer: Tokenizer, template: Template, *, documents: bool) -> Setup:
    """What the units of a compile share: its options, tokenizer and template."""
    return Setup(
        options=options.units,
        tokenizer=str(options.tokenizer.resolve()),
        tokenizer_digest=tokenizer.digest,
        template=options.template,
        template_digest=template.digest,
        documents=documents,
        vision=template.program.rendering.vision is not None,
        near=wants_near(options.mixing),
        benchmarks=paths_of(options.units),
    )


def paths_of(options: UnitOptions) -> tuple[str, ...]:
    """Where the benchmark files are, from any folder."""
    paths = (path_of(label) for label, _ in options.decontaminate)
    return tuple(str(path.resolve()) if isinstance(path, Path) else path.uri for path in paths)


@dataclass(frozen=True)
class UnitRun:
    """What compiling units needs to know. `certify` gives the template's certificate, or raises."""

    options: CompileOptions
    datasets: list[tuple[Dataset, Request]]
    setup: Setup
    tokenizer: Tokenizer
    certify: Callable[[], dict[str, Any]]
    watcher: Watcher
    sample: UnitSample | None = None
    """Of a dry run: the units that stand for all."""

    def plan(self) -> UnitPlan:
        """The units of the datasets, with none of them cut yet."""
        of = self.options
        return UnitPlan(
            self.datasets, self.setup, of.cache, self.tokenizer, self.watcher, of.only, of.limit, self.sample
        )

    @property
    def few(self) -> int:
        """So many units, or fewer, are compiled in this process."""
        small = self.setup.vision or len(self.tokenizer.is_control) < LARGE_VOCABULARY
        return FEW_UNITS if small else IN_PROCESS_UNITS


def compile_units(run: UnitRun) -> UnitPlan:
    """Compile the units that the cache lacks; return the plan, whose objects are all in the cache then."""
    encoder = ""
    while True:
        plan = run.plan()
        encoder, trouble = _compile_missing(run, plan, encoder)
        if trouble is None:
            return plan
        if trouble is Trouble.IDS:
            run.watcher.say(f"{trouble}; what it encoded is encoded again with {REFERENCE}")
            refuse(run.options.cache, run.tokenizer)
            encoder = REFERENCE
        else:
            run.watcher.say(f"{trouble}; every row is rendered instead, which is slower")
            run = replace(run, setup=replace(run.setup, skeletons=False))


def _compile_missing(run: UnitRun, plan: UnitPlan, encoder: str) -> tuple[str, Trouble | None]:
    """Compile what the cache lacks; return its encoder and the trouble there was. `encoder` "" = not chosen yet."""
    few = run.few
    missing = plan.missing()
    first = list(islice(missing, few + 1))
    if not first:
        return encoder, None

    def on_outcome(task: Task, outcome: Outcome) -> Trouble | None:
        if outcome.trouble is None and not agree(run.tokenizer, outcome.samples):
            return Trouble.IDS
        if outcome.trouble is None:
            plan.came_of(task, outcome)
        return outcome.trouble

    with _engine(run, 1 if len(first) <= few else run.options.workers) as engine:  # its workers load meanwhile
        run.certify()
        encoder = encoder or _choose_encoder(run, len(first) > FEW_UNITS, engine)
        if not isinstance(engine, local.InProcess):
            run.tokenizer.drop_fast()  # others encode
        tasks = (replace(task, encoder=encoder) for task in chain(first, missing))
        return encoder, engine.run(tasks, on_outcome)


def _choose_encoder(run: UnitRun, many: bool, engine: Engine) -> str:
    choice = choose(run.options.cache, run.tokenizer, many=many, trial=engine.trial)
    if choice.why_not_fast:
        run.watcher.say(f"{FAST} is not used: {choice.why_not_fast}")
    return choice.encoder


@contextmanager
def _engine(run: UnitRun, workers: int) -> Iterator[Engine]:
    """Start the engine that was asked for."""
    if run.options.engine == "ray":
        yield ray.Cluster(run.options.ray_address, workers, run.watcher.say)
    elif workers == 1:
        yield local.InProcess()
    else:
        with local.workers(workers, run.setup) as engine:
            yield engine
