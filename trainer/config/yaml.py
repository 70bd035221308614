"""YAML 1.2: `5e-4` is a number, `no` is a string, and duplicate keys are an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from schemas.errors import InputError, UsageError

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_INT = re.compile(r"[-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema (yaml.org/spec/1.2.2, chapter 10.3)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML's own attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value)  # 010 is 10, not 8


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
    """Parse a YAML text; yaml.YAMLError if it is not YAML."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; InputError or UsageError, with the line where known."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(str(path), "no such file", "Give a YAML file; docs/train.md has examples.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(where, f"not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(found, dict):
        raise UsageError(str(path), f"expected keys and values, found {found!r}")
    return found


def dump(value: Any) -> str:
    """Format a value as YAML that `parse` reads back."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
