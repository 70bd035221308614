"""What a compile would give, by a sample of its units: the answer of a dry run.

The rows of the sample, each as often as its unit's weight says, stand for all rows, and the mix is planned with them.
So every number is made by the code that makes the manifest's. Errors come from leaving out each eighth of the sample
in turn and doing it again (the delete-a-group jackknife; Kott, 2001): 95 of 100 such intervals hold the true number.
Rare things vary more than a small sample shows, so an interval of rejects is at least as wide as that of a Poisson
count. If every unit is in the sample, the numbers are those of the compile, and the errors are 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.options import CompileOptions
from compiler.sets.asked import options_entry
from compiler.sets.manifest import dataset_entry, total_balance
from compiler.sets.mix import Examples, MixPlan, make_plan
from compiler.sets.near import find_near
from compiler.sets.pack import pack
from compiler.sets.rejects import allowed_rejects, check_keys, check_rejects, check_where
from compiler.sets.rows import examples_of, rows_of
from compiler.units.compiled import CompiledDataset
from compiler.units.sample import GROUPS, Floats, UnitSample
from schemas.arrow import SPLITS, TEST, WORD_LISTS
from schemas.errors import Problem
from schemas.manifest import DatasetEntry, Manifest
from schemas.order import Ints, mix64

STUDENT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
"""Standard errors to each side of a 95% interval, by degrees of freedom."""
NONE_SEEN, SEEN = 3.69, 1.96
"""Of a Poisson count: the upper end of the interval when nothing was seen, and standard errors of what was seen."""
_ROW, _SPAN = 110, 24
"""Bytes of a row's provenance in a shard, and of a span: measured, for disk space only."""
EXAMPLES = 3
"""Rejects of each reason that are shown."""


