"""What the address of a page asks for, and addresses of further pages."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlencode

from compiler.report.browse.find import MOST, SECONDS, SORTS, FoundRows, RowQuery

Given = dict[str, str]
"""The query of an address."""
Link = tuple[str, str]
"""(text, address)"""


class NoSuchPage(Exception):
    """What is asked for does not exist: a message."""


def searched(asked: RowQuery, found: FoundRows) -> tuple[str, list[Link]]:
    """How many rows were found where, and where the search for a text goes on."""
    where = f"{asked.split}" + (f", dataset {asked.dataset}" if asked.dataset else "")
    said = f"{count(len(found.rows), 'row')} of {where}, {SORTS[asked.sort]}"
    if not asked.text:
        return said, []
    said = f"{count(len(found.rows), 'row')} of {where} with {asked.text!r} in the rows {asked.start:,} to "
    said += f"{found.searched - 1:,} of {found.total:,}, {SORTS[asked.sort]}. Upper and lower case differ."
    if found.searched >= found.total:
        return said, []
    said += f" The search stopped there, as one ends after {SECONDS:g} seconds or {MOST:,} rows."
    query = {"split": asked.split, "dataset": asked.dataset, "text": asked.text, "sort": asked.sort}
    return said, [("search on from there", f".?{urlencode({**query, 'start': found.searched})}")]


def pager(name: str, given: Given, total: int, each: int) -> list[Link]:
    """Links to other pages of a list; the one without an address says where this one is."""
    page, pages = number_of(given, "page", 1), -(-total // each)
    if pages < 2:
        return []

    def to(number: int) -> str:
        return f"{name}?{urlencode({**given, 'page': number})}"

    here = (f"{(page - 1) * each + 1:,} to {min(page * each, total):,} of {total:,}", "")
    back = [("first", to(1)), ("previous", to(page - 1))] if page > 1 else []
    on = [("next", to(page + 1)), ("last", to(pages))] if page < pages else []
    return [*back, here, *on]


def parsed(query: str) -> Given:
    """What a query gives, each name once."""
    try:
        given = parse_qsl(query, keep_blank_values=True, max_num_fields=20, errors="replace")
    except ValueError:  # more than these fields
        given = [("", ""), ("", "")]
    found = dict(given)
    if len(found) != len(given):
        raise NoSuchPage("the address gives a name twice")
    return found


def check(given: Given, *names: str) -> None:
    """Raise NoSuchPage for a name that the page does not take."""
    if wrong := sorted(set(given) - set(names)):
        raise NoSuchPage(f"{wrong[0]!r} is not asked here, but {', '.join(names)}")


def number_of(given: Given, name: str, default: int) -> int:
    """A number of the query."""
    text = given.get(name, "")
    if not re.fullmatch(r"[0-9]{0,15}", text):
        raise NoSuchPage(f"{name} {text!r} is no number")
    return int(text) if text else default


def shown(value: Any) -> str:
    """A number of the log, as people read it."""
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def count(many: int, what: str) -> str:
    """So many of something, in words."""
    return f"{many:,} {what}{'' if many == 1 else 's'}"


def times(many: int) -> str:
    """How often, in words."""
    return "once" if many == 1 else f"{many:,} times"
