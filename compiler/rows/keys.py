"""The keys of a row that its format does not read (decision 28).

The schema of a format declares the keys that are read, at every depth. An object whose schema declares none, or is
marked with `x-whole`, is read whole. A key that stands in the `then` of an `if` (name: where the type is tool_use) is
read there only, unless the schema is marked with `x-open`. Of the other keys, `registry/keys.json` says which are

    known to change what is trained   the row is a reject that names the key
    ignorable                         ids, sources, scores, ...: nothing is said
    and of any other key it is counted in how many rows it has a value.

A value of null, and an empty text, list or object, is none. `--ignore` makes any key ignorable, and counts it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import registry
from compiler.formats import Format
from compiler.options import Names
from schemas.errors import Reason, RowError

MOST = 1000
"""The number of different keys that are counted by name in one unit; rows whose keys are data have no end of them."""
OTHERS = "(other keys)"
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_PARTS = ("if", "items", "contains")
_LISTS_OF_PARTS = ("allOf", "anyOf", "prefixItems")


@dataclass(frozen=True)
class _Condition:
    """What a schema's `if` asks of an object: one of some values under a key, or (`negated`) none of them."""

    key: str
    values: frozenset[Any]
    absent: bool
    """Whether an object without the key meets it."""
    negated: bool = False

    def holds(self, one: dict[str, Any]) -> bool:
        """Whether an object meets it."""
        if self.key not in one:
            return self.absent is not self.negated
        value = one[self.key]
        return (value.__hash__ is not None and value in self.values) is not self.negated


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys of an object, or of each object in a list, and of the objects below."""

    known: frozenset[str]
    inner: list[tuple[str, _Keys]] = field(default_factory=list)
    """Of a tree, the objects below are of the same sort again."""
    only: dict[str, tuple[_Condition, ...]] = field(default_factory=dict)
    """Keys that are read in some of the objects only, those that meet one of the conditions."""


@dataclass
class Unread:
    """What a row has that its format does not read: names of keys, and those of them that --ignore lists."""

    names: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)


class RowKeys:
    """The keys that are read of the rows of one dataset."""

    def __init__(
        self,
        schema: dict[str, Any],
        format_: Format,
        columns: Names,
        ignore: Collection[str],
        more: Collection[str] = (),
    ) -> None:
        """`schema` has the user's names; `ignore` is what --ignore lists, and `more` are further keys that are read."""
        table = registry.keys()
        self._format, self._ignore = format_.name, frozenset(ignore)
        ignorable = frozenset((*table["ignorable"], *format_.ignorable)) - self._ignore
        self._schema, self._ignorable, self._more = schema, ignorable, frozenset(more)
        found = _keys(schema, schema, ignorable, {})
        self._keys = found and replace(found, known=found.known | frozenset(more))
        self._below: dict[tuple[Any, ...], tuple[tuple[str, _Keys], ...]] = {}
        """The keys of a row, where all are read or ignorable -> those with keys below, which differ from row to row."""
        given = {default for name, default in format_.columns.items() if columns.get(name) is None}
        self._meaning = ({key: what for key, what in table["row"].items() if key not in given}, table["message"])
        """What keys of rows and of messages mean. A column that the user left out of a card is left out on purpose."""
        self._flags = frozenset(table["flags"])

    def covers(self, row: Any) -> bool:
        """Whether every key is read or ignorable. False may be wrong, where lists hold more than objects."""
        try:
            return self._keys is None or self._are_covered(self._keys, row)
        except (TypeError, AttributeError):  # a list in a list, or a text or number where others have objects
            return False

    def _are_covered(self, keys: _Keys, row: Any) -> bool:
        if row.__class__ is not dict:
            return _covers(keys, row if isinstance(row, list) else [row])
        inner = self._below.get(names := tuple(row))
        if inner is not None:
            return all(_covers(below, _objects(row[key])) for key, below in inner)
        covered = _covers(keys, [row])
        if covered and keys.only.keys().isdisjoint(names) and len(self._below) < MOST:
            self._below[names] = tuple(one for one in keys.inner if one[0] in row)
        return covered

    def unread(self, row: Any) -> Unread:
        """The keys that are neither; RowError for the first that is known to change what is trained."""
        found = Unread()
        for pointer, path, depth, key, value in (
            _leftovers(self._keys, row, "", "", int(isinstance(row, list))) if self._keys else ()
        ):
            if asked := self.ignored(key, path):
                found.ignored |= asked
            elif value in _EMPTY:
                continue
            elif what := self._means(depth, key, value):
                raise RowError(
                    Reason.UNREAD_KEY,
                    f"expected keys that the format {self._format} reads, found {key!r} ({what}), without which "
                    f"the row would say something else; --ignore {key} leaves it out",
                    pointer,
                )
            else:
                found.names.add(path)
        return found

    def becomes(self, key: str) -> tuple[str, str]:
        """What becomes of a key of a row that has a value under it, and why."""
        declared = _keys(self._schema, self._schema, frozenset(), {})
        if declared is None or key in declared.known | self._more:
            return "read", ""
        if key in self._ignore:
            return "ignored", "--ignore lists it"
        if key in self._ignorable:
            return "ignored", "such keys are about the row, and need not be read"
        if what := self._meaning[0].get(key):
            return "refused", f"{what}: the row is rejected"
        return "not read", "it is counted"

    def ignored(self, key: str, path: str) -> set[str]:
        """What --ignore lists of a key and its path."""
        return {key, path} & self._ignore

    def _means(self, depth: int, key: str, value: Any) -> str:
        """What a key that is not read would change; "" where that is not known."""
        if depth >= len(self._meaning):
            return ""
        if key in self._flags:
            return "" if value is True or value == 1 else "how much is trained"
        return str(self._meaning[depth].get(key, ""))


