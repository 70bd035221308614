"""What checks the rows of a dataset, made once in each process: all its units have the same schema and keys."""

from __future__ import annotations

from functools import lru_cache

from compiler import formats
from compiler.options import DatasetOptions
from compiler.rows.keys import RowKeys
from compiler.rows.validate import Validator

_Names = tuple[tuple[str, str | None], ...]


def checks(dataset: DatasetOptions, ignore: tuple[str, ...], more: tuple[str, ...]) -> tuple[Validator, RowKeys]:
    """The validator of the rows, and the keys that are read; `ignore` and `more` are those of `RowKeys`."""
    columns, tags = tuple(dataset.columns.items()), tuple(dataset.tags.items())
    return _checks(dataset.format, columns, tags, dataset.kind, ignore, more)


@lru_cache(maxsize=16)
def _checks(
    name: str, columns: _Names, tags: _Names, kind: str, ignore: tuple[str, ...], more: tuple[str, ...]
) -> tuple[Validator, RowKeys]:
    format_, names = formats.get(name, "format"), dict(columns)
    validator = Validator(format_, names, dict(tags), f"format {name}", kind)
    return validator, RowKeys(validator.schema, format_, names, ignore, more)
