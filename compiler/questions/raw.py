"""Figures of files that are not compiled: rows, keys and characters of all, tokens of a seeded sample or of all.

Rows are read as a compile reads them. Characters are those of the texts of a row, at any depth; keys are not texts.
The sample is the rows with the smallest hashes of (seed, dataset, number), so it is the same in every run. Its rows
are compiled; tokens are estimated by the tokens a character has in it, with the standard error of that ratio
(Cochran, Sampling Techniques, 6.4): 95 of 100 such intervals hold the true number.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson

import registry
from compiler import formats
from compiler.cache.prune import in_use
from compiler.conversation import Kind
from compiler.datasets.command_line import from_files
from compiler.datasets.dataset import Dataset
from compiler.datasets.files import File
from compiler.datasets.given import Given, given_datasets
from compiler.options import CompileOptions, Request
from compiler.questions import alike
from compiler.questions.languages import SAMPLE, shares
from compiler.questions.languages import said as languages_said
from compiler.questions.table import Cells, share, table
from compiler.read import as_session, cut, open_source, read
from compiler.rows.overlap import strings
from compiler.templates.load import load_template
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units.compiled import CompiledDataset
from compiler.units.progress import Watcher
from compiler.units.run import UnitRun, compile_units, setup_of
from schemas.errors import Problem
from schemas.order import Ints, hashes

MOST_KEYS, OTHERS = 1000, "(other keys)"
_SHOWN, _WIDE, _LONG = 30, 60, 200
"""Keys, characters of a key and characters of a note that the text shows."""
CONFIDENT = 1.96
"""Standard errors to each side."""


@dataclass
class RawFigures:
    """What was counted of a dataset's files."""

    name: str
    files: int
    dataset: Dataset | None
    note: str
    """How the format was recognised, or why it was not."""
    rows: int = 0
    unreadable: int = 0
    characters: int = 0
    keys: Counter[str] = field(default_factory=Counter)
    key_characters: Counter[str] = field(default_factory=Counter)
    sample: list[tuple[int, int, bytes, int]] = field(default_factory=list)
    """A heap of (minus hash, minus number, row as JSON, characters)."""


def raw_figures(
    texts: tuple[str, ...],
    options: CompileOptions,
    watcher: Watcher,
    *,
    sample: int,
    exact: bool,
    near: float | None = None,
    languages: bool = False,
) -> dict[str, Any]:
    """The keys of `--json` for files. `sample` 0 and not `exact`: no tokens are counted."""
    found = []
    for name, given in given_datasets([(text, "train") for text in texts], options.cache).items():
        one = _recognised(name, given, options)
        session = one.dataset is not None and formats.get(one.dataset.options.format, name).session
        size = 0 if exact or session or one.dataset is None else sample
        _count(one, given, options.mixing.seed, size or SAMPLE * languages, session=session)
        tokens = None
        if one.dataset is not None and (exact or sample):
            tokens = _exact(one, options, watcher) if exact or session else _estimate(one, options, watcher)
        found.append(_entry(one, tokens))
        if languages:
            read = [list(strings(orjson.loads(row))) for _, _, row, _ in sorted(one.sample, key=lambda row: -row[1])]
            found[-1]["languages"] = shares(["\n".join(row) for row in read], one.rows - one.unreadable)
        if near is not None:
            found[-1]["near"] = None if one.dataset is None else _near(one.dataset, options, watcher, near)
    return {"version": 1, "of": "files", "datasets": found}


def _recognised(name: str, given: Given, options: CompileOptions) -> RawFigures:
    try:
        dataset = from_files(name, given, options)
    except Problem as problem:
        if problem.exit_code != 2:
            raise
        return RawFigures(name, len(given.files), None, problem.what)
    return RawFigures(name, len(given.files), dataset, dataset.notes[-1] if dataset.notes else "")


