"""A dataset ready to be read, and what the command line decides for datasets from anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.datasets.files import File
from compiler.options import CompileOptions, DatasetOptions
from schemas.errors import UsageError
from schemas.stores import AnyPath


@dataclass
class Dataset:
    """A dataset ready to be read."""

    name: str
    files: list[File]
    options: DatasetOptions
    sample: bool = False
    """Whether it is an embedded sample, too small to train on."""
    num_samples: int | None = None
    notes: list[str] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)
    """Where it came from, for the manifest: hub and revision, licence."""


def weights_of(options: CompileOptions, own: str) -> str:
    """The weights policy of a dataset whose own is `own`. ReAct text needs one that trains no tool result."""
    given = options.weights
    if options.units.tools == "template" or {"react", "final_answer"} & {*given.split("+")}:
        return own if given == "auto" else given
    if given != "auto":
        what = "--tools writes results into replies, and only react and final_answer leave them untrained"
        raise UsageError(f"--weights {given}", what, f"Use --weights react, or {given}+react.")
    return "react"


def media_of(options: CompileOptions, folder: AnyPath) -> str:
    """The folder that references to media start from: --media-dir, or the dataset's own."""
    folder = options.media_dir or folder
    return str(folder.resolve() if isinstance(folder, Path) else folder)
