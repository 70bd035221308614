"""What a unit is compiled with, what comes of it, and the name of the object that it becomes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import registry
from compiler.cache import objects
from compiler.read import Unit
from compiler.rows.lift import Layout
from compiler.tokenizer.encoders import REFERENCE
from compiler.tokenizer.tokenizer import Sample


@dataclass(frozen=True)
class Settings:
    """What a run asks of every unit, and what decides the objects besides the input."""

    tokenizer: str
    tokenizer_digest: str
    template: str
    template_digest: str
    special_text: str
    max_length: int | None
    overlength: str
    merge_system: bool
    repairs: tuple[str, ...]
    strict: bool = False
    dialect: str = "template"
    skeletons: bool = True
    documents: bool = False
    vision: bool = False
    """Whether the model takes images: then the folder they are in decides what is read."""


@dataclass(frozen=True)
class Task:
    """A unit and everything that decides its object. Picklable."""

    unit: Unit
    layout: Layout
    settings: Settings
    cache: str
    dataset: str
    """Its name, for progress only."""
    key: str
    """The object's name, worked out once by whoever plans the run."""
    encoder: str = REFERENCE
    """What encodes; the object does not depend on it."""


@dataclass(frozen=True)
class Outcome:
    """What came of a task. `trouble`: why the run must be done in another way, and there is no object then."""

    trouble: str = ""
    samples: list[Sample] = field(default_factory=list)
    """Texts that a fast encoder encoded, to be compared with the reference."""
    rows: int = 0
    rejected: int = 0


def object_key(unit: Unit, layout: Layout, settings: Settings) -> str:
    """Return the name of the object that a unit compiled this way becomes."""
    asked = asdict(settings)
    del asked["tokenizer"]  # where the files are does not matter, only what they say
    read_as = asdict(layout) | {"policy": registry.weights(layout.weights)}
    if layout.persona:
        read_as["other_models"] = registry.other_models()
    if not settings.vision:
        del read_as["media"]
    return objects.key_of(unit.kind, unit.digest, list(unit.header), read_as, asked)
