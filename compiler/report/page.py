"""The whole page, and a row alone, rendered by a template engine that escapes all it is given."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from compiler.encode.shapes import TEMPLATE
from compiler.inspect.page import cut, facts, trained_map
from compiler.inspect.rows import SplitExamples
from compiler.inspect.tokens import ShownRow, decode_row
from compiler.inspect.vocabulary import TokenBytes
from compiler.report.file import MARK
from compiler.report.measure import LONGEST, Track, measure, read_plainly
from compiler.report.packs import Pack, pack_of
from compiler.report.rejects import reasons_of
from compiler.report.sections import sections
from compiler.report.thumbs import Thumbs
from compiler.report.turns import FIRST, LAST, Turn, shared, turns_of, visible
from schemas.reader import CompiledSet

HERE = Path(__file__).parent
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


def make_report(
    opened: CompiledSet, *, remarks: list[str], shown: int = 100, seed: int = 0, track: Track = iter
) -> Report:
    """Read a set once and make the page. IntegrityError where a batch is damaged."""
    opened = read_plainly(opened)
    measured = measure(opened, shown, seed, track)
    rows = _rows(opened, measured.drawn)
    reasons = reasons_of(opened)
    context = sections(opened, measured, remarks) | {
        "rows": [html for _, html in rows],
        "roles": sorted({role for row, _ in rows for role in _roles(row)}),
        "datasets": [entry["name"] for entry in opened.manifest["datasets"]],
        "reasons": reasons,
        "seed": seed,
        "total": sum(one.rows for one in measured.figures.values()),
        "too_long": measured.too_long,
        "longest": LONGEST,
        "drawn": len(measured.drawn),
    }
    style, script = _asset("row.css") + _asset("page.css"), _asset("page.js")
    html = (
        _environment()
        .get_template("page.jinja")
        .render(
            **context,
            mark=MARK.decode(),
            style=style,
            script=script,
            policy=_policy(style, script),
        )
    )
    counts = sum(reason.rows for reason in reasons), sum(len(reason.first) for reason in reasons)
    return Report(html, context["total"], len(rows), *counts)


def row_html(row: ShownRow, said: Sequence[str] = (), *, pack: Pack | None = None, styled: bool = True) -> str:
    """One row as HTML that stands for itself, as in a notebook's `_repr_html_`; without `styled`, for a page.

    `said` are further facts about the row, such as those of `compiler.inspect.page.facts`.
    """
    html = _row(row, said, pack, {}, opened=True)
    return f'<div class="fdc"><style>{_asset("row.css")}</style>{html}</div>' if styled else html


def _rows(opened: CompiledSet, drawn: list[tuple[str, int]]) -> list[tuple[ShownRow, str]]:
    """The rows as HTML, in the order of the set; the last drawn are left out where they are too much together."""
    if not drawn:
        return []
    vocabulary, thumbs = TokenBytes(opened), Thumbs(opened)
    examples = {name: SplitExamples(opened, name) for name, _ in drawn}
    names = list(opened.manifest["splits"])
    done = {}
    for name, number in sorted(drawn, key=lambda one: (names.index(one[0]), one[1])):
        row = decode_row(examples[name], number, vocabulary)
        pack = pack_of(opened.split(name), opened, number) if opened.is_packed else None
        done[name, number] = row, _row(row, facts(row, opened.manifest), pack, thumbs.of(row), opened=False)
    room, kept = LARGEST, set()
    for which in drawn:
        room -= len(done[which][1].encode("utf-8", "replace"))
        if room < 0:
            break
        kept.add(which)
    return [found for which, found in done.items() if which in kept]


def _row(row: ShownRow, said: Sequence[str], pack: Pack | None, thumbs: dict[int, str], *, opened: bool) -> str:
    media = [{**one, "kind": "image", "data": thumbs.get(one["position"], "")} for one in row.images]
    media += [{**one, "kind": "video", "data": ""} for one in row.videos]
    for one in media:
        one["uri"] = visible(cut(one["uri"], 300))
    sides: list[tuple[str, list[Turn]]] = []
    common = len(row.tokens)
    if row.rejected_tokens is not None:
        common = shared(row.tokens, row.rejected_tokens)
        sides = [("chosen", turns_of(row.tokens, media, common))]
        sides += [("rejected", turns_of(row.rejected_tokens, media, common))]
    return (
        _environment()
        .get_template("row.jinja")
        .render(
            row=row,
            place=visible(row.place).replace("\n", ""),
            said=said,
            pack=pack,
            turns=turns_of(row.tokens[:common], media),
            sides=sides,
            roles=_roles(row),
            map=trained_map(row),
            begin=_begin(row),
            template=TEMPLATE[0],
            opened=opened,
            around=(FIRST, LAST),
        )
    )


def _roles(row: ShownRow) -> list[str]:
    """The roles that a row has messages of."""
    tokens = [*row.tokens, *(row.rejected_tokens or ())]
    return sorted({token.role for token in tokens if token.role != TEMPLATE[0]})


def _begin(row: ShownRow) -> str:
    """The begin of a row's first message of the user, or of what there is instead."""
    for wanted in ("user", "", TEMPLATE[0]):
        text = ""
        for token in row.tokens:
            if token.role == wanted or (not wanted and token.role != TEMPLATE[0]):
                text += "" if token.control else token.text
            if len(text) > 160:
                break
        if text.strip():
            return visible(cut(" ".join(text.split()), 140))
    return ""


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@cache
def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """The page's Content-Security-Policy: its own style and script by their hashes, images in it, nothing else."""

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {hashed(script)}; style-src {hashed(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
