"""The mix: which example of which dataset is in the set, how often, in which order. Arithmetic on arrays, no files.

1. Exact duplicates are found across all datasets, in the order of the mix; the first one is no duplicate. Near ones are
   found before (near.py).
2. Every dataset gets an amount: a count of rows, all its rows, or a share of a total. By default the total is the
   largest at which no dataset uses a row more often than allowed.
3. Rows are drawn in a seeded order, and evenly: each row q times, some once more.
4. Whole conversations are chosen for validation (`validation.py`); held-out files are splits of their own.
5. Everything is shuffled once, seeded.

Orders are made by hashing (seed, purpose, position, repeat), not by a random generator: they are the same on every
machine, with every numpy, for any number of workers. Time n log n for n rows; memory about fifty bytes a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from compiler.options import MixOptions, Request, quoted
from compiler.sets.prints import Places, again, taken
from compiler.sets.validation import choose_validation, keep_together
from schemas.arrow import SPLITS, TRAIN, VAL
from schemas.errors import IntegrityError, UsageError
from schemas.order import Ints, hashes

MOST_ROWS = 200_000_000
"""A plan is held in memory. More rows are a mistake, or need several sets."""


@dataclass
class Examples:
    """A dataset's examples, in the order of its files. tokens, trained int64[N]; fingerprints S16[N]."""

    tokens: Ints
    trained: Ints
    fingerprints: npt.NDArray[np.bytes_]
    cap: int | None = None
    """Use at most so many of them (`num_samples`)."""
    groups: npt.NDArray[np.bytes_] | None = None
    """S16[N]: examples of one group stay on one side of the split; None = only equal conversations do."""
    near: npt.NDArray[np.bool_] | None = None
    """Which are near duplicates of one that stays; None = none were looked for."""

    def measure(self, unit: str) -> Ints:
        """How much each example counts towards a share, int64[N]."""
        return {"rows": np.ones_like(self.tokens), "tokens": self.tokens, "trained_tokens": self.trained}[unit]


@dataclass
class Draw:
    """What is drawn of one dataset: position int32[M] among its examples, repeat int32[M]."""

    position: Places
    repeat: Places
    target: float | None
    """What the share asked for, in the unit of the mix; None for counts and for all rows."""
    duplicates: int
    dropped: int
    """How many duplicates were removed (--dedup)."""
    near: int = 0
    """How many of them are near ones."""


@dataclass
class MixPlan:
    """All examples of the set in final order: dataset, position, repeat int32[M]; split int8[M] into `SPLITS`."""

    dataset: Places
    position: Places
    repeat: Places
    split: npt.NDArray[np.int8]
    val_repeats: npt.NDArray[np.bool_]
    """Which rows for validation say the same as one before them there."""
    in_train: npt.NDArray[np.bool_]
    """Which rows of other splits say the same as one for training; only held-out files can have such rows."""
    draws: list[Draw] = field(default_factory=list)

    @property
    def val(self) -> npt.NDArray[np.bool_]:
        """Which rows are for validation, bool[M]."""
        return self.split == SPLITS.index(VAL)


def make_plan(requests: Sequence[Request], examples: Sequence[Examples], options: MixOptions) -> MixPlan:
    """Plan the mix of the datasets, which are in the order of the requests."""
    duplicate = repeated(requests, examples)
    for rows, twice in zip(examples, duplicate, strict=True):
        if rows.near is not None:
            twice |= rows.near
    usable: list[Ints] = []
    for request, rows, twice in zip(requests, examples, duplicate, strict=True):
        positions = np.flatnonzero(~twice) if options.dedup else np.arange(len(rows.tokens))
        usable.append(_capped(request.name, positions, rows.cap, options.seed))
    amounts = _amounts(requests, examples, usable, options)
    draws = []
    for request, rows, positions, twice, (amount, target) in zip(
        requests, examples, usable, duplicate, amounts, strict=True
    ):
        position, repeat = _draw(request, rows, positions, amount, options)
        near = 0 if rows.near is None else int(rows.near.sum())
        draw = Draw(position, repeat, target, int(twice.sum()), int(twice.sum()) if options.dedup else 0, near)
        _check_realized(request, rows, draw, options)
        draws.append(draw)
    return _order(requests, examples, draws, options)


def repeated(requests: Sequence[Request], examples: Sequence[Examples]) -> list[npt.NDArray[np.bool_]]:
    """Which rows of each dataset repeat a conversation that came before among those for the same split; bool[N]."""
    found = [np.zeros(len(rows.fingerprints), dtype=bool) for rows in examples]
    for split in SPLITS:
        mine = [i for i, request in enumerate(requests) if request.split == split]
        if mine:
            ends = np.cumsum([len(found[i]) for i in mine])
            prints = np.concatenate([examples[i].fingerprints for i in mine])
            for i, twice in zip(mine, np.split(again(prints), ends[:-1]), strict=True):
                found[i] = twice
    return found


