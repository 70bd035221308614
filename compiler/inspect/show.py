"""What `cli inspect` prints: rows, rejects and the results of checks.

`style` is "text", "json" (one object per row, one for all checks) or "sanity" (ChatGLM3's sanity check). Results go to
stdout. Remarks and failed checks go to stderr; only the remarks of "text" are part of its page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from compiler.inspect.check import Check, parse_check, run_checks
from compiler.inspect.choose import Query, choose, choose_rejects
from compiler.inspect.marks import visible
from compiler.inspect.page import Page, cut
from compiler.inspect.rows import SplitExamples
from compiler.inspect.tokens import ShownRow, decode_row
from compiler.inspect.vocabulary import TokenBytes
from schemas.errors import UsageError
from schemas.printed import json_line
from schemas.reader import CompiledSet


def show(opened: CompiledSet, query: Query, *, rejected: bool, checks: tuple[str, ...], style: str) -> bool:
    """Print what is asked for; return False if a check failed."""
    _refuse_contradictions(query, rejected, style)
    parsed = [parse_check(given, opened.manifest) for given in checks]
    if rejected:
        _show_rejects(opened, query, style)
    elif not parsed or query.asks:
        _show_rows(opened, query, style)
    if parsed:
        _show_checks(parsed, run_checks(opened, parsed), style)
    return all(check.ok for check in parsed)


def _refuse_contradictions(query: Query, rejected: bool, style: str) -> None:
    given = {"--row": query.row, "--find": query.find, "--sample": query.sample, "--rejected": rejected or None}
    used = [name for name, value in given.items() if value is not None]
    used += ["--dataset"] if query.row is not None and query.dataset is not None else []
    if len(used) > 1 and used != ["--find", "--sample"]:
        raise UsageError(" ".join(used), "they do not go together", "--find, --sample and --dataset do.")
    if rejected and style == "sanity":
        raise UsageError("--rejected --format sanity", "a rejected row has no tokens", "Leave --format out.")


def _print_json(value: dict[str, Any]) -> None:
    print(json_line(value))


def _remark(note: str) -> None:
    if note:
        print(note, file=sys.stderr)


# -- rows --


def _show_rows(opened: CompiledSet, query: Query, style: str) -> None:
    split, vocabulary = SplitExamples(opened, query.split), TokenBytes(opened)
    numbers, note = choose(split, query, vocabulary)
    rows = (decode_row(split, number, vocabulary) for number in numbers)
    if style == "text":
        page = Page.on(sys.stdout)
        page.legend()
        for row in rows:
            page.row(row, opened.manifest, query.find)
        page.say(note)
        return
    for row in rows:
        if style == "json":
            _print_json(row.as_json())
        else:
            _remark(f"{visible(row.place)}  {row.dataset}  row {row.row} of {row.split}")
            for side in filter(None, (row, row.rejected)):
                print(*_sanity(side, vocabulary), sep="\n")
    _remark(note)


def _sanity(row: ShownRow, vocabulary: TokenBytes) -> Iterator[str]:
    """Yield the lines that ChatGLM3's fine-tuning script prints; an incomplete character is shown as bytes."""
    yield "Sanity Check >>>>>>>>>>>>>"
    for token in row.tokens:
        yield f"{vocabulary.alone(token.id)!r:>20}: {token.id:>6} -> {token.label:>6}"
    yield "<<<<<<<<<<<<< Sanity Check"


# -- rejects --


def _show_rejects(opened: CompiledSet, query: Query, style: str) -> None:
    entries, note = choose_rejects(opened, query)
    if style == "json":
        for entry in entries:
            _print_json(entry)
        _remark(note)
        return
    page = Page.on(sys.stdout)
    for entry in entries:
        page.reject(entry)
    page.say(note)


# -- checks --


def _show_checks(checks: list[Check], rows: int, style: str) -> None:
    if style == "json":
        ok = all(check.ok for check in checks)
        _print_json({"ok": ok, "rows": rows, "checks": [check.as_json() for check in checks]})
        return
    for check in checks:
        print(*_verdict(check, rows), sep="\n", file=sys.stdout if check.ok else sys.stderr)


def _verdict(check: Check, rows: int) -> Iterator[str]:
    if not check.tokens:
        yield f"{check.given} holds, but there was nothing to check: no token of {check.what} in {rows:,} rows"
    elif check.ok:
        yield f"{check.given} holds: none of {check.tokens:,} tokens of {check.what} is trained, in {rows:,} rows"
    else:
        wrong = f"{check.trained:,} of {check.tokens:,} tokens of {check.what} {'is' if check.trained == 1 else 'are'}"
        yield f"{check.given} fails: {wrong} trained, in {check.rows:,} of {rows:,} rows"
        for entry in check.violations:
            where = f"{entry['split']} row {entry['row']}  {visible(entry['place'])}"
            yield f"  {where}  token {entry['token']} ⟦{cut(visible(entry['text']), 60)}⟧"
        if check.rows > len(check.violations):
            yield f"  and {check.rows - len(check.violations):,} more rows"