def _count(one: RawFigures, given: Given, seed: int, sample: int, *, session: bool) -> None:
    """Read every row of the files."""
    for file in given.files:
        source = open_source(file.path)
        for unit in cut(as_session(source) if session else source):
            rows = list(read(unit))
            numbers = np.arange(one.rows, one.rows + len(rows))
            keys = hashes(seed, f"stats:{one.name}", numbers).tolist() if sample else [0] * len(rows)
            one.rows += len(rows)
            for row, number, key in zip(rows, numbers.tolist(), keys, strict=True):
                if row.reject is not None:
                    one.unreadable += 1
                    continue
                characters = _of_value(one, row.value)
                if sample and (len(one.sample) < sample or -key > one.sample[0][0]):
                    entry = -key, -number, _dumped(row.value), characters
                    (heapq.heappush if len(one.sample) < sample else heapq.heapreplace)(one.sample, entry)


def _of_value(one: RawFigures, value: Any) -> int:
    """Count the keys and characters of a row; return its characters."""
    if not isinstance(value, dict):
        total = _characters(value)
    else:
        if not value.keys() <= one.keys.keys():
            value = {key if key in one.keys or len(one.keys) < MOST_KEYS else OTHERS: v for key, v in value.items()}
        one.keys.update(value.keys())
        total = 0
        for key, inner in value.items():
            count = len(inner) if isinstance(inner, str) else _characters(inner)
            one.key_characters[key] += count
            total += count
    one.characters += total
    return total


def _characters(value: Any) -> int:
    """The characters of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(one) if isinstance(one, str) else _characters(one) for one in value.values())
    if isinstance(value, list):
        return sum(len(one) if isinstance(one, str) else _characters(one) for one in value)
    return 0


def _dumped(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits
        return json.dumps(value).encode()


# -- tokens --


def _compiled(dataset: Dataset, options: CompileOptions, watcher: Watcher) -> CompiledDataset:
    """The dataset's units, compiled."""
    tokenizer, documents = Tokenizer.load(options.tokenizer), dataset.options.kind == Kind.PRETRAIN
    template = load_template(options.template, tokenizer, documents=documents)
    setup = setup_of(options, tokenizer, template, documents=documents)
    run = UnitRun(options, [(dataset, Request(dataset.name))], setup, tokenizer, watcher, certify=False)
    with in_use(options.cache, watcher.say), run.engines() as engines:
        (found,) = compile_units(run, engines).load()
    return found


def _column(found: CompiledDataset, name: str) -> Ints:
    """A column of all examples."""
    return np.concatenate([unit.small.column(name).to_numpy() for unit in found.loaded]).astype(np.int64)


def _exact(one: RawFigures, options: CompileOptions, watcher: Watcher) -> dict[str, Any]:
    assert one.dataset is not None
    found = _compiled(_with_policy(one.dataset), options, watcher)
    tokens, trained = (
        sum(int(np.asarray(unit.small.column(name)).sum()) for unit in found.loaded)
        for name in ("length", "num_trained")
    )
    return {
        "exact": True,
        "sample": one.rows,
        "rejected": sum(len(unit.info["rejects"]) for unit in found.loaded),
        "tokens": tokens,
        "tokens_error": 0,
        "trained_tokens": trained,
        "trained_tokens_error": 0,
    }


def _near(dataset: Dataset, options: CompileOptions, watcher: Watcher, threshold: float) -> dict[str, Any]:
    asked = replace(options, mixing=replace(options.mixing, dedup=f"near:{threshold:g}"))
    return alike.of_files(_compiled(_with_policy(dataset), asked, watcher), asked.mixing, threshold)


def _with_policy(dataset: Dataset) -> Dataset:
    policy = registry.weights(dataset.options.weights)
    return replace(dataset, options=replace(dataset.options, weights=policy["name"], policy=policy))


def _estimate(one: RawFigures, options: CompileOptions, watcher: Watcher) -> dict[str, Any] | None:
    """The tokens of all rows by those of the sample."""
    assert one.dataset is not None
    sampled = sorted(one.sample, key=lambda entry: -entry[1])
    if not sampled:
        return None
    with TemporaryDirectory(prefix="sample-") as folder:
        path = Path(folder) / "sample.jsonl"
        path.write_bytes(b"".join(entry[2] + b"\n" for entry in sampled))
        dataset = _with_policy(replace(one.dataset, files=[File(path, one.name)]))
        found = _compiled(dataset, replace(options, cache=Path(folder) / "cache"), watcher)
    row = np.concatenate(
        [
            unit.small.column("index").to_numpy() + first
            for unit, first in zip(found.loaded, found.first_rows(), strict=True)
        ]
    )
    characters = np.array([entry[3] for entry in sampled], np.float64)
    readable = one.rows - one.unreadable
    result: dict[str, Any] = {
        "exact": len(sampled) == readable,
        "sample": len(sampled),
        "rejected": sum(len(unit.info["rejects"]) for unit in found.loaded),
    }
    for name, column in (("tokens", "length"), ("trained_tokens", "num_trained")):
        counts = np.bincount(row, _column(found, column), len(sampled))
        estimate, error = ratio(counts, characters, one.characters, readable)
        result |= {name: round(estimate), f"{name}_error": round(error)}
    return result


