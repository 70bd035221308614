"""The columns of rows that are not word lists, in little memory: what is the same in all rows once, numbers narrow.

A set may have many million rows; most of them have no images, no repairs, and come from one file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compiler.cache.layout import Narrow, narrow


@dataclass(frozen=True)
class SmallColumns:
    """The columns of `count` rows. Picklable."""

    count: int
    same: Mapping[str, pa.Array]
    """Of each column whose rows are all equal, one row."""
    others: Mapping[str, pa.Array]

    @classmethod
    def of(cls, count: int, columns: Iterable[tuple[str, pa.Array]]) -> SmallColumns:
        """Copy columns of so many rows each, one after the other."""
        same: dict[str, pa.Array] = {}
        others: dict[str, pa.Array] = {}
        for name, column in columns:
            one = _only(column)
            if one is None:
                others[name] = _narrowed(column)
            else:
                same[name] = one
        return cls(count, same, others)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: as Arrow streams, which take a third of the time of pickled arrays."""
        return _received, (self.count, _stream(self.same), _stream(self.others))

    def __contains__(self, name: str) -> bool:
        """Whether there is a column of this name."""
        return name in self.same or name in self.others

    def column(self, name: str) -> pa.Array:
        """A column; numbers may be of another type than they were."""
        return repeated(self.same[name], self.count) if name in self.same else self.others[name]

    def numbers(self, name: str) -> Narrow:
        """A column of numbers, none below 0 or missing."""
        found: Narrow = self.column(name).to_numpy()
        return found

    def take(self, rows: npt.NDArray[np.integer[Any]], names: Iterable[str]) -> SmallColumns:
        """Some of the columns of some of the rows, in any order."""
        at, names = pa.array(rows), set(names)
        same = {name: one for name, one in self.same.items() if name in names}
        others = {name: column.take(at) for name, column in self.others.items() if name in names}
        return SmallColumns(len(rows), same, others)


def repeated(one: pa.Array, count: int) -> pa.Array:
    """So many rows like the one of an array."""
    return one.take(pa.array(np.zeros(count, np.int8)))


def exact(column: pa.Array, type_: pa.DataType) -> pa.Array:
    """A part of a column as this type, in buffers of exactly its size."""
    if pa.types.is_integer(column.type) and not column.null_count:
        return pa.array(column.to_numpy().astype(str(type_)))  # both libraries call integers alike
    return column.take(pa.array(np.arange(len(column)))).cast(type_)


def _only(column: pa.Array) -> pa.Array | None:
    """An array of the value that all rows have; None where they may differ."""
    if not len(column) or column.null_count:
        return _one(None, column.type) if len(column) == column.null_count > 0 else None
    if pa.types.is_list(column.type):
        return _one((), column.type) if column.offsets[0] == column.offsets[-1] else None
    if pa.types.is_integer(column.type):
        numbers = column.to_numpy()
        least = int(numbers.min())
        return _one(least, column.type) if least == int(numbers.max()) else None
    if pa.types.is_dictionary(column.type) and len(column.dictionary) == 1:
        return column.take(pa.array([0]))
    return None


@lru_cache(maxsize=1024)
def _one(value: Any, type_: pa.DataType) -> pa.Array:
    return pa.array([value], type_)


def _narrowed(column: pa.Array) -> pa.Array:
    """A copy; of integers and of the numbers of a dictionary in as few bytes each as they need."""
    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(_narrowed(column.indices), column.dictionary)
    if pa.types.is_integer(column.type):
        is_null = np.asarray(column.is_null()) if column.null_count else None
        numbers = column.to_numpy() if is_null is None else column.fill_null(0).to_numpy()
        if not len(numbers) or numbers.min() >= 0:
            return pa.array(narrow(numbers), mask=is_null)
    return column.take(pa.array(np.arange(len(column))))


def _stream(columns: Mapping[str, pa.Array]) -> bytes:
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _columns(data: bytes) -> dict[str, pa.Array]:
    [batch] = pa.ipc.open_stream(data)
    return dict(zip(batch.schema.names, batch.columns, strict=True))


_columns_of_one = lru_cache(maxsize=64)(_columns)  # most objects have the same ones


def _received(count: int, same: bytes, others: bytes) -> SmallColumns:
    return SmallColumns(count, _columns_of_one(same), _columns(others))
