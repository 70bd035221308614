"""A unit as a task: what it is compiled with, what comes of it, where it is done, and the name of its object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

import registry
from compiler.cache import objects, records
from compiler.options import DatasetOptions, UnitOptions
from compiler.proof.encoders import IDS_DIFFER, Trial
from compiler.read import Ask, Unit
from compiler.rows.shingles import minhash_version
from compiler.tokenizer.encoders import REFERENCE
from compiler.tokenizer.tokenizer import Sample

T = TypeVar("T")
R = TypeVar("R")


AHEAD = 2
"""Units that a worker has at once: it is at one, the other waits."""


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

    number: int
    """Its number in the plan."""
    unit: Unit
    read_as: DatasetOptions
    setup: Setup
    recipe: str
    """The digest of these two; see `recipe_of`."""
    cache: str
    dataset: str
    """Its name, for progress only."""
    key: str
    """The name of the object; "" if the unit's digest is not known yet."""
    encoder: str = REFERENCE
    """What encodes; the object does not depend on it."""
    is_again: bool = False
    """Whether a worker that had it was lost: what is in the cache by now may be of this run."""


class Trouble(StrEnum):
    """Why all units must be compiled again in another way."""

    IDS = IDS_DIFFER
    TRIAL = "the fast encoder gave other ids for texts that were tried"
    SKELETON = "a skeleton did not reproduce the chat template's rendering"


@dataclass(frozen=True)
class Outcome:
    """What came of a task; with `trouble` there is no object. Picklable."""

    trouble: Trouble | None = None
    object: objects.Object | None = None
    samples: list[Sample] = field(default_factory=list)
    """Texts that a fast encoder encoded, to be compared with the reference."""
    is_cached: bool = False
    """Whether the object was in the cache."""
    digest: str = ""
    """The unit's, and the name of the object."""
    key: str = ""


class Awaited(Generic[R]):
    """What a function that is called elsewhere will return, or raise."""

    def __init__(self, listen: Callable[[], object]) -> None:
        """`listen` waits until something new is known."""
        self._listen = listen
        self._found: list[tuple[R, Exception | None]] = []

    @classmethod
    def known(cls, result: R) -> Awaited[R]:
        """An answer that is there."""
        answer = cls(lambda: None)
        answer.put(result)
        return answer

    def put(self, result: R, error: Exception | None = None) -> None:
        """Take the result, or the error in its place."""
        self._found.append((result, error))

    @property
    def is_there(self) -> bool:
        """Whether `result` need not wait."""
        return bool(self._found)

    def result(self) -> R:
        """Wait for the result."""
        while not self._found:
            self._listen()
        [(result, error)] = self._found
        if error is not None:
            raise error
        return result


class Engine(Protocol):
    """A place where things are done: in this process, in others, on other machines."""

    def run(self, function: Callable[[T], R], items: Iterable[T], ahead: int = AHEAD, /) -> Iterator[tuple[T, R]]:
        """Call a function on each item, several at once; yield the items with what came of them, as it comes.

        `ahead` is how many a worker has: the one that it is at, and those that wait.
        """

    @property
    def ask(self) -> Ask | None:
        """What calls a function where items are done; None where this process may as well call it."""

    def aside(self, function: Callable[..., R], *args: Any) -> Awaited[R]:
        """Call a function beside all that."""

    def end_asides(self) -> None:
        """All that was asked aside is answered, and most likely no more will be asked."""

    def trial(self) -> Awaited[Trial] | None:
        """Try the fast encoder in a process that has loaded it; None if there is no such process.

        The answer is there at once if the encoder could not be loaded.
        """

    def close(self) -> None:
        """End what was started."""


def recipe_of(read_as: DatasetOptions, setup: Setup) -> str:
    """A digest of everything that decides the objects of a dataset but its units."""
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
    return records.key_of(how, asked)


def object_key(unit: Unit, recipe: str) -> str:
    """The name of the object that a unit becomes; "" if the unit's digest is not known yet."""
    if not unit.digest:
        return ""
    digest = unit.digest if unit.rows is None else f"{unit.digest} {unit.rows}"
    return records.key_of(unit.kind, digest, list(unit.header), recipe)
