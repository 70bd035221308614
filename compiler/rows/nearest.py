"""The format that rows come nearest to when they fit none, what keeps them from it, and names that would help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

from compiler.formats import FORMATS, Format
from compiler.formats.kinds import columns_for
from compiler.options import Names
from compiler.rows.validate import Validator
from schemas.errors import Reject

_MOST_KEYS = 12
"""Keys of a row that are tried as columns."""
_LIKELY = {
    "prompt": ("prompt", "question", "query", "instruction", "input", "problem", "source", "content", "text", "user"),
    "response": ("response", "answer", "output", "completion", "reply", "target", "solution", "summary", "assistant"),
}
"""The words that names of columns are known to have, the likeliest first."""
_SPEAKERS = {
    "user_tag": ("human", "user", "customer", "client", "prompter", "student", "patient", "question", "q"),
    "assistant_tag": ("gpt", "assistant", "bot", "model", "ai", "chatgpt", "agent", "doctor", "answer", "bing", "a"),
    "observation_tag": ("observation", "tool", "function_response", "function_result", "tool_result", "environment"),
    "function_tag": ("function_call", "function-call", "tool_call"),
    "system_tag": ("system",),
}
"""The words by which roles are called, in lower case."""


@dataclass(frozen=True)
class Nearest:
    """A format, the first row that does not fit it, why, and the columns with which all rows would."""

    format: str
    row: int
    reject: Reject
    columns: dict[str, str]
    """Column -> key of the rows; empty where other names do not help."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tag -> key or role of their messages, in the same way."""


def nearest_format(rows: list[Any], kind: str) -> Nearest | None:
    """The format that rows fit with other names of columns, else the one whose first mismatch is deepest in the row."""
    candidates = [format_ for format_ in FORMATS.values() if kind in format_.kinds]
    for format_ in candidates:
        if (columns := _renamed(format_, rows, kind)) is not None:
            return _compared(format_, rows, kind, columns)
    tried = [(one, _retagged(one, rows, kind)) for one in candidates if one.name in ("sharegpt", "openai")]
    renamed = [(one, *names) for one, names in tried if names is not None]
    if renamed:
        format_, columns, tags = min(renamed, key=lambda names: len(names[1]) + len(names[2]))
        first = _compared(format_, rows, kind, columns)
        return first and replace(first, tags=tags)
    found = (_compared(format_, rows, kind, {}) for format_ in candidates)
    return max(filter(None, found), key=_nearness, default=None)


def _nearness(one: Nearest) -> tuple[int, bool]:
    return one.reject.pointer.count("/"), one.row > 0


def _compared(format_: Format, rows: list[Any], kind: str, columns: dict[str, str]) -> Nearest | None:
    """The format with its first mismatch under its default names."""
    names: Names = columns_for(format_, kind, rows)
    validator = Validator(format_, names, dict(format_.tags), format_.name, kind)
    rejects = ((i, reject) for i, row in enumerate(rows) if (reject := validator.check(row)) is not None)
    first = next(rejects, None)
    return None if first is None else Nearest(format_.name, *first, columns)


def _renamed(format_: Format, rows: list[Any], kind: str) -> dict[str, str] | None:
    """The columns under other names with which every row fits; None where there are none, or a guess would be wild."""
    if not all(isinstance(row, dict) for row in rows):
        return None
    names = columns_for(format_, kind, rows)
    validator = Validator(format_, names, dict(format_.tags), format_.name, kind)
    keys = [key for key in rows[0] if all(key in row for row in rows)][:_MOST_KEYS]
    required = validator.schema.get("required", [])
    missing = {column: key for column, key in names.items() if key in required and key not in keys}
    free = [key for key in keys if key not in names.values()]
    if not 0 < len(missing) <= 2 or len(missing) < sum(key not in keys for key in required):
        return None
    for chosen in _by_likelihood(list(missing), free, rows):
        given = dict(zip(missing, chosen, strict=True))
        if not {key.lower() for key in free if key not in chosen}.isdisjoint(_LIKELY["prompt"]):
            continue  # what was asked would be left out
        other = Validator(format_, {**names, **given}, dict(format_.tags), format_.name, kind)
        if all(other.check(row) is None for row in rows):
            return given
    return None


def _retagged(format_: Format, rows: list[Any], kind: str) -> tuple[dict[str, str], dict[str, str]] | None:
    """The columns and tags under other names with which every row fits; None where there are none."""
    if not all(isinstance(row, dict) for row in rows):
        return None
    for column in rows[0]:
        lists = [row.get(column) for row in rows]
        if not all(isinstance(one, list) and one and all(isinstance(item, dict) for item in one) for one in lists):
            continue
        tags = _tags_of([item for one in lists if one for item in one], format_)
        names = columns_for(format_, kind, rows) | {"messages": column}
        validator = Validator(format_, names, {**format_.tags, **tags}, format_.name, kind)
        if tags and all(validator.check(row) is None for row in rows):
            return ({} if column == format_.columns["messages"] else {"messages": column}), tags
    return None


def _tags_of(messages: list[dict[str, Any]], format_: Format) -> dict[str, str]:
    """The tags of a format that messages call otherwise: their keys for role and text, and the roles by their words."""
    texts = [key for key in messages[0] if all(isinstance(message.get(key), str) for message in messages)]
    words = {word for known in _SPEAKERS.values() for word in known}
    role = next((key for key in texts if all(message[key].lower() in words for message in messages)), None)
    rest = [key for key in texts if key != role]
    content = format_.tags["content_tag"] if format_.tags["content_tag"] in rest else next(iter(rest), None)
    if role is None or content is None:
        return {}
    found = {"role_tag": role, "content_tag": content}
    for said in dict.fromkeys(message[role] for message in messages):
        tag = next(tag for tag, known in _SPEAKERS.items() if said.lower() in known)
        found.setdefault(tag, said)
    return {tag: name for tag, name in found.items() if format_.tags.get(tag) != name}


def _by_likelihood(columns: list[str], keys: list[str], rows: list[Any]) -> Iterator[tuple[str, ...]]:
    """The keys that may be the columns: texts by names that say so, or, where these are the only texts, in order."""
    texts = [key for key in keys if isinstance(rows[0][key], str)]

    def likely(column: str, key: str) -> bool:
        return not isinstance(rows[0][key], str) or any(word in key.lower() for word in _LIKELY.get(column, ()))

    for chosen in permutations(keys, len(columns)):
        in_order = list(chosen) == texts and len(columns) > 1
        if in_order or all(map(likely, columns, chosen)):
            yield chosen
