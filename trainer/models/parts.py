"""The parts of a model that sees: its vision tower, the projector between that and the language model, and the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from schemas.errors import UsageError
from trainer.config.config import TrainConfig

VISION = ("visual", "vision", "vision_tower", "vision_model")
"""Names that models give to their vision tower."""
PROJECTOR = (
    "merger", "deepstack_merger_list", "multi_modal_projector", "connector", "embed_vision", "linear_proj",
)  # fmt: skip
"""Names that models give to the layers between the tower and the language model; in some they are in the tower."""


def frozen(model: Any, config: TrainConfig, where: str) -> list[str]:
    """Regular expressions for the whole names of the modules and parameters that are not trained.

    UsageError if a part is to be frozen that the model does not have.
    """
    names = [name for name, _ in model.named_modules()]
    towers = sorted(set(_paths(names, VISION)))
    projectors = sorted(set(_paths(names, PROJECTOR))) if towers else []
    asked = (("freeze_vision", towers, "vision tower"), ("freeze_projector", projectors, "projector that it can name"))
    for key, found, what in asked:
        if getattr(config, key) is True and not found:
            raise UsageError(f"{where}#/{key}", f"{type(model).__name__} has no {what}", "Leave it out.")
    if config.freeze_language_model and not towers:
        what = f"{type(model).__name__} has no vision tower: nothing would be trained"
        raise UsageError(f"{where}#/freeze_language_model", what, "Leave it out.")
    patterns = []
    if config.freeze_vision:
        spared = f"(?!{_below(projectors)})" if projectors and config.freeze_projector is False else ""
        patterns += [f"{spared}{_below(towers)}"] if towers else []
    if config.freeze_projector and projectors:
        patterns.append(_below(projectors))
    if config.freeze_language_model:
        patterns.append(f"(?!{_below([*towers, *projectors])}).*")
    return patterns


def _below(paths: list[str]) -> str:
    """A regular expression for the names below these modules."""
    return rf"(?:{'|'.join(map(re.escape, paths))})\..*"


def _paths(names: Iterable[str], parts: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths of the outermost modules with one of these names."""
    for name in names:
        found = name.split(".")
        place = next((i for i, part in enumerate(found) if part in parts), None)
        if place is not None:
            yield ".".join(found[: place + 1])
