"""Self-cognition: the name and author of the model, in place of the placeholders of the pool.

Rows are {query, response, tag: zh|en}. `{{NAME}}` and `{{AUTHOR}}` (or lower-case, as LLaMA-Factory writes them) are
replaced in query and response, by the Chinese or the English value according to the row's tag. Any other text in double
braces is an error, because it would be trained literally.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import registry
from compiler.options import split_at_commas
from schemas.errors import Reason, RowError, UsageError

_COMPANY = re.compile(r'[^,，"\u3400-\u9fff]*\S, +[^,，"\u3400-\u9fff]*\S\s*')
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")

COLUMNS = {
    "prompt": "query",
    "query": None,
    "response": "response",
    "history": None,
    "system": None,
    "tools": None,
}


def persona(name: str, author: str) -> tuple[tuple[str, str], ...]:
    """The substitutions for `--name ZH[,EN] --author ZH[,EN]`; a single value serves both languages.

    A value in double quotes may have commas. So may one without Chinese characters before a comma with a space behind
    it, as a company's name is written: `Acme, Inc.`
    """
    values = []
    for what, given in (("name", name), ("author", author)):
        plain = given if '"' in given else given.replace("，", ",")
        if _COMPANY.fullmatch(given):
            parts = [given.strip()]
        else:
            parts = [part + (rest or "") for part, rest in split_at_commas(plain, f"--{what}")]
        if not 1 <= len(parts) <= 2 or not all(parts):
            raise UsageError(f"--{what} {given!r}", "expected one value, or two as ZH,EN", f"--{what} 卡卡罗特,Kakarot")
        values += [(f"{what}.zh", parts[0]), (f"{what}.en", parts[-1])]
    return tuple(values)


def substitute(row: dict[str, Any], values: dict[str, str]) -> dict[str, Any]:
    """The row with its placeholders filled in."""
    tag = row.get("tag", "zh")

    def fill(match: re.Match[str]) -> str:
        value = values.get(f"{match[1].lower()}.{tag}")
        if value is None:
            raise RowError(
                Reason.PLACEHOLDER,
                f"the placeholder {match[0]} has no value for language {tag!r}",
                f"/{column}",
            )
        return value

    filled = dict(row)
    for column in ("query", "response"):
        filled[column] = _PLACEHOLDER.sub(fill, row[column])
    return filled


def warnings(row: dict[str, Any], values: dict[str, str]) -> list[str]:
    """The names of the warnings that a filled-in row deserves.

    `other_model`: the reply names a model or maker that is not the persona's. `chinese_name`: an English reply contains
    a Chinese name or author.
    """
    found = []
    own = "\n".join(values.values()).casefold()
    said = {name for name in _other_models().findall(row["response"]) if name.casefold() not in own}
    if said:
        found.append("other_model")
    if row.get("tag") == "en" and any(_CHINESE.search(v) and v in row["response"] for v in values.values()):
        found.append("chinese_name")
    return found


def named_others(text: str, values: dict[str, str]) -> list[str]:
    """The models and makers that a text names and the persona does not, in order."""
    own = "\n".join(values.values()).casefold()
    return sorted({name for name in _other_models().findall(text) if name.casefold() not in own})


_CHINESE = re.compile("[\u3400-\u9fff]")


@cache
def _other_models() -> re.Pattern[str]:
    names = registry.other_models()
    words, texts = ("|".join(map(re.escape, sorted(names[kind], key=len, reverse=True))) for kind in ("words", "texts"))
    return re.compile(rf"(?<![A-Za-z])(?:{words})(?![A-Za-z])|{texts}", re.IGNORECASE)
