"""The whole page, rendered by a template engine that escapes all it is given."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.inspect.tokens import ShownRow
from compiler.report.assets import asset, environment, policy
from compiler.report.file import MARK
from compiler.report.measure import LONGEST, Track, measure, read_plainly
from compiler.report.rejects import reasons_of
from compiler.report.rows import RowPages, roles_of
from compiler.report.sections import sections
from compiler.report.thumbs import Thumbs
from schemas.reader import CompiledSet

LARGEST = 4_000_000
"""Bytes of all rows together: with everything else a report stays below 5 MB."""


@dataclass(frozen=True)
class Report:
    """A page, and what is on it: `rows` of the set, of which `shown` are on the page; so for rejected rows."""

    html: str
    rows: int
    shown: int
    rejected: int
    rejected_shown: int


@dataclass(frozen=True)
class Changes:
    """What changed since an earlier set: its name, the rows of both, and what `cli diff` counts and says."""

    earlier: str
    rows_of_both: tuple[int, int]
    equal: bool
    counts: dict[str, int]
    rows: list[tuple[str, int, list[str], dict[str, int]]]
    """What became of rows, how many, the first of them, and how many by dataset."""
    values: list[tuple[str, str, str]]
    """Settings and numbers: name, then and now."""
    remarks: list[str]


def make_report(
    opened: CompiledSet,
    *,
    remarks: list[str],
    shown: int = 100,
    seed: int = 0,
    changes: Changes | None = None,
    track: Track = iter,
) -> Report:
    """Read a set once and make the page. IntegrityError where a batch is damaged."""
    opened = read_plainly(opened)
    measured = measure(opened, shown, seed, track)
    rows = _rows(opened, measured.drawn)
    reasons = reasons_of(opened)
    context = sections(opened, measured, remarks) | {
        "rows": [html for _, html in rows],
        "roles": sorted({role for row, _ in rows for role in roles_of(row)}),
        "datasets": [entry["name"] for entry in opened.manifest["datasets"]],
        "reasons": reasons,
        "seed": seed,
        "total": sum(one.rows for one in measured.figures.values()),
        "too_long": measured.too_long,
        "longest": LONGEST,
        "drawn": len(measured.drawn),
        "changes": changes,
    }
    style, script = asset("row.css", "page.css"), asset("row.js", "page.js")
    html = (
        environment()
        .get_template("page.jinja")
        .render(
            **context,
            mark=MARK.decode(),
            style=style,
            script=script,
            policy=policy(style, script),
        )
    )
    counts = sum(reason.rows for reason in reasons), sum(len(reason.first) for reason in reasons)
    return Report(html, context["total"], len(rows), *counts)


def _rows(opened: CompiledSet, drawn: list[tuple[str, int]]) -> list[tuple[ShownRow, str]]:
    """The rows as HTML, in the order of the set; the last drawn are left out where they are too much together."""
    pages, thumbs = RowPages(opened), Thumbs(opened)
    names = list(opened.manifest["splits"])
    done = {}
    for name, number in sorted(drawn, key=lambda one: (names.index(one[0]), one[1])):
        row = pages.decoded(name, number)
        done[name, number] = row, pages.html(row, thumbs, opened=False)
    room, kept = LARGEST, set()
    for which in drawn:
        room -= len(done[which][1].encode("utf-8", "replace"))
        if room < 0:
            break
        kept.add(which)
    return [found for which, found in done.items() if which in kept]
