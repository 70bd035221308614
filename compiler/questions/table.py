"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Cells = list[str]


def table(rows: Sequence[Cells]) -> Iterator[str]:
    """The rows with their columns below each other: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=False))
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def share(part: float, whole: float) -> str:
    """A part as a percentage; "-" of nothing."""
    return f"{part / whole:.1%}" if whole else "-"
