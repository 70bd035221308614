"""The units of a compile, settled: planned, run by an engine, and run again where a proof failed.

    plan.to_settle()  ->  engine.run(settle)  ->  plan.load()
    cut                   compile, or take        objects
                          from the cache

Three things can show only while units are compiled: that the fast encoder gives other ids than the reference, for texts
that are tried or for texts of the data, and that a skeleton does not stand for the chat template. Then everything is
planned and run again without it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from compiler.datasets.dataset import Dataset
from compiler.options import CompileOptions, Request, UnitOptions, wants_near
from compiler.proof.encoders import Choice, Trial, choose, judge, refuse, try_fast
from compiler.templates.load import Template
from compiler.tokenizer.encoders import FAST, REFERENCE
from compiler.tokenizer.tokenizer import Sample, Tokenizer
from compiler.units.asked import agreed, certified, judged
from compiler.units.engines import Engines
from compiler.units.plan import UnitPlan
from compiler.units.progress import Watcher
from compiler.units.sample import UnitSample
from compiler.units.settle import settle
from compiler.units.task import Awaited, Engine, Setup, Task, Trouble
from schemas.errors import Problem
from schemas.stores import path_of

FEW_UNITS = 4
"""With this many usual units or fewer to compile, a fast encoder takes longer to load than it gains."""
IN_PROCESS_UNITS, LARGE_VOCABULARY = 16, 50_000
"""With this many or fewer, workers that load a large vocabulary take longer to start than they gain:
about two seconds, when a unit of text takes a fifth of one. Units with images take longer."""
COMPARED = 100
"""Texts that are compared with the reference at once."""
WAITING = 50
"""Comparisons that may wait, so that not all texts of a run do."""


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
    """What compiling units needs to know."""

    options: CompileOptions
    datasets: list[tuple[Dataset, Request]]
    setup: Setup
    tokenizer: Tokenizer
    watcher: Watcher
    certify: bool = True
    """Whether the template is certified first."""
    sample: UnitSample | None = None
    """Of a dry run: the units that stand for all."""

    def plan(self) -> UnitPlan:
        """The units of the datasets, with none of them cut yet."""
        of = self.options
        return UnitPlan(
            self.datasets, self.setup, of.cache.absolute(), self.tokenizer, self.watcher, of.only, of.limit, self.sample
        )

    @property
    def few(self) -> int:
        """So many usual units, or fewer, are compiled in this process."""
        small = self.setup.vision or len(self.tokenizer.is_control) < LARGE_VOCABULARY
        return FEW_UNITS if small else IN_PROCESS_UNITS

    def engines(self) -> Engines:
        """Where it runs; a context manager."""
        of = self.options
        return Engines(of.engine, of.workers, of.ray_address, self.setup, of.cache.absolute(), self.watcher.say)


def compile_units(run: UnitRun, engines: Engines) -> UnitPlan:
    """Settle all units: take them from the cache or compile them. Return the plan, which can be loaded then."""
    encoder = ""
    while True:
        plan = run.plan()
        encoder, trouble = _settle_all(run, plan, engines, encoder)
        if trouble is None:
            run.tokenizer.keep(run.options.cache)  # others have looked by now, and begun to load their encoder
            return plan
        if trouble is Trouble.IDS:
            run.watcher.say(f"{trouble}; what it encoded is encoded again with {REFERENCE}")
            refuse(run.options.cache, run.tokenizer)
        if trouble is Trouble.SKELETON:
            run.watcher.say(f"{trouble}; every row is rendered instead, which is slower")
            run = replace(run, setup=replace(run.setup, skeletons=False))
        else:
            encoder = REFERENCE


def _settle_all(run: UnitRun, plan: UnitPlan, engines: Engines, encoder: str) -> tuple[str, Trouble | None]:
    """Settle the units; return their encoder and the trouble there was. `encoder` "" = not chosen yet."""
    tasks, few = plan.to_settle(run.few), run.few
    first, work = list[Task](), 0.0
    for task in tasks:
        first.append(task)
        work += plan.work_of(task)
        if work > few:
            break
    if not first:
        return encoder, None
    engine = engines.started(encodes=plan.missing > 0) if work > few else engines.current
    certificate = engine.aside(certified, run.setup, str(run.options.cache)) if run.certify else Awaited.known(None)
    proofs = _Proofs(run, engine)
    encoder = encoder or proofs.choose(many=work > FEW_UNITS)
    if engine is not engines.in_process:
        run.tokenizer.drop_encoders()  # others encode
    plan.ask = engine.ask
    given = (replace(task, encoder=encoder) for task in chain(first, tasks))
    try:
        for task, outcome in engine.run(settle, given):
            proofs.take(outcome.samples)
            if trouble := outcome.trouble or proofs.trouble():
                return encoder, trouble
            plan.came_of(task, outcome)
    except Problem:
        certificate.result()  # a template that is wrong is what a user should hear of first
        raise
    certificate.result()
    trouble = proofs.trouble(wait=True)
    engine.end_asides()
    return encoder, trouble


class _Proofs:
    """The proofs that the fast encoder is right, which are made while it encodes."""

    def __init__(self, run: UnitRun, engine: Engine) -> None:
        self._run, self._engine = run, engine
        self._trial: Awaited[Trial] | None = None
        """Of the fast encoder, where the cache had no verdict on it."""
        self._verdict: Awaited[Choice] | None = None
        """On that trial."""
        self._samples: list[Sample] = []
        self._compared: deque[Awaited[bool]] = deque()

    def choose(self, *, many: bool) -> str:
        """Choose the encoder; the fast one before its verdict is there."""
        run = self._run
        choice = choose(run.options.cache, run.tokenizer, many=many)
        if choice is None:
            trial = self._engine.trial()
            if trial is None or trial.is_there:
                found = try_fast(run.tokenizer) if trial is None else trial.result()
                choice = judge(run.options.cache, run.tokenizer, found)
            else:
                self._trial = trial
        if choice is not None:
            self._say(choice)
        return FAST if choice is None else choice.encoder

    def _say(self, choice: Choice) -> None:
        if choice.why_not_fast:
            self._run.watcher.say(f"{FAST} is not used: {choice.why_not_fast}")

    def take(self, samples: list[Sample]) -> None:
        """Take texts that were encoded."""
        self._samples += samples
        if len(self._samples) >= COMPARED:
            self._compare()

    def _compare(self) -> None:
        if self._samples:
            self._compared.append(self._engine.aside(agreed, self._run.setup, self._samples))
            self._samples = []

    def trouble(self, *, wait: bool = False) -> Trouble | None:
        """What has shown so far; `wait` until all is proven."""
        if self._trial is not None and (wait or self._trial.is_there):
            found, self._trial = self._trial.result(), None
            self._verdict = self._engine.aside(judged, self._run.setup, str(self._run.options.cache), found)
        if self._verdict is not None and (wait or self._verdict.is_there):
            choice, self._verdict = self._verdict.result(), None
            self._say(choice)
            if choice.encoder != FAST:
                return Trouble.TRIAL
        if wait:
            self._compare()
        while self._compared and (wait or self._compared[0].is_there or len(self._compared) > WAITING):
            if not self._compared.popleft().result():
                return Trouble.IDS
        return None