def _capped(name: str, positions: Ints, cap: int | None, seed: int) -> Ints:
    """At most `cap` of the positions, chosen in seeded order."""
    if cap is None or cap >= len(positions):
        return positions
    return np.sort(positions[np.argsort(hashes(seed, f"cap:{name}", positions), kind="stable")][:cap])


def _nothing_to_draw(name: str, rows: Examples) -> UsageError:
    if not len(rows.tokens):
        return UsageError(f"--mix {name}", "the dataset has no row that could be used", "See its rejects.")
    what = f"each of its {len(rows.tokens):,} rows repeats a conversation that came before"
    return UsageError(f"--mix {name}", what, "Leave the dataset out, or --dedup.")


def _amounts(
    requests: Sequence[Request], examples: Sequence[Examples], usable: Sequence[Ints], options: MixOptions
) -> list[tuple[float, float | None]]:
    """(Amount, what the share asked for) of each dataset: rows for counts, the unit of the mix for shares."""
    shares = [request.share for request in requests]
    capacity = [float(rows.measure(options.mix_unit)[at].sum()) for rows, at in zip(examples, usable, strict=True)]
    for request, rows, at in zip(requests, examples, usable, strict=True):
        if not len(at) and (request.share is not None or request.count is not None):
            raise _nothing_to_draw(request.name, rows)
        _check_count(request, len(at), options)
    with_share = [(i, share) for i, share in enumerate(shares) if share is not None]
    uses = 1 + (options.max_repeats or 0)
    total = 0.0
    if with_share:
        whole = sum(share for _, share in with_share)
        if options.total is not None:
            total = options.total / whole
        else:
            total = min(capacity[i] * uses / share for i, share in with_share)
        _check_repeats(requests, with_share, capacity, total, options)
    targets = {i: share * total for i, share in with_share}
    if options.mix_unit == "rows":
        targets = _whole_rows(targets, options)
    amounts: list[tuple[float, float | None]] = []
    for i, (request, at) in enumerate(zip(requests, usable, strict=True)):
        if i in targets:
            amounts.append((targets[i], (request.share or 0.0) * total))
        else:
            repeated = examples[i].cap or 0
            amounts.append((request.count or max(len(at), repeated), None))
    return amounts


def _check_count(request: Request, rows: int, options: MixOptions) -> None:
    """UsageError if a count needs a row more often than --max-repeats allows."""
    count, repeats = request.count or 0, options.max_repeats or 0
    if request.repeats or count <= rows * (1 + repeats):
        return
    allowed = "no row may be repeated" if not repeats else f"each may be used {1 + repeats} times"
    raise UsageError(
        f"--mix {quoted(request.name)}#{count}",
        f"it has {rows:,} row{'' if rows == 1 else 's'} that can be used, and {allowed}",
        f"Add --max-repeats {-(-count // rows) - 1}, or ask for at most {rows * (1 + repeats):,}.",
    )


def _whole_rows(targets: dict[int, float], options: MixOptions) -> dict[int, float]:
    """Whole numbers of rows: rounded down; what --total still lacks goes to the largest remainders."""
    whole = {i: float(np.floor(target + 1e-9)) for i, target in targets.items()}
    if options.total is not None:
        missing = int(options.total - sum(whole.values()))
        for i in sorted(targets, key=lambda i: (whole[i] - targets[i], i))[:missing]:
            whole[i] += 1
    return whole


def _check_repeats(
    requests: Sequence[Request],
    with_share: list[tuple[int, float]],
    capacity: list[float],
    total: float,
    options: MixOptions,
) -> None:
    """UsageError if --total needs a row more often than --max-repeats allows."""
    if options.total is None or options.max_repeats is None:
        return
    for i, share in with_share:
        if share * total > capacity[i] * (1 + options.max_repeats) + 1e-6:
            raise UsageError(
                f"--total {options.total}",
                f"{requests[i].name!r} would need {share * total:,.0f} {options.mix_unit}, it has {capacity[i]:,.0f} "
                f"and may use each row {1 + options.max_repeats} times",
                "Raise --max-repeats, lower --total, or give it a smaller share.",
            )


