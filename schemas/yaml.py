"""YAML 1.2: `5e-4` is a number, `no` is a string, and duplicate keys are an error.

What no configuration needs is refused before it is built, so that no file takes long: see the limits below.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from schemas.errors import InputError, UsageError

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_INT = re.compile(r"[-+]?[0-9]+$")
LARGEST = 2**20
"""Bytes of a file."""
_VALUES, _DEPTH, _TEXT, _DIGITS = 10_000, 50, 10_000, 18
"""Keys and values in all, what aliases repeat counted again; how deep; characters of one; digits of an integer."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema (yaml.org/spec/1.2.2, chapter 10.3)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML's own attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for part, _ in node.value:
            key = self.construct_object(part, deep=True)
            what = "appears twice" if isinstance(key, str) and key in seen else "is not the name of a setting"
            if not isinstance(key, str) or key in seen:
                raise _error(f"the key {str(key)[:100]!r} {what}", part)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        digits = len(node.value.lstrip("+-0"))
        if digits > _DIGITS:
            raise _error(f"a number of {digits:,} digits, expected at most {_DIGITS}", node)
        return int(node.value)  # 010 is 10, not 8


def _error(what: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=at.start_mark)


for _tag, _pattern, _first in (
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("null", re.compile(r"(~|null|Null|NULL|)$"), "~nN\0"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
):
    for _letter in _first:
        _Loader.yaml_implicit_resolvers.setdefault(_letter.strip("\0"), []).append(
            (f"tag:yaml.org,2002:{_tag}", _pattern)
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse(text: str) -> Any:
    """Parse a YAML text; yaml.YAMLError if it is not YAML, or beyond the limits."""
    _check_limits(text)
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (ValueError, LookupError) as error:  # a tag that the value does not fit: `!!int one`
        raise yaml.YAMLError(f"a value is not what its tag says: {error}") from error
    finally:
        loader.dispose()


def _check_limits(text: str) -> None:
    """Raise a yaml.YAMLError for a text that is beyond the limits; nothing is built, and no alias followed."""
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"{len(text):,} characters, expected at most {LARGEST:,}")
    count, depth = 0, 0
    started: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            started.append((event.anchor, count))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            anchor, before = started.pop()
            if anchor is not None:
                sizes[anchor] = count - before + 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in started):
                raise _error(f"the alias {event.anchor!r} is inside of what it stands for", event)
            count += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if len(event.value) > _TEXT:
                raise _error(f"a value of {len(event.value):,} characters, expected at most {_TEXT:,}", event)
        if count > _VALUES or depth > _DEPTH:
            limit = f"{_VALUES:,} keys and values" if count > _VALUES else f"{_DEPTH} levels"
            raise _error(f"more than {limit}", event)


def read(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; InputError or UsageError, with the line where known."""
    try:
        found = parse(text_of(path))
    except FileNotFoundError:
        raise UsageError(str(path), "no such file", "Give a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(where, f"not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(found, dict):
        raise UsageError(str(path), f"expected keys and values, found {repr(found)[:200]}")
    return found


def text_of(path: Path) -> str:
    """The text of a configuration file, which may be a pipe; UsageError if it is longer than any."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UsageError(str(path), f"expected a configuration, found more than {LARGEST:,} bytes")
    return data.decode()


def dump(value: Any) -> str:
    """Format a value as YAML that `parse` reads back."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