def ratio(counts: Any, characters: Any, total: int, rows: int) -> tuple[float, float]:
    """The total of the counts by their ratio to characters, and half the width of its interval."""
    if not characters.sum():
        return 0.0, 0.0
    rate, n = counts.sum() / characters.sum(), len(counts)
    if n >= rows:
        return float(counts.sum()), 0.0
    variance = float(((counts - rate * characters) ** 2).sum()) / max(1, n - 1)
    return float(rate * total), CONFIDENT * rows * float(np.sqrt((1 - n / rows) * variance / n))


def _entry(one: RawFigures, tokens: dict[str, Any] | None) -> dict[str, Any]:
    options = None if one.dataset is None else one.dataset.options
    readable = max(1, one.rows - one.unreadable)
    return {
        "name": one.name,
        "files": one.files,
        "format": None if options is None else options.format,
        "kind": None if options is None else str(options.kind),
        "note": one.note,
        "rows": one.rows,
        "unreadable": one.unreadable,
        "characters": one.characters,
        "keys": [
            {"key": key, "rows": rows, "share": round(rows / readable, 6), "characters": one.key_characters[key]}
            for key, rows in one.keys.most_common()
        ],
        "tokens": tokens,
    }


def said(found: dict[str, Any]) -> Iterator[str]:
    """The figures as lines of text."""
    for one in found["datasets"]:
        broken = f", {one['unreadable']:,} of them unreadable" if one["unreadable"] else ""
        yield f"{one['name']}: {one['rows']:,} rows{broken}, {one['characters']:,} characters"
        note = one["note"] or f"format {one['format']}"
        yield f"  {note if len(note) <= _LONG else note[:_LONG] + '...'}"
        yield from (f"  {line}" for line in _tokens(one))
        rows: list[Cells] = [["key", "rows", "share", "characters"]]
        rows += [
            [key["key"][:_WIDE], f"{key['rows']:,}", f"{key['share']:.1%}", f"{key['characters']:,}"]
            for key in one["keys"][:_SHOWN]
        ]
        if len(rows) > 1:
            yield from (f"  {line}" for line in table(rows))
        if len(one["keys"]) > _SHOWN:
            yield f"  ... {len(one['keys']) - _SHOWN:,} more keys; --json has all"
    yield from _more(found["datasets"])


def _more(found: list[dict[str, Any]]) -> Iterator[str]:
    """The languages and near duplicates, where they were asked for."""
    if "languages" in found[0]:
        yield from ("", *languages_said({one["name"]: one["languages"] for one in found}))
    if "near" in found[0]:
        known = {one["name"]: one["near"] for one in found if one["near"] is not None}
        yield from ("", *alike.said(known))
        yield from (f"{one['name']}: not compared, because no format is recognised" for one in found if not one["near"])


def _tokens(one: dict[str, Any]) -> Iterable[str]:
    tokens = one["tokens"]
    if tokens is None:
        return
    parts = []
    for name in ("tokens", "trained_tokens"):
        error = "" if tokens["exact"] else f" ± {tokens[f'{name}_error']:,}"
        parts.append(f"{tokens[name]:,}{error} {name.replace('_', ' ')}")
    how = "all rows compiled" if tokens["exact"] else f"by {tokens['sample']:,} rows; 95% intervals"
    yield f"{', '.join(parts)} ({share(tokens['trained_tokens'], tokens['tokens'])} trained; {how})"
    if tokens["rejected"]:
        yield f"{tokens['rejected']:,} of these {tokens['sample']:,} rows would be rejected"
