"""What the rows of a set say, by their tokens: the text of messages without the system's.

Control tokens and what is the chat template's alone are left out. A header that it writes as text, such as `user`, may
be one token with what follows, or count as the message's; then it stays.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from compiler.conversation import Role
from compiler.inspect.vocabulary import TokenBytes
from schemas.packs import unpacked
from schemas.reader import CompiledSet

_OTHERS = ("template", Role.SYSTEM)
"""Whose tokens are left out."""


def batches_of(opened: CompiledSet, split: str) -> Iterator[pa.RecordBatch]:
    """The examples of a split, also where rows are packs."""
    for batch in opened.split(split).batches():
        yield unpacked(batch, opened.kind) if opened.is_packed else batch


def texts_of(batch: pa.RecordBatch, vocabulary: TokenBytes) -> Iterator[str]:
    """The text of each row, of both sides of a pair: messages of users, tools and replies, a line between them."""
    sides = [_side(batch, side, vocabulary) for side in ("", "rejected_") if f"{side}spans" in batch.schema.names]
    for some in zip(*sides, strict=True):
        yield "\n".join(some)


def _side(batch: pa.RecordBatch, side: str, vocabulary: TokenBytes) -> Iterator[str]:
    spans, ids = batch.column(f"{side}spans"), batch.column(f"{side}input_ids")
    tokens = ids.flatten()
    is_control = pa.array(np.isin(tokens.to_numpy(), list(vocabulary.controls)))
    pieces = pc.if_else(is_control, pa.scalar(b"", pa.large_binary()), vocabulary.pieces(tokens))
    offsets = np.frombuffer(pieces.buffers()[1], np.int64, len(pieces) + 1, 8 * pieces.offset)
    data = memoryview(pieces.buffers()[2] or b"")
    fields = spans.flatten()
    role = fields.field("role").to_pylist()
    ends: npt.NDArray[np.int64] = np.cumsum(fields.field("num_tokens").to_numpy(), dtype=np.int64)
    begin = 0
    for count in spans.value_lengths().to_pylist():
        runs: list[tuple[str, int, int]] = []
        for span in range(begin, begin + count):
            low, high = int(offsets[ends[span - 1] if span else 0]), int(offsets[ends[span]])
            if runs and runs[-1][0] == role[span]:
                low = runs.pop()[1]
            runs.append((role[span], low, high))
        begin += count
        yield "\n".join(bytes(data[low:high]).decode(errors="replace") for who, low, high in runs if who not in _OTHERS)
