"""A dataset after its units were compiled: their objects, and what was counted while they were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compiler.cache import objects
from compiler.datasets.dataset import Dataset
from compiler.options import Request
from compiler.rows.secrets import FIRST
from schemas.errors import Reason
from schemas.places import FileLines, Places


@dataclass
class UnitRecord:
    """One unit of a dataset: which file it is from, what its object is called, the digest of its input."""

    file: str
    key: str
    """This and the digest are "" until the unit is settled, where that is not done here."""
    digest: str
    offset: int
    """Where the unit begins in its (decompressed) file, in bytes."""
    line: int | None
    """The line on which it begins, from 1; None for arrays and tables."""
    object: objects.Object | None = None
    """What came of it, once it is settled."""


@dataclass
class CompiledDataset:
    """A dataset with its objects."""

    dataset: Dataset
    request: Request
    records: list[UnitRecord] = field(default_factory=list)

    @property
    def loaded(self) -> list[objects.Object]:
        """The objects of all units, once these are settled."""
        return [record.object for record in self.records if record.object is not None]

    def counts(self) -> Counter[str]:
        """The numbers of rows that were read, and rejected by reason ("rejected:REASON")."""
        return self._total("counts")

    def notes(self) -> Counter[str]:
        """The numbers of rows that were repaired, were shortened or spell a control token."""
        return self._total("notes")

    def unread(self) -> dict[str, int]:
        """The number of rows with each key that nothing reads, most often first."""
        return dict(sorted(self._total("unread").items(), key=lambda item: (-item[1], item[0])))

    def ignored(self) -> dict[str, int]:
        """The number of rows with each key that --ignore lists, in alphabetical order."""
        return dict(sorted(self._total("ignored").items()))

    def secrets(self) -> dict[str, list[str]]:
        """The places of the first rows with each kind of secret, in alphabetical order."""
        rows: dict[str, list[tuple[str, int]]] = {}
        for record, one, first in zip(self.records, self.loaded, self.first_rows(), strict=True):
            for kind, found in one.info.get("secrets", {}).items():
                rows.setdefault(kind, []).extend((record.file, first + row) for row in found)
        places, name = self.places(), self.dataset.name
        return {kind: [places.place(name, *row) for row in found[:FIRST]] for kind, found in sorted(rows.items())}

    def _total(self, what: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for one in self.loaded:
            total.update(one.info[what])
        return total

    def rejected(self) -> dict[str, int]:
        """The number of rejects by reason, in alphabetical order."""
        mark, counts = "rejected:", self.counts()
        del counts[f"{mark}{Reason.CLEANED}"], counts[f"{mark}{Reason.CONTAMINATED}"]
        return {key.removeprefix(mark): n for key, n in sorted(counts.items()) if key.startswith(mark)}

    def cleaned(self) -> int:
        """The number of rows that the card's clean-up rules dropped: rejects.jsonl has them, but no mistake."""
        return self.counts()[f"rejected:{Reason.CLEANED}"]

    def contaminated(self) -> int:
        """The number of conversations that benchmarks have: rejects.jsonl has them too."""
        return self.counts()[f"rejected:{Reason.CONTAMINATED}"]

    def num_examples(self) -> int:
        """The number of examples that the rows make, rejected ones included, without rows that --where leaves out."""
        counts = self.counts()
        return counts["read"] + counts["expanded"] - counts["left_out"]

    def first_rows(self) -> list[int]:
        """For each unit, the number of rows of its file before it."""
        seen: Counter[str] = Counter()
        first = []
        for record, one in zip(self.records, self.loaded, strict=True):
            first.append(seen[record.file])
            seen[record.file] += one.info["counts"].get("read", 0)
        return first

    def lines(self) -> Iterator[tuple[str, FileLines]]:
        """The names of the files of lines, and the lines on which their rows begin."""
        units: dict[str, list[tuple[UnitRecord, objects.Object, int]]] = {}
        for unit in zip(self.records, self.loaded, self.first_rows(), strict=True):
            units.setdefault(unit[0].file, []).append(unit)
        for file, found in units.items():
            if found[0][0].line is None:
                continue
            runs = np.concatenate([one.lines + np.array([[first, record.line]]) for record, one, first in found])
            gaps = runs[:, 1] - runs[:, 0]
            runs = runs[np.diff(gaps, prepend=gaps[:1] - 1) != 0]  # a unit may go on where the one before it ended
            _, last, first = found[-1]
            items = last.info["items"]
            count = items or first + last.info["counts"].get("read", 0)
            yield file, FileLines(runs[:, 0], runs[:, 1], count, session=bool(items))

    def places(self) -> Places:
        """The places of the rows."""
        return Places({(self.dataset.name, file): lines for file, lines in self.lines()})

    def place_of(self, reject: dict[str, Any]) -> str:
        """The place of a reject, for messages."""
        return self.places().place(self.dataset.name, reject["file"], reject["row"], reject["pointer"])

    def rejects(self) -> Iterator[dict[str, Any]]:
        """The rejects with their dataset, file, row and line, in order."""
        name, places = self.dataset.name, self.places()
        for record, one, first in zip(self.records, self.loaded, self.first_rows(), strict=True):
            for reject in one.info["rejects"]:
                offset = None if reject["offset"] is None else record.offset + reject["offset"]
                row = first + reject["index"]
                where = {"dataset": name, "file": record.file, "row": row}
                where["line"] = places.line(name, record.file, row, reject["pointer"])
                yield where | {key: value for key, value in reject.items() if key != "index"} | {"offset": offset}
