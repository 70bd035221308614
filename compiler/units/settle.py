"""One unit settled: its object is taken from the cache, or the unit is compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compiler.cache import objects
from compiler.media.paths import state_of
from compiler.proof.encoders import is_refused
from compiler.read import named
from compiler.units.task import Outcome, Task, object_key
from compiler.units.unit import run_unit


def settle(task: Task) -> Outcome:
    """Return the object of the unit. What every engine does with every unit that was not looked up before."""
    if not task.key:
        unit = named(task.unit)
        task = replace(task, unit=unit, key=object_key(unit, task.recipe))
    kept = look_up(Path(task.cache), task.key, task.setup.tokenizer_digest)
    outcome = run_unit(task) if kept is None else Outcome(object=kept, is_cached=not task.is_again)
    return replace(outcome, digest=task.unit.digest, key=task.key)


def look_up(cache: Path, key: str, tokenizer_digest: str) -> objects.Object | None:
    """The object of the cache; None if there is none, or none that may be used."""
    kept = objects.load(cache, key)
    if kept is None or is_refused(cache, tokenizer_digest, kept.info["encoder"]):
        return None
    return kept if media_as_they_were(kept) else None


def media_as_they_were(kept: objects.Object) -> bool:
    """Whether every image and video that an object was made from is as it was then, or is still not there."""
    return all(state_of(Path(path)) == was for path, was in kept.info["files"].items())
