"""The words of rows: side by side in objects, and copied from there, or from spilled files, in any order."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from compiler.cache import objects
from compiler.cache.layout import narrow
from compiler.cache.small import SmallColumns, exact
from compiler.sets import words
from compiler.sets.rows import CompiledRows, ObjectRows
from schemas.arrow import OBJECT, OBJECT_NEAR, SHINGLES, WORD_LISTS
from schemas.errors import IntegrityError

LAW = settings(max_examples=150, deadline=None, derandomize=True, database=None)
NUMBERS = st.lists(st.integers(0, 2**31 - 1), max_size=6)
OWNERS = [("template", ""), ("user", "prompt"), ("assistant", "reply")]
SPANS = st.lists(st.tuples(st.integers(0, len(OWNERS) - 1), st.integers(1, 9)), max_size=4)


@st.composite
def rows_of_objects(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """The rows of some objects: their lists, of which most are missing."""
    used = draw(st.sets(st.sampled_from((*WORD_LISTS, SHINGLES))))

    def row() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in sorted(used):
            value = draw(SPANS if "spans" in name else NUMBERS)
            found[name] = [number for pair in value for number in pair] if "spans" in name else value
            if "weights" in name:
                found[name] = [float(np.float32(number)) for number in value] or None
        return found

    return [[row() for _ in range(draw(st.integers(0, 5)))] for _ in range(draw(st.integers(1, 4)))]


def stored(folder: Path, some: list[list[dict[str, Any]]]) -> CompiledRows:
    """The rows as objects of a cache; each object numbers its owners in an order of its own."""
    parts = []
    for number, rows in enumerate(some):
        whole = [
            {"num_trained": 1, "part": 0, "images": [], "videos": [], "index": n, "offset": 10 * n, "length": 7}
            | {"fingerprint": bytes(16), "group": bytes(16)}
            | row
            for n, row in enumerate(rows)
        ]
        owners = OWNERS[number % 3 :] + OWNERS[: number % 3]
        table = pa.Table.from_pylist(whole, OBJECT_NEAR)
        made = objects.store(folder, f"{number:040}", table, {"owners": owners, "lines": [], "embedded": {}})
        loaded = objects.load(folder, f"{number:040}")
        assert loaded is not None
        assert (loaded.first_word, list(loaded.counts)) == (made.first_word, list(made.counts))
        parts.append(ObjectRows(loaded, "d", "f", 100 * number, 1000 * number))
    return CompiledRows(parts)


def expected(rows: CompiledRows, some: list[list[dict[str, Any]]], number: int, name: str) -> list[Any]:
    """The words of a row, with owners as the rows number them."""
    part = int(np.searchsorted(rows.starts, number, side="right")) - 1
    found = list(some[part][number - int(rows.starts[part])].get(name) or [])
    if "spans" in name:
        mine = OWNERS[part % 3 :] + OWNERS[: part % 3]
        names = list(zip(*(column.to_pylist() for column in rows.owners), strict=True))
        found[::2] = [names.index(mine[owner]) for owner in found[::2]]
    return found


def copied(lists: words.WordLists, name: str) -> list[list[Any]]:
    offsets, found = lists[name]
    values = found.view(np.float32) if "weights" in name else found
    return [values[a:b].tolist() for a, b in pairwise(offsets.tolist())]


@LAW
@given(rows_of_objects(), st.data())
def test_the_words_of_rows_are_copied_in_any_order(some: list[list[dict[str, Any]]], data: st.DataObject) -> None:
    """With few buffers a call, few rows at once, and gaps and rows that are too large to be read together."""
    sizes = {"_GAP": 12, "_LARGE": 60, "_BUFFERS": data.draw(st.sampled_from((9, 30))), "_ROWS": 4}
    with tempfile.TemporaryDirectory() as name, patch.multiple(words, **sizes):
        rows = stored(Path(name), some)
        count = int(rows.starts[-1])
        numbers = data.draw(st.lists(st.integers(0, count - 1), max_size=12)) if count else []
        chosen = np.array(data.draw(st.sampled_from((numbers, list(range(count))))), np.int64)
        for names in (WORD_LISTS[:4], WORD_LISTS, [SHINGLES]):
            lists = rows.lists(chosen, names)
            assert list(lists) == list(names)
            for one in names:
                assert copied(lists, one) == [expected(rows, some, n, one) for n in chosen.tolist()]
        groups = [group for group in (chosen, np.arange(count)) if len(group)]
        for spilled, group in zip(rows.spill(groups, WORD_LISTS, Path(name) / "spilled"), groups, strict=True):
            lists = rows.placed(group, WORD_LISTS, spilled).lists(slice(None))
            for one in WORD_LISTS:
                assert copied(lists, one) == [expected(rows, some, n, one) for n in group.tolist()]


def test_rows_that_follow_each_other_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = stored(tmp_path, [[{"input_ids": list(range(50)), "spans": [0, 50]} for _ in range(3000)]])
    calls: list[int] = []
    really = words._preadv
    monkeypatch.setattr(words, "_preadv", lambda *given: calls.append(given[2]) or really(*given))
    rows.lists(np.arange(3000), WORD_LISTS[:4])
    assert len(calls) <= 3000 * 3 / words._BUFFERS + 2
    assert max(calls) <= words._BUFFERS
    calls.clear()
    rows.lists(np.arange(0, 3000, 200), WORD_LISTS[:4])  # 40 KB apart
    assert len(calls) == 15


@pytest.mark.parametrize("damage", ["cut", "removed", "replaced"])
def test_an_object_that_is_not_the_one_that_was_loaded_is_never_copied(tmp_path: Path, damage: str) -> None:
    rows = stored(tmp_path, [[{"input_ids": [1, 2, 3], "spans": [0, 3]}] * 9])
    path = rows.parts[0].object.path
    data = path.read_bytes()
    path.unlink()
    if damage != "removed":
        path.write_bytes(data[:64] if damage == "cut" else data[:-1] + b"x")
    with pytest.raises(IntegrityError, match="removed or damaged during the run"):
        rows.lists(np.arange(9), WORD_LISTS[:4])


def test_a_file_that_ends_too_early_is_noticed_while_it_is_read(tmp_path: Path) -> None:
    rows = stored(tmp_path, [[{"input_ids": [1, 2, 3], "spans": [0, 3]}] * 9])
    [spilled] = rows.spill([np.arange(9)], WORD_LISTS[:4], tmp_path / "spilled")
    with spilled.file.path.open("ab") as file:
        file.truncate(20)
    with pytest.raises(IntegrityError):
        rows.placed(np.arange(9), WORD_LISTS[:4], spilled).lists(slice(None))


# -- small columns --


@LAW
@given(st.lists(st.one_of(st.none(), st.integers(0, 2**40)), max_size=6), st.booleans())
def test_small_columns_say_what_they_were_given(values: list[int | None], is_list: bool) -> None:
    type_ = pa.list_(pa.string()) if is_list else pa.int64()
    column = pa.array([None if v is None else [str(v)] * (v % 3) for v in values] if is_list else values, type_)
    small = SmallColumns.of(len(values), [("x", column)])
    assert small.column("x").cast(type_).equals(column)
    chosen = np.arange(len(values))[::-1]
    assert small.take(chosen, ["x"]).column("x").cast(type_).to_pylist() == column.to_pylist()[::-1]
    assert exact(small.column("x")[1:], type_).equals(column[1:])


def test_numbers_take_as_few_bytes_as_they_need() -> None:
    assert [narrow(np.array([n])).itemsize for n in (0, 255, 256, 65536, 2**32)] == [1, 1, 2, 4, 8]
    small = SmallColumns.of(3, [("a", pa.array([7, 7, 7])), ("b", pa.array([1, 2, 256])), ("c", pa.array([None] * 3))])
    assert (list(small.same), small.others["b"].type) == (["a", "c"], pa.uint16())


def test_the_table_of_an_object_has_the_columns_that_were_stored(tmp_path: Path) -> None:
    row = {"num_trained": 300, "part": 0, "images": [], "videos": [], "index": 0, "offset": None, "length": 70000}
    some = [row | {"fingerprint": bytes([n]) * 16, "group": bytes([n + other]) * 16} for n, other in ((1, 0), (2, 1))]
    for number, rows in enumerate((some, some[:1], [])):
        table = pa.Table.from_pylist(rows, OBJECT)
        made = objects.store(tmp_path, f"{number:040}", table, {"owners": [], "lines": [], "embedded": {}})
        assert made.small.to_pylist() == table.drop_columns(list(WORD_LISTS)).to_pylist()
        assert {field.name: field.type for field in made.small.schema}.items() <= {
            f.name: f.type for f in OBJECT
        }.items()
