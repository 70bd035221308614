"""Rows chosen by what stands in their columns: `--where "resolved = 1 and reward > 0.5"`, an SQL expression of polars.

Each row is judged by itself, whatever else its batch holds. How the expression uses a column says what its values are:

    number   resolved = 1, reward > 0.5    numbers; true is 1, false is 0; text that is a number, as in CSV; "" is null
    text     source = 'swe', id LIKE 'x%'  text; anything else as JSON writes it
    any      patch IS NOT NULL             whatever it is

A key that a row lacks is null, and a row for which the expression is null is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import orjson

from schemas.errors import UsageError

_QUOTED = re.compile(r"""('(?:[^']|'')*'|"(?:[^"]|"")*")""")
_IS_TRUTH = re.compile(r"\bis\s+(true|false)\b", re.IGNORECASE)
_TRUTH = re.compile(r"\b(true|false)\b", re.IGNORECASE)
_OF_SEVERAL_ROWS = re.compile(
    r"\bover\b|\b(\w+_agg|ntile|corr|covar\w*|avg|mean|sum|min|max|count|first|last|median|std\w*|var\w*|quantile\w*|rank|dense_rank|row_number|lag|lead)"
    r"\s*\(",
    re.IGNORECASE,
)
_MOST_COLUMNS = 8


class Where:
    """A condition on rows."""

    def __init__(self, text: str) -> None:
        import polars as pl  # a third of a second, for those who ask

        self._text = text
        try:
            self._expression = pl.sql_expr(_numbers_for_truth(text))
            self.columns = sorted(set(self._expression.meta.root_names()))
        except pl.exceptions.PolarsError as error:
            raise self._wrong(f"it is not an SQL expression ({_line(error)})") from error
        if not self.columns or len(self.columns) > _MOST_COLUMNS:
            raise self._wrong(f"it names {'no column' if not self.columns else f'more than {_MOST_COLUMNS} columns'}")
        if _OF_SEVERAL_ROWS.search(_QUOTED.sub("", text)):
            raise self._wrong("it looks at several rows at once", "Each row is judged by itself.")
        shown = str(self._expression)
        compared = re.sub(r'col\("[^"]*"\)\.is_(not_)?null', "", shown)
        self._any = {name for name in self.columns if f'col("{name}")' not in compared}
        self._is_text = self._modes()

    def keeps(self, rows: Sequence[dict[str, Any]]) -> list[bool]:
        """Whether each row meets the condition; UsageError for a value that cannot be compared."""
        columns = {name: [self._value(name, row.get(name)) for row in rows] for name in self.columns}
        return [found is True for found in self._found(columns, self._is_text)]

    def _modes(self) -> dict[str, bool]:
        """Whether each column is text: tried with every combination, numbers first."""
        import polars as pl

        problem = ""
        for some in product((False, True), repeat=len(self.columns)):
            modes = dict(zip(self.columns, some, strict=True))
            try:
                self._found({name: ["1", None] if is_text else [1.0, None] for name, is_text in modes.items()}, modes)
            except pl.exceptions.PolarsError as error:
                problem = problem or _line(error)
            else:
                return modes
        raise self._wrong(f"it cannot be evaluated ({problem})")

    def _found(self, columns: dict[str, list[Any]], modes: dict[str, bool]) -> list[Any]:
        import polars as pl

        types = {name: pl.String if modes[name] else pl.Float64 for name in columns}
        series = pl.DataFrame(columns, schema=types).select(self._expression.alias("found"))["found"]
        if len(series) != len(next(iter(columns.values()))):
            raise self._wrong("it looks at several rows at once", "Each row is judged by itself.")
        if series.dtype != pl.Boolean:
            raise self._wrong("it gives a value, not true or false", f"Compare it: {self.columns[0]} = 1.")
        return series.to_list()

    def _value(self, name: str, value: Any) -> float | str | None:
        """A value of a column as the expression takes it."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if name in self._any:
            return "" if self._is_text[name] else 0.0
        if isinstance(value, list | dict):
            kind = "an array" if isinstance(value, list) else "an object"
            raise self._wrong(f"the column {name!r} holds {kind}", f"Only {name} IS NULL and IS NOT NULL take that.")
        if self._is_text[name]:
            return value if isinstance(value, str) else orjson.dumps(value).decode()
        if not isinstance(value, str):
            return float(value)
        text = value.strip().lower()
        if text in ("true", "false", ""):
            return None if not text else float(text == "true")
        try:
            number = float(text)
        except ValueError:
            what = f"the column {name!r} holds the text {value[:40]!r}, and is compared with a number"
            raise self._wrong(what, f"Compare text with text: {name} = 'TEXT'.") from None
        return None if math.isnan(number) else number

    def _wrong(self, what: str, hint: str = "--where \"resolved = 1 and source = 'swe'\"") -> UsageError:
        return UsageError(f"--where {self._text!r}", what, hint)


@lru_cache(maxsize=4)
def where(text: str) -> Where:
    """The condition of a text, made once in each process."""
    return Where(text)


def _numbers_for_truth(text: str) -> str:
    """The expression with 1 and 0 for true and false, which columns have too."""

    def outside(part: str) -> str:
        return _TRUTH.sub(lambda found: "1" if found[1].lower() == "true" else "0", _IS_TRUTH.sub(r"= \1", part))

    return "".join(part if number % 2 else outside(part) for number, part in enumerate(_QUOTED.split(text)))


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