def _covers(keys: _Keys, objects: list[Any]) -> bool:
    """Whether objects of one sort, and all below them, have no other keys. Runs for every row: sets, not loops."""
    seen = set(chain.from_iterable(objects))
    if not seen <= keys.known:
        return False
    if keys.only and not seen.isdisjoint(keys.only):
        for key in seen & keys.only.keys():
            if any(key in one and not _is_read(keys, key, one) for one in objects):
                return False
    for key, inner in keys.inner:
        if key in seen:
            below: list[Any] = []
            for one in objects:
                below += _objects(one.get(key))
            if below and not _covers(inner, below):
                return False
    return True


def _objects(held: Any) -> list[Any]:
    """What is held under a key with keys below: a list, or one."""
    return held if held.__class__ is list else [held] if held.__class__ is dict else []


def _is_read(keys: _Keys, key: str, one: dict[str, Any]) -> bool:
    """Whether a known key is read in this object, or has no value."""
    conditions = keys.only.get(key)
    return conditions is None or any(c.holds(one) for c in conditions) or one[key] in _EMPTY


def _leftovers(
    keys: _Keys, value: Any, pointer: str, path: str, depth: int
) -> Iterator[tuple[str, str, int, str, Any]]:
    """(pointer, path, depth, key, value) of every key that is not known, in the order of the row."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leftovers(keys, item, f"{pointer}/{i}", path, depth)
    if not isinstance(value, dict):
        return
    inner = dict(keys.inner)
    for key, held in value.items():
        at = f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"
        named = f"{path}.{key}" if path else key
        if key not in keys.known or not _is_read(keys, key, value):
            yield at, named, depth, key, held
        elif key in inner:
            yield from _leftovers(inner[key], held, at, f"{named}[]" if isinstance(held, list) else named, depth + 1)


def _keys(node: Any, root: Any, ignorable: frozenset[str], made: dict[str, _Keys]) -> _Keys | None:
    """The keys that a schema declares for an object or for the items of a list; None for what is read whole.

    `made` are those of the schemas above, which a schema of trees refers to.
    """
    declared: dict[str, list[Any]] = {}
    asked: dict[str, set[_Condition | None]] = {}
    if not _declare(node, root, declared, asked) or not declared:
        return None
    if (same := made.get(text := repr((declared, asked)))) is not None:
        return same
    only = {
        key: tuple(condition for condition in conditions if condition)
        for key, conditions in asked.items()
        if key not in ignorable and _is_conditional(conditions)
    }
    keys = made[text] = _Keys(frozenset(declared) | ignorable, only=only)
    inner = ((key, _keys({"allOf": parts}, root, ignorable, made)) for key, parts in declared.items())
    keys.inner.extend((key, found) for key, found in inner if found is not None)
    return keys


def _is_conditional(conditions: set[_Condition | None]) -> bool:
    """Whether no two of the conditions are the `then` and the `else` of one `if`."""
    return None not in conditions and not any(c and replace(c, negated=not c.negated) in conditions for c in conditions)


def _condition(node: Any) -> _Condition | None:
    """An `if` as a condition; None for an `if` of another form."""
    if "anyOf" in node:
        found = {_condition(part) for part in node["anyOf"] if "not" not in part}
        one = next(iter(found)) if len(found) == 1 else None
        return one and replace(one, absent=True)
    asked = node.get("properties", {})
    if len(asked) != 1 or not set(node) <= {"properties", "required"}:
        return None
    ((key, value),) = asked.items()
    if not set(value) <= {"const", "enum"}:
        return None
    return _Condition(key, frozenset(value.get("enum", [value.get("const")])), key not in node.get("required", ()))


def _declare(
    node: Any,
    root: Any,
    declared: dict[str, list[Any]],
    asked: dict[str, set[_Condition | None]],
    *when: _Condition | None,
) -> bool:
    """Collect the keys of a schema and of its parts, each with its schemas; False where the value is read whole.

    `asked` gets the conditions of the keys that stand in a `then` or an `else`; `when` is the outermost one.
    """
    if not isinstance(node, dict):
        return True
    if node.get("x-whole"):
        return False
    if node.get("x-open"):
        when = (None,)
    if "$ref" in node:
        target = root
        for name in node["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        if not _declare(target, root, declared, asked, *when):
            return False
    for key in (*node.get("required", ()), *node.get("properties", {})):
        declared.setdefault(key, [])
        if when:
            asked.setdefault(key, set()).add(when[0])
    for key, value in node.get("properties", {}).items():
        declared[key].append(value)
    condition = _condition(node.get("if", {}))
    for name, one in (("then", condition), ("else", condition and replace(condition, negated=True))):
        if name in node and not _declare(node[name], root, declared, asked, *(when or (one,))):
            return False
    parts = [node[name] for name in _PARTS if name in node]
    parts += [part for name in _LISTS_OF_PARTS for part in node.get(name, ())]
    return all(_declare(part, root, declared, asked, *when) for part in parts)