@dataclass
class SampledDataset(CompiledDataset):
    """A dataset of which some units were compiled; its counts stand for all units."""

    weights: Floats = field(default_factory=lambda: np.ones(0))
    before: list[int | None] = field(default_factory=list)
    """For each unit, the rows of its file before it, where that is known."""

    def _total(self, what: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for weight, one in zip(self.weights.tolist(), self.loaded, strict=True):
            for key, count in one.info[what].items():
                total[key] += weight * count
        return Counter({key: round(value) for key, value in total.items()})

    def first_rows(self) -> list[int]:
        """For each unit, the number of rows of its file before it; of lines, of those in the sample."""
        counted = super().first_rows()
        return [known if before is None else before for known, before in zip(counted, self.before, strict=True)]


@dataclass(frozen=True)
class Foreseen:
    """What is known with one set of weights: the manifest as far as a sample gives it, or why there would be none."""

    manifest: Manifest | None
    problem: Problem | None
    numbers: dict[tuple[str, ...], float]


@dataclass(frozen=True)
class Forecast:
    """What a compile would give. `errors` has half of a 95% interval for each of the numbers."""

    figures: Foreseen
    errors: dict[tuple[str, ...], float]
    exact: bool
    sure: bool
    """Whether the exit code is the same at both ends of the intervals."""
    datasets: list[SampledDataset]


def forecast(compiled: list[CompiledDataset], sample: UnitSample, options: CompileOptions, beside: int) -> Forecast:
    """What the compile would give; `beside` are the bytes of a set that are not its rows."""
    sampled = [
        SampledDataset(one.dataset, one.request, one.records, before=[sample.sizes[n].before for n in places])
        for one, places in zip(compiled, sample.places, strict=True)
    ]
    exact = sample.is_all
    figures = _foreseen(_weighted(sampled, sample), options, beside)
    sure, errors = True, dict.fromkeys(figures.numbers, 0.0)
    if not exact:
        others = [_foreseen(_weighted(sampled, sample, group), options, beside) for group in _groups(sample)]
        errors = _errors(figures, others, sample.missing_share)
        sure = all(type(one.problem) is type(figures.problem) for one in others)
        weighted = _weighted(sampled, sample)
        for one in weighted:
            _widen(one, errors, figures.numbers)
            sure = sure and _is_sure(one, errors, options)
        sampled = weighted
    else:
        sampled = _weighted(sampled, sample)
    return Forecast(figures, errors, exact, sure, sampled)


def _groups(sample: UnitSample) -> range:
    """The parts of the sample that are left out, one after the other."""
    return range(min(GROUPS, min(len(one.chosen) for one in sample.strata if len(one.chosen) < len(one.places))))


def _weighted(sampled: list[SampledDataset], sample: UnitSample, without: int | None = None) -> list[SampledDataset]:
    return [replace(one, weights=weights) for one, weights in zip(sampled, sample.weights(without), strict=True)]


def _foreseen(compiled: list[SampledDataset], options: CompileOptions, beside: int) -> Foreseen:
    """The numbers of a compile of these datasets, made as `compile_set` makes them."""
    numbers = dict(_of_datasets(compiled))
    numbers["cache_bytes",] = sum(
        float(one.weights @ np.array([unit.nbytes + sum(unit.info["embedded"].values()) for unit in one.loaded]))
        for one in compiled
    )
    try:
        check_where([*compiled])
        check_rejects([*compiled], options, dry=True)
        check_keys([*compiled], options)
        requests, sampled = [one.request for one in compiled], [examples_of(one) for one in compiled]
        find_near(requests, sampled, rows_of(compiled), options.mixing)
        found = [_expanded(one, some) for one, some in zip(compiled, sampled, strict=True)]
        examples = [one for one, _ in found]
        mix = make_plan(requests, examples, options.mixing)
        splits = {name: split for name in SPLITS if (split := _split(name, mix, examples, options)) is not None}
    except Problem as problem:
        return Foreseen(None, problem, numbers)
    entries = [dataset_entry(i, one, examples[i], mix, options.units)
               for i, one in enumerate(compiled)]  # fmt: skip
    manifest: Any = {
        "options": options_entry(options),
        "datasets": entries,
        "balance": total_balance(entries),
        "splits": splits,
        "media": None,
    }
    if options.pack is not None:
        packs, tokens = (sum(split[key] for split in splits.values()) for key in ("rows", "tokens"))
        manifest["packing"] = {"length": options.pack, "efficiency": tokens / (packs * options.pack)}
    if any((one.weights != 1).any() for one in compiled):  # what repeats outside the sample is not known
        for entry in entries:
            for key in ("val_repeats", "in_train"):
                entry["realized"].pop(key, None)  # type: ignore[misc]
    numbers |= _of_mix(entries)
    for name, split in splits.items():
        numbers |= {("splits", name, key): split[key] for key in split if key != "shards"}
    sizes = (
        np.bincount(draw.position, minlength=len(rows.tokens)) for draw, rows in zip(mix.draws, examples, strict=True)
    )
    numbers["set_bytes",] = beside + sum(
        float(times @ _bytes_of(one)[index]) for times, one, (_, index) in zip(sizes, compiled, found, strict=True)
    )
    return Foreseen(manifest, None, numbers)


def _of_datasets(compiled: list[SampledDataset]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield what is known without a mix: rows, rejects and usable examples."""
    for one in compiled:
        name, counts = one.dataset.name, one.counts()
        yield (name, "read"), counts["read"]
        yield (name, "rejected"), sum(one.rejected().values())
        for reason, count in one.rejected().items():
            yield (name, "rejected", reason), count
        for column, what in (("length", "tokens"), ("num_trained", "trained_tokens")):
            sums = np.array([unit.small.column(column).to_numpy().sum(dtype=np.int64) for unit in one.loaded])
            yield (name, what), float(one.weights @ sums)
        yield (name, "examples"), float(one.weights @ np.array([unit.num_rows for unit in one.loaded]))


def _of_mix(entries: list[DatasetEntry]) -> dict[tuple[str, ...], float]:
    realized: dict[tuple[str, ...], float] = {
        (entry["name"], "realized", key): float(value)  # type: ignore[arg-type]
        for entry in entries
        for key, value in entry["realized"].items()
    }
    balances: dict[tuple[str, ...], float] = {
        (entry["name"], "balance", key): float(value)  # type: ignore[arg-type]
        for entry in entries
        for key, value in entry["balance"].items()
    }
    return realized | balances


def _split(name: str, mix: MixPlan, examples: list[Examples], options: CompileOptions) -> dict[str, Any] | None:
    """The totals of a split, as the manifest has them."""
    chosen = np.flatnonzero(mix.split == SPLITS.index(name))
    if name == TEST and not len(chosen):
        return None
    starts = np.cumsum([0, *(len(rows.tokens) for rows in examples)])
    at = starts[mix.dataset[chosen]] + mix.position[chosen]
    tokens, trained = (np.concatenate([getattr(rows, key) for rows in examples])[at] for key in ("tokens", "trained"))
    split: dict[str, Any] = {"rows": len(at), "tokens": int(tokens.sum()), "trained_tokens": int(trained.sum())}
    if options.pack is not None:
        order, packs = pack(tokens, options.pack) if len(at) else (at, None)
        split |= {"rows": 0 if packs is None else len(packs.edges) - 1}
        if packs is not None:
            split["sequences"] = len(order)
    return split | {"shards": []}


def _expanded(one: SampledDataset, found: Examples) -> tuple[Examples, Ints]:
    """The examples of all units: those of the sample, each as often as its unit's weight says, and which they are.

    A copy is a conversation of its own: what repeats is known only where both are in the sample.
    """
    ends = np.floor(np.cumsum(np.repeat(one.weights, [unit.num_rows for unit in one.loaded])) + 0.5 + 1e-6)
    copies = np.diff(ends, prepend=0.0).astype(np.int64)
    index = np.repeat(np.arange(len(copies)), copies)
    copy = np.arange(len(index)) - np.repeat(np.cumsum(copies) - copies, copies)
    groups = found.fingerprints if found.groups is None else found.groups
    return Examples(
        found.tokens[index], found.trained[index], _named(found.fingerprints[index], copy), found.cap,
        _named(groups[index], copy),
            None if found.near is None else found.near[index],
    ), index  # fmt: skip


def _named(prints: npt.NDArray[np.bytes_], copy: Ints) -> npt.NDArray[np.bytes_]:
    """Prints that are other ones for each copy; those of the first are unchanged."""
    words = np.frombuffer(prints.tobytes(), "<u8").reshape(-1, 2).copy()
    words[copy > 0] ^= mix64(copy[copy > 0].astype(np.uint64))[:, None]
    return np.frombuffer(words.tobytes(), "S16")


def _bytes_of(one: SampledDataset) -> Floats:
    """About how many bytes each example of the sample takes in a shard."""
    parts = [np.zeros(0)]
    for unit in one.loaded:
        size = np.full(unit.num_rows, float(_ROW))
        for name in WORD_LISTS:
            words = unit.counts.get(name.replace("trained", "input_ids"))  # as many labels as ids
            if words is not None:
                size += words * (_SPAN / 2 if name.endswith("spans") else 4.0)
        parts.append(size)
    return np.concatenate(parts)


# -- errors --


def _errors(figures: Foreseen, others: list[Foreseen], missing: float) -> dict[tuple[str, ...], float]:
    """Half of a 95% interval of each number, by what it is without each part of the sample."""
    groups = len(others)
    width = STUDENT.get(groups - 2, 12.71)
    found = {}
    for key, value in figures.numbers.items():
        without = np.array([one.numbers.get(key, 0.0) for one in others if one.manifest or not figures.manifest])
        spread = float(((without - value) ** 2).sum()) * (groups - 1) / max(1, len(without))
        found[key] = width * float(np.sqrt(missing * spread))
    return found


def _widen(one: SampledDataset, errors: dict[tuple[str, ...], float], numbers: dict[tuple[str, ...], float]) -> None:
    """Widen the intervals of rejects to those of a Poisson count."""
    scale = float(one.weights.max(initial=1.0))
    if scale <= 1:
        return
    for key in [key for key in numbers if key[:2] == (one.dataset.name, "rejected")]:
        seen = numbers[key] / scale
        errors[key] = max(errors[key], scale * (SEEN * float(np.sqrt(seen)) if seen else NONE_SEEN))


def _is_sure(one: SampledDataset, errors: dict[tuple[str, ...], float], options: CompileOptions) -> bool:
    """Whether the rejects are on one side of what is allowed, at both ends of their interval."""
    rejected, error = sum(one.rejected().values()), errors[one.dataset.name, "rejected"]
    allowed = allowed_rejects(options, one.num_examples())
    return not rejected - error <= allowed < rejected + error
