"""Figures of a set: rows, tokens and turns by dataset, quantiles, and what a --max-length would keep whole.

The set is read once, every batch checked; of an example its dataset and three numbers are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from compiler.questions.table import Cells, share, table
from schemas.arrow import SPLITS
from schemas.order import Ints
from schemas.packs import MEDIA_COLUMNS, unpacked
from schemas.reader import CompiledSet

QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}
COUNTS = ("rows", "tokens", "trained_tokens", "turns", "tool_results", "images", "videos")
SHORTEST = 512
"""The first --max-length of the table; the others double it."""


def figures(opened: CompiledSet) -> dict[str, Any]:
    """The keys of `--json` for a set."""
    names = [entry["name"] for entry in opened.manifest["datasets"]]
    counts = np.zeros((len(names), len(COUNTS)), np.int64)
    kept: list[tuple[Ints, Ints, Ints, Ints]] = []
    for split in SPLITS:
        for found in opened.split(split).batches():
            batch = unpacked(found, opened.kind) if opened.is_packed else found
            dataset = _numbered(opened, batch.column("dataset"), names)
            per_row, longest = _counted(opened, batch)
            for column, values in enumerate(per_row):
                counts[:, column] += np.bincount(dataset, values, len(names)).astype(np.int64)
            kept.append((dataset, per_row[1], per_row[2], longest))
    empty = np.zeros(0, np.int64)
    dataset, tokens, trained, longest = (
        (np.concatenate(column) for column in zip(*kept, strict=True)) if kept else [empty] * 4
    )
    packing = opened.manifest.get("packing")
    return {
        "version": 1,
        "of": "set",
        "kind": opened.kind,
        "packs": None if packing is None else packing["packs"],
        "total": _figures(counts.sum(axis=0), tokens, trained),
        "datasets": {
            name: _figures(counts[number], tokens[dataset == number], trained[dataset == number])
            for number, name in enumerate(names)
        },
        "max_length": list(_max_lengths(longest, trained)),
    }


def _numbered(opened: CompiledSet, column: pa.Array, names: list[str]) -> Ints:
    """The number of each row's dataset."""
    encoded = column.dictionary_encode()
    found = encoded.dictionary.to_pylist()
    if strange := set(found) - set(names):
        raise opened.damage(f"a row is of the dataset {min(strange)}, which the manifest does not have")
    return np.array([names.index(name) for name in found], np.int64)[encoded.indices.to_numpy()]


def _counted(opened: CompiledSet, batch: pa.RecordBatch) -> tuple[list[Ints], Ints]:
    """`COUNTS` of each row, and its length as --max-length counts it: that of the longer side."""
    sides = [np.asarray(batch.column(f"{side}input_ids").value_lengths(), np.int64) for side in _sides(batch)]
    media = [np.asarray(batch.column(name).value_lengths(), np.int64) for name in MEDIA_COLUMNS]
    entry = opened.manifest.get("media")
    if entry is not None and not entry["repeats_pad"]:  # one placeholder stands for all tokens of an image
        for name, lengths in zip(MEDIA_COLUMNS, media, strict=True):
            seen = batch.column(name).flatten().field("num_tokens").to_numpy(zero_copy_only=False).astype(np.int64)
            more = np.bincount(np.repeat(np.arange(len(lengths)), lengths), seen - 1, len(lengths)).astype(np.int64)
            sides = [side + more for side in sides]
    trained = batch.column("num_trained").to_numpy().astype(np.int64)
    turns, results = _runs(batch.column("spans"))
    rows = np.ones(batch.num_rows, np.int64)
    return [rows, np.sum(sides, axis=0), trained, turns, results, *media], np.max(sides, axis=0)


def _sides(batch: pa.RecordBatch) -> tuple[str, ...]:
    return ("", "rejected_") if "rejected_input_ids" in batch.schema.names else ("",)


def _runs(spans: pa.ListArray) -> tuple[Ints, Ints]:
    """How many replies and how many results of tools each row has: runs of spans of one role."""
    lengths = np.asarray(spans.value_lengths(), np.int64)
    role = spans.flatten().field("role")
    row = np.repeat(np.arange(len(lengths)), lengths)
    counts = []
    for name in ("assistant", "tool"):
        is_it = pc.equal(role, name).to_numpy(zero_copy_only=False)
        begins = is_it.copy()
        begins[1:] &= ~(is_it[:-1] & (row[1:] == row[:-1]))
        counts.append(np.bincount(row[begins], minlength=len(lengths)).astype(np.int64))
    return counts[0], counts[1]


def _figures(counts: Ints, tokens: Ints, trained: Ints) -> dict[str, Any]:
    shares = trained / np.maximum(tokens, 1)
    return {
        **dict(zip(COUNTS, counts.tolist(), strict=True)),
        "length": quantiles(tokens),
        "trained_share": quantiles(shares),
    }


def quantiles(values: npt.NDArray[Any]) -> dict[str, float] | None:
    """Quantiles that are values themselves: the smallest that so large a part does not exceed. None of no values."""
    if not len(values):
        return None
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return {name: round(value, 6) for name, value in zip(QUANTILES, found.tolist(), strict=True)}


def _max_lengths(longest: Ints, trained: Ints) -> Iterator[dict[str, Any]]:
    """What each --max-length would keep whole, up to the one that keeps all."""
    length = SHORTEST
    while len(longest):
        fits = longest <= length
        kept = int(trained[fits].sum())
        yield {
            "max_length": length,
            "rows": int(fits.sum()),
            "rows_share": round(float(fits.mean()), 6),
            "trained_tokens": kept,
            "trained_share": round(kept / max(1, int(trained.sum())), 6),
        }
        if fits.all():
            return
        length *= 2


def said(found: dict[str, Any], where: str) -> Iterator[str]:
    """The figures as lines of text."""
    total = found["total"]
    packs = "" if found["packs"] is None else f" in {found['packs']:,} packs"
    part = share(total["trained_tokens"], total["tokens"])
    yield f"{where}: {found['kind']}, {total['rows']:,} rows{packs}, {total['tokens']:,} tokens, {part} trained"
    listed = {**found["datasets"], **({"total": total} if len(found["datasets"]) > 1 else {})}
    names = [name for name in COUNTS if name in COUNTS[:4] or total[name]]
    rows: list[Cells] = [["dataset", *(name.replace("_", " ") for name in names), "trained share"]]
    for name, one in listed.items():
        rows.append([name, *(f"{one[key]:,}" for key in names), share(one["trained_tokens"], one["tokens"])])
    yield from table(rows)
    for key, title in (("length", "tokens of a row"), ("trained_share", "trained share of a row")):
        rows = [[title, *QUANTILES]]
        for name, one in listed.items():
            values = one[key] or {}
            rows.append([name, *(f"{value:,.0f}" if key == "length" else f"{value:.1%}" for value in values.values())])
        yield ""
        yield from table(rows)
    if found["max_length"]:
        yield ""
        rows = [["--max-length", "rows kept whole", "trained tokens"]]
        rows += [
            [f"{one['max_length']:,}", f"{one['rows_share']:.1%}", f"{one['trained_share']:.1%}"]
            for one in found["max_length"]
        ]
        yield from table(rows)
