"""What a target is: which sets it takes, its columns and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from schemas.reader import CompiledSet

Columns = dict[str, pa.Array]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


class RowLines(Protocol):
    """What the sources of a set say of its rows, as lines of text."""

    def lines(self, rows: pa.RecordBatch) -> pa.Array:
        """The line of each row, binary."""

    def uneven(self, rows: pa.RecordBatch) -> Bools:
        """Whether the line of a row leaves out which tokens of it are trained, bool[N]."""


@dataclass(frozen=True)
class Job:
    """A set on its way to a target."""

    opened: CompiledSet
    packed: bool
    """Whether the rows that are written are packs."""
    lines: RowLines | None = None
    """What the sources say, for a target that is made from them."""

    @property
    def kind(self) -> str:
        """sft, preference, kto or pretrain."""
        return self.opened.kind


@dataclass(frozen=True)
class Target:
    """A layout."""

    name: str
    readers: str
    """Who reads it, for messages and the card."""
    kinds: tuple[str, ...]
    takes_packs: bool
    columns: Callable[[pa.RecordBatch, pa.RecordBatch, Job], Columns]
    """(rows, for each the row after it in the split, job) -> the columns of the target, one value for each row."""
    file: str
    """The name of a file, with {split} and {number}: .parquet, .arrow for a stream of batches, or .jsonl, whose lines
    are the only column."""
    splits: Mapping[str, str]
    """The target's names of our splits."""
    use: str
    """How to read it, for the card."""
    finish: Callable[[Path, str, list[Path], pa.Schema, str], None] | None = None
    """Write what the layout has beside the files of a split: (folder, split, files, schema, digest of the set)."""
    close: Callable[[Path, list[str]], None] | None = None
    """The same when all splits are written."""
    from_sources: bool = False
    """Whether it needs what the sources say, which a set does not hold."""
