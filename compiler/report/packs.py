"""The pack that an example of a packed set is in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from schemas.reader import CompiledSet, SplitReader


@dataclass
class Pack:
    """A pack: its number in the split, the lengths of its examples, and which of them is meant."""

    number: int
    lengths: list[int]
    here: int
    room: int

    @property
    def first(self) -> int:
        """The first token of the example in the pack."""
        return sum(self.lengths[: self.here])

    @property
    def bars(self) -> list[tuple[float, float, bool]]:
        """(begin, width, whether it is this one) of each example, in thousandths of the pack."""
        edges = np.cumsum([0, *self.lengths]) * 1000 / max(self.room, 1)
        return [
            (round(float(a), 2), round(float(b - a), 2), n == self.here) for n, (a, b) in enumerate(pairwise(edges))
        ]


def examples_of(split: SplitReader, row: int) -> range:
    """The numbers of the examples in a row: of a packed set, those of the pack."""
    if not split.opened.is_packed:
        return range(row, row + 1)
    number, inside = split.find(row)
    first = sum(entry.get("sequences", entry["rows"]) for entry in split.entries[:number])
    ends = np.cumsum([0, *split.columns(number, ["seq_lens"]).column("seq_lens").value_lengths().to_numpy()])
    return range(first + int(ends[inside]), first + int(ends[inside + 1]))


def pack_of(split: SplitReader, opened: CompiledSet, example: int) -> Pack:
    """The pack that has the example of this number."""
    counts = np.cumsum([0, *(entry.get("sequences", entry["rows"]) for entry in split.entries)])
    batch = int(np.searchsorted(counts, example, side="right")) - 1
    lengths = split.batch(batch).column("seq_lens")
    ends = np.cumsum([len(one) for one in lengths])
    inside = example - int(counts[batch])
    pack = int(np.searchsorted(ends, inside, side="right"))
    here = inside - (int(ends[pack - 1]) if pack else 0)
    room = opened.manifest["packing"]["length"]
    return Pack(int(split.starts[batch]) + pack, lengths[pack].as_py(), here, room)
