"""How an object holds its word lists (tokens, labels, weights, spans): all words of a row side by side.

    words             list<int32>: of each row the words of its first list, then those of the next, ...
    words:input_ids   int32: how many of them are of this list; a column for each list that has words

So one read takes a row, however many lists it has. The order is that of `IN_FILE`, and shards want the first ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import SHINGLES, WORD_LISTS

IN_FILE = (*WORD_LISTS, SHINGLES)
"""The lists whose words stay in the file, in the order in which a row has them."""
WORDS = "words"

Narrow = npt.NDArray[np.unsignedinteger[Any]]
"""Numbers, none below 0, in as few bytes each as they need."""
Counts = Mapping[str, Narrow]
"""By list that has words, how many each row has, [N]."""


def side_by_side(table: pa.Table) -> pa.Table:
    """The table with the words of each row in one list, in place of its word lists. A word has four bytes."""
    whole = table.combine_chunks()
    ends, parts, counts = np.zeros(len(whole), np.int64), [], {}
    for name in (name for name in IN_FILE if name in whole.schema.names and len(whole)):
        column = whole.column(name).chunk(0)
        lengths = pc.list_value_length(column).fill_null(0).to_numpy()
        if lengths.any():
            at = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            words = column.flatten().to_numpy().view(np.uint8).data
            parts.append([words[first:last] for first, last in pairwise((4 * at).tolist())])
            counts[f"{WORDS}:{name}"] = pa.array(lengths, pa.int32())
            ends += at[1:]
    data = b"".join(piece for row in zip(*parts, strict=True) for piece in row)
    values = pa.Array.from_buffers(pa.int32(), len(data) // 4, [None, pa.py_buffer(data)])
    lists = pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), values)
    small = whole.drop_columns([name for name in IN_FILE if name in whole.schema.names])
    for name, column in {**counts, WORDS: lists}.items():
        small = small.append_column(name, column)
    return small


def opened(table: pa.Table, file: pa.Buffer) -> tuple[pa.Table, int, Counts]:
    """Of a table that a file holds: its other columns, the word of the file with which the rows' words begin, and how
    many words each list has."""
    names = [name for name in table.schema.names if name.startswith(WORDS)]
    counts = {}
    for name in names:
        if name != WORDS:
            counts[name.removeprefix(f"{WORDS}:")] = narrow(one_chunk(table.column(name)).to_numpy())
    return table.drop_columns(names), _first_word(table.column(WORDS), file), counts


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column of an object, which is one batch, or none where it has no rows. Nothing is copied."""
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _first_word(words: pa.ChunkedArray, file: pa.Buffer) -> int:
    values = one_chunk(words).values
    return (values.buffers()[1].address - file.address) // 4 if len(values) else 0


def narrow(numbers: npt.NDArray[Any]) -> Narrow:
    """A copy of numbers, none below 0, in as few bytes each as the largest needs."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