def _draw(
    request: Request, rows: Examples, positions: Ints, amount: float, options: MixOptions
) -> tuple[Places, Places]:
    """Draw an amount: (positions, repeats) of whole passes over the rows, then of part of one more, in seeded order."""
    unit = options.mix_unit if request.share is not None else "rows"
    measure = rows.measure(unit)[positions]
    each = float(measure.sum())
    passes = int(amount // each) if each else 0
    if passes * len(positions) > MOST_ROWS:
        raise UsageError(
            f"--mix {request.name}", f"it would be {passes * len(positions):,} rows, a set may have {MOST_ROWS:,}",
            "Lower --total or the number of rows.",
        )  # fmt: skip
    rest = amount - passes * each
    if not rest and bool((measure > 0).all()):  # whole passes: nothing is drawn
        return _passes(positions, passes)
    order = np.argsort(hashes(options.seed, f"draw:{request.name}:{passes}", positions), kind="stable")
    reached = np.cumsum(measure[order])
    # Stop where the sum is closest to what is left: the error is less than one row.
    low = int(np.searchsorted(reached, rest, side="right"))
    before = float(reached[low - 1]) if low else 0.0
    if low < len(reached) and abs(float(reached[low]) - rest) < abs(before - rest):
        low += 1
    extra = np.sort(positions[order[:low]])
    position, repeat = _passes(positions, passes)
    return np.append(position, extra.astype(np.int32)), np.append(repeat, np.full(len(extra), passes, np.int32))


def _passes(positions: Ints, passes: int) -> tuple[Places, Places]:
    """All rows, so many times: positions and repeats."""
    repeat = np.repeat(np.arange(passes, dtype=np.int32), len(positions))
    return np.tile(positions.astype(np.int32), passes), repeat


def _check_realized(request: Request, rows: Examples, draw: Draw, options: MixOptions) -> None:
    """IntegrityError if a dataset misses its share by a row or more (of tokens: by its longest row or more)."""
    if draw.target is None or not len(draw.position):
        return
    measure = rows.measure(options.mix_unit)
    got = float(measure[draw.position].sum())
    if abs(got - draw.target) > float(measure.max()):
        raise IntegrityError(
            f"--mix {request.name}",
            f"{draw.target:,.1f} {options.mix_unit} were asked for, {got:,.0f} were drawn",
        )


def _order(
    requests: Sequence[Request], examples: Sequence[Examples], draws: list[Draw], options: MixOptions
) -> MixPlan:
    """Put all draws into one order, and choose the rows for validation."""
    dataset = np.repeat(np.arange(len(draws), dtype=np.int32), [len(draw.position) for draw in draws])
    if not len(dataset):
        raise _no_row(examples, options)
    position, repeat = (np.concatenate(some) for some in zip(*((d.position, d.repeat) for d in draws), strict=True))
    split = np.array([SPLITS.index(request.split) for request in requests], np.int8)[dataset]
    prints = [rows.fingerprints for rows in examples]
    if options.val_size:
        train = np.flatnonzero(split == 0)
        groups = [rows.fingerprints if rows.groups is None else rows.groups for rows in examples]
        same, joined = (taken(some, dataset[train], position[train]) for some in (prints, groups))
        split[train] = choose_validation(keep_together(same, joined), options.val_size, options.seed)
        del same, joined
    if options.shuffle:
        # Hashed with the dataset's name: adding a dataset does not reorder the others among themselves.
        keys = np.concatenate(
            [
                hashes(options.seed, f"shuffle:{request.name}", draw.position, draw.repeat)
                for request, draw in zip(requests, draws, strict=True)
            ]
        )
        order = np.argsort(keys, kind="stable")
        del keys
        dataset, position, repeat, split = dataset[order], position[order], repeat[order], split[order]
    val = np.flatnonzero(split == SPLITS.index(VAL))
    val_repeats = np.zeros(len(split), dtype=bool)
    val_repeats[val] = again(taken(prints, dataset[val], position[val]))
    in_train = np.zeros(len(split), dtype=bool)
    if any(request.split != TRAIN for request in requests):
        train, others = np.flatnonzero(split == 0), np.flatnonzero(split > 0)
        asked, trained = (taken(prints, dataset[some], position[some]) for some in (others, train))
        in_train[others] = np.isin(asked, trained)
    return MixPlan(dataset, position, repeat, split, val_repeats, in_train, draws)


def _no_row(examples: Sequence[Examples], options: MixOptions) -> UsageError:
    if not any(len(rows.tokens) for rows in examples):
        return UsageError("compile", "there is no row to write", "Every row was rejected; see the rejects.")
    where = "--mix" if options.total is None else f"--total {options.total}"
    return UsageError(where, "it asks for less than one row", "Ask for more.")
