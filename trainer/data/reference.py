"""The log-probabilities that a reference model gave to replies, in a file: `reference.arrow`, beside the checkpoints.

    split      train, val or test
    side       the prefix of the reply's columns: "", rejected_ or kl_
    row        the row whose prompt the reply follows
    reply_of   the row that it is the reply of: another one in KTO's mismatched pairs
    log_prob   float32

What the values depend on (set, model, precision) is in the file's metadata.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.disk import flush
from schemas.errors import InputError
from schemas.order import Ints

FILE = "reference.arrow"
Floats = npt.NDArray[np.float32]
Place = tuple[str, str]
"""(split, side)"""


@dataclass(frozen=True)
class ReferenceLogProbs:
    """Log-probabilities by split, side and key. The key of a reply is row * rows of the split + reply_of."""

    rows: dict[str, int]
    """How many rows each split has."""
    facts: dict[str, str]
    """What the values depend on."""
    found: dict[Place, tuple[Ints, Floats]]
    """The keys, ascending, and their values."""

    @classmethod
    def read(cls, path: Path, rows: dict[str, int]) -> Self:
        """Read a file; InputError if it cannot be read."""
        try:
            table = pa.ipc.open_file(str(path)).read_all()
            facts = json.loads(table.schema.metadata[b"facts"])
            split, side, row, reply_of, values = (table.column(name).to_numpy() for name in _SCHEMA.names)
        except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's are among them
            raise InputError(str(path), f"cannot be read: {error}", "Remove it; it is computed again.") from error
        made = cls(rows, facts, {})
        for name in rows:
            for one in np.unique(side[split == name]):
                mine = (split == name) & (side == one)
                made.add((name, str(one)), row[mine] * rows[name] + reply_of[mine], values[mine])
        return made

    def write(self, path: Path) -> None:
        """Write the file; an earlier one stays until this one is on disk."""
        parts = []
        for (name, side), (keys, values) in self.found.items():
            row, reply_of = np.divmod(keys, self.rows[name])
            columns = [[name] * len(keys), [side] * len(keys), row, reply_of, values]
            parts.append(pa.table(columns, schema=_SCHEMA))
        table = pa.concat_tables(parts).replace_schema_metadata({"facts": json.dumps(self.facts)})
        partial = path.with_name(f"{path.name}.partial")
        try:
            with pa.ipc.new_file(str(partial), table.schema) as file:
                file.write_table(table)
            flush(partial)
            partial.replace(path)
        except OSError as error:
            what = f"cannot be written: {error.strerror or error}"
            raise InputError(str(path), what, "Make room, and start again.") from error

    def missing(self, place: Place, keys: Ints) -> Ints:
        """Those of the keys that have no value."""
        return np.setdiff1d(keys, self.found[place][0]) if place in self.found else keys

    def add(self, place: Place, keys: Ints, values: Floats) -> None:
        """Add values of keys that had none."""
        if place in self.found:
            known = self.found[place]
            keys, values = np.concatenate([known[0], keys]), np.concatenate([known[1], values])
        order = np.argsort(keys)
        self.found[place] = keys[order], values[order]

    def of(self, split: str, side: str, row: int, reply_of: int) -> float:
        """The log-probability of a reply."""
        keys, values = self.found[split, side]
        key = row * self.rows[split] + reply_of
        place = int(np.searchsorted(keys, key))
        if place == len(keys) or keys[place] != key:
            raise AssertionError(f"no log-probability of {split} row {row}, {side or 'own'} reply of row {reply_of}")
        return float(values[place])


_SCHEMA = pa.schema(
    {"split": pa.string(), "side": pa.string(), "row": pa.int64(), "reply_of": pa.int64(), "log_prob": pa.float32()}
)
