"""A unit as a task: what it is compiled with, what comes of it, where it runs, and the name of its object."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Protocol

import registry
from compiler.cache import objects
from compiler.options import DatasetOptions, UnitOptions
from compiler.proof.encoders import IDS_DIFFER, Trial
from compiler.read import Unit
from compiler.rows.shingles import minhash_version
from compiler.tokenizer.encoders import REFERENCE
from compiler.tokenizer.tokenizer import Sample


@dataclass(frozen=True)
class Setup:
    """What all units of a run are compiled with: the options, the tokenizer and the template. Picklable."""

    options: UnitOptions
    tokenizer: str
    """Its folder."""
    tokenizer_digest: str
    template: str
    """Its name, as it was asked for."""
    template_digest: str
    documents: bool = False
    vision: bool = False
    """Whether the model takes images; if so, their folder decides bytes."""
    skeletons: bool = True
    near: bool = False
    """Whether what near duplicates are found by is kept with the rows; see compiler/rows/shingles.py."""
    benchmarks: tuple[str, ...] = ()
    """Where the files of `options.decontaminate` are."""


@dataclass(frozen=True)
class Task:
    """A unit and everything that decides its object. Picklable."""

    unit: Unit
    read_as: DatasetOptions
    setup: Setup
    cache: str
    dataset: str
    """Its name, for progress only."""
    key: str
    """The name of the object, worked out once, where the file is cut."""
    encoder: str = REFERENCE
    """What encodes; the object does not depend on it."""


class Trouble(StrEnum):
    """Why all units must be compiled again in another way."""

    IDS = IDS_DIFFER
    SKELETON = "a skeleton did not reproduce the chat template's rendering"


@dataclass(frozen=True)
class Outcome:
    """What came of a task; with `trouble` there is no object."""

    trouble: Trouble | None = None
    samples: list[Sample] = field(default_factory=list)
    """Texts that a fast encoder encoded, to be compared with the reference."""
    rows: int = 0
    rejected: int = 0


OnOutcome = Callable[[Task, Outcome], Trouble | None]
"""Called with what came of each task; a trouble ends the run."""


class Engine(Protocol):
    """A place where units run."""

    def trial(self) -> Trial | None:
        """Try the fast encoder in a process that has loaded it; None if there is no such process."""

    def run(self, tasks: Iterable[Task], on_outcome: OnOutcome) -> Trouble | None:
        """Run the tasks, a few at a time. Return None when all are done, or the trouble that ended the run."""


def object_key(unit: Unit, read_as: DatasetOptions, setup: Setup) -> str:
    """The name of the object that a unit compiled this way becomes."""
    asked, how = asdict(setup), asdict(read_as)
    del asked["tokenizer"], asked["benchmarks"]  # where the files are does not matter, only what they say
    how["keys"] = registry.keys()
    if setup.options.scan_secrets:
        how["secret_rules"] = registry.secrets_digest()
    if read_as.persona:
        how["other_models"] = registry.other_models()
    if setup.near:
        how["minhash"] = minhash_version()
    if not read_as.where:
        del how["where"]
    if not setup.vision:
        del how["media"]
    digest = unit.digest if unit.rows is None else f"{unit.digest} {unit.rows}"
    return objects.key_of(unit.kind, digest, list(unit.header), how, asked)
