"""Rendered conversations to token columns, a batch at a time.

1. All texts of the batch that vary between rows are encoded in one call; what a shape always says is encoded once.
2. Between them stand the tokens that do not vary, control tokens by id. Labels and weights are made from lengths. No
   loop over tokens.
3. Runs in pieces also need to know where each token stands: see places.py.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt

from compiler.encode.batch import Batch, Encoded, Placed
from compiler.encode.places import Cut, weigh_cuts
from compiler.encode.shapes import Origin, Rendered
from compiler.tokenizer.encoders import FAST, REFERENCE
from compiler.tokenizer.tokenizer import Tokenizer

Ints = npt.NDArray[np.int64]


def encode(rows: list[Rendered], tokenizer: Tokenizer, encoder: str = REFERENCE) -> list[Encoded]:
    """Fill rows into their shapes and encode them; the sequences come in the order of the rows."""
    if not rows:
        return []
    by_shape: dict[int, list[Rendered]] = {}
    for row in rows:
        by_shape.setdefault(id(row.shape), []).append(row)
    origins: list[Origin] = []
    of_runs: dict[int, Ints] = {}
    for key, some in by_shape.items():
        shape = some[0].shape
        shape.fill(some)
        of_runs[key] = np.arange(len(origins), len(origins) + len(shape.control))
        origins += shape.origins
    run_edges = np.array([0, *accumulate(len(row.shape.control) for row in rows)])
    run_origins = np.concatenate([of_runs[id(row.shape)] for row in rows])
    cuts, of_pieces = _cuts(rows, run_edges, run_origins)
    lengths, ids = _ids(rows, tokenizer, encoder)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    given = np.array([origin.weight for origin in origins], np.float32)
    weights = np.repeat(given[run_origins], lengths)
    batch = Batch(ids, weights, ends[run_edges], origins, run_origins, lengths, run_edges)
    if cuts:
        counts = np.ones(len(lengths), np.int64)
        counts[[cut.run for cut in cuts]] = [len(cut.lengths) for cut in cuts]
        is_cut = np.repeat(counts > 1, counts)
        batch.part_origins, batch.part_lengths = np.repeat(run_origins, counts), np.repeat(lengths, counts)
        batch.part_origins[is_cut] = of_pieces
        batch.part_lengths[is_cut] = weigh_cuts(cuts, given[of_pieces], ends, ids, weights, tokenizer)
        batch.part_edges = np.concatenate([[0], np.cumsum(counts)])[run_edges]
    for number, row in enumerate(rows):
        if row.shape.media:
            first, last = run_edges[number : number + 2]
            batch.placed[number] = _placed(row, (ends[first : last + 1] - ends[first]).tolist())
    return [Encoded(batch, number) for number in range(len(rows))]


def _cuts(rows: list[Rendered], run_edges: Ints, run_origins: Ints) -> tuple[list[Cut], Ints]:
    """The runs in several pieces, in order, and the origins of their pieces; a single piece is the origin of its run.

    Origins of a row's pieces count from that of its first run, as those of its shape do.
    """
    cuts: list[Cut] = []
    pieces: list[list[int]] = []
    begins: list[int] = []
    for row, first in zip(rows, run_edges.tolist(), strict=False):
        if not row.pieces:
            continue
        begin = int(run_origins[first])
        for number, (lengths, origins) in sorted(row.pieces.items()):
            if len(origins) == 1:
                run_origins[first + number] = begin + origins[0]
                continue
            text = row.texts[row.shape.text_number[number]]
            cuts.append(Cut(first + number, text, bool(row.shape.fresh[number]), lengths))
            pieces.append(origins)
            begins.append(begin)
    found = np.fromiter(chain.from_iterable(pieces), np.int64)
    return cuts, found + np.repeat(np.array(begins, np.int64), [len(some) for some in pieces])


def _ids(rows: list[Rendered], tokenizer: Tokenizer, encoder: str) -> tuple[Ints, npt.NDArray[np.int32]]:
    """(lengths int64[R], ids int32[T]) of all runs: those that vary are encoded in one call, the others are known."""
    shapes = {id(row.shape): row.shape for row in rows}
    known = {key: shape.constants(tokenizer, encoder) for key, shape in shapes.items()}
    constants = [known[id(row.shape)] for row in rows]
    lengths = np.concatenate([lengths for lengths, _ in constants])
    varies = np.concatenate([row.shape.varies for row in rows])
    texts = [row.texts[number] for row in rows for number in row.shape.varying]
    ways = [(True, varies)]
    if tokenizer.has_prefix:
        fresh = np.concatenate([row.shape.fresh for row in rows])
        ways = [(True, varies & fresh), (False, varies & ~fresh)]
    encoded = []
    for is_fresh, mine in ways:
        some = texts
        if tokenizer.has_prefix:
            some = [text for text, chosen in zip(texts, mine[varies].tolist(), strict=True) if chosen]
        part, lengths[mine] = tokenizer.encode(some, fresh=is_fresh, encoder=encoder)
        encoded.append((mine, part))
    ids = np.empty(lengths.sum(), np.int32)
    ids[np.repeat(~varies, lengths)] = np.concatenate([ids for _, ids in constants])
    for mine, part in encoded:
        ids[np.repeat(mine, lengths)] = part
    if encoder == FAST:
        _take_samples(rows, tokenizer, lengths, ids)
    return lengths, ids


def _take_samples(rows: list[Rendered], tokenizer: Tokenizer, lengths: Ints, ids: npt.NDArray[np.int32]) -> None:
    """Have a few of the texts compared with the reference, those that do not vary too."""
    is_text = np.concatenate([row.shape.control for row in rows]) < 0
    ways = [(True, is_text)]
    if tokenizer.has_prefix:
        fresh = np.concatenate([row.shape.fresh for row in rows])
        ways = [(True, is_text & fresh), (False, is_text & ~fresh)]
    ends, text_edges = np.cumsum(lengths), [0, *accumulate(len(row.texts) for row in rows)]
    number_of = np.cumsum(is_text) - 1
    for is_fresh, mine in ways:
        runs = np.flatnonzero(mine)
        for i in {0, len(runs) // 3, len(runs) * 2 // 3} if len(runs) else ():
            number, end = int(number_of[runs[i]]), int(ends[runs[i]])
            row = bisect_right(text_edges, number) - 1
            text = rows[row].texts[number - text_edges[row]]
            tokenizer.take_sample(is_fresh, text, ids[end - int(lengths[runs[i]]) : end])


def _placed(row: Rendered, starts: list[int]) -> list[Placed]:
    """Where the media stand: each is a run of placeholders, between two marks or none."""
    media = row.conversation.media()
    found: dict[int, list[tuple[int, int]]] = {}
    for number, start, end in zip(row.shape.media, starts, starts[1:], strict=False):
        if number >= 0:
            found.setdefault(number, []).append((start, end))
    placed = []
    for number, runs in found.items():
        first, last = runs[len(runs) // 2]
        placed.append(Placed(number, runs[0][0], first, last - first, runs[-1][1], media[number].num_tokens))
    return placed
