"""Bars of a histogram, as numbers that a template draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.report.measure import SHARES, Figures
from schemas.order import Ints

WIDTH, HEIGHT = 320, 84
"""The size of a chart in its own units; it is drawn as wide as there is room."""


@dataclass
class Bar:
    """One bar: where it stands, how high it is, and what is said when it is pointed at."""

    x: float
    width: float
    height: float
    said: str


@dataclass
class Chart:
    """A histogram: bars, labels below, and a line where rows are cut."""

    name: str
    bars: list[Bar]
    ticks: list[tuple[float, str]]
    cut: float | None = None
    facts: list[str] = field(default_factory=list)


def bars(counts: Sequence[int] | Ints, said: Sequence[str]) -> list[Bar]:
    """Bars of one width for these counts. A bar that is not 0 can be seen."""
    highest, width = max(1, *map(int, counts)), WIDTH / len(counts)
    return [
        Bar(round(n * width, 2), round(max(width - 1.5, 1), 2), round(max(count / highest * HEIGHT, 1.5), 2), text)
        for n, (count, text) in enumerate(zip(map(int, counts), said, strict=True))
        if count
    ]


def edges_of(all_figures: Sequence[Figures], cut: int | None) -> list[int]:
    """The edges of the bars of lengths, the same for all datasets: four to a doubling."""
    lengths = [np.flatnonzero(one.lengths) for one in all_figures if one.rows]
    least = min((int(found[0]) for found in lengths), default=1)
    most = max([int(found[-1]) for found in lengths] + ([cut] if cut else []), default=1)
    first, last = np.floor(np.log2(max(least, 1)) * 4), np.ceil(np.log2(max(most, 1) + 1) * 4)
    return sorted({round(2 ** (n / 4)) for n in np.arange(first, last + 1)} | {most + 1})


def length_chart(name: str, figures: Figures, edges: Sequence[int], cut: int | None) -> Chart:
    """The lengths of a dataset's rows, and where `--max-length` cuts."""
    total = np.concatenate([[0], np.cumsum(figures.lengths)])
    at = np.minimum(np.array(edges), len(figures.lengths))
    counts = np.diff(total[at])
    counts[0] += total[at[0]]
    said = [_rows(n) + f" of {a:,} to {b - 1:,} tokens" for n, a, b in zip(counts, edges, edges[1:], strict=False)]
    step = WIDTH / max(len(edges) - 1, 1)
    shown = [n for n, edge in enumerate(edges) if edge & (edge - 1) == 0]  # powers of 2
    shown = shown[:: max(1, -(-len(shown) // 6))]
    ticks = [(round(n * step, 2), f"{edges[n]:,}") for n in shown]
    place = None if cut is None else round(float(np.interp(cut + 1, edges, np.arange(len(edges)))) * step, 2)
    quantiles = ", ".join(f"{words} {figures.quantile(part):,}" for part, words in _QUANTILES)
    return Chart(name, bars(counts, said), ticks, place, [_rows(figures.rows), f"tokens a row: {quantiles}"])


_QUANTILES = ((0.0001, "least"), (0.5, "half up to"), (0.95, "95% up to"), (1.0, "most"))


def share_chart(name: str, figures: Figures) -> Chart:
    """How much of a dataset's rows is trained."""
    step = 100 // SHARES
    said = [f"{_rows(n)} with {at * step} to {at * step + step}% trained" for at, n in enumerate(figures.shares)]
    ticks = [(WIDTH * part / 4, f"{part * 25}%") for part in range(5)]
    facts = [f"{figures.trained:,} of {figures.tokens:,} tokens ({figures.trained / max(figures.tokens, 1):.1%})"]
    return Chart(name, bars(figures.shares, said), ticks, None, facts)


def fill_chart(fills: Ints) -> Chart:
    """How full packs are."""
    said = [f"{int(n):,} pack{'' if n == 1 else 's'} {at * 5} to {at * 5 + 5}% full" for at, n in enumerate(fills)]
    return Chart("packs", bars(fills, said), [(WIDTH * part / 4, f"{part * 25}%") for part in range(5)])


def _rows(count: int) -> str:
    return f"{int(count):,} row{'' if count == 1 else 's'}"
