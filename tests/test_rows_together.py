"""What is done for many rows at once, or kept for the next row, is what is done for each row by itself."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from compiler.conversation import Conversation, Message, Role
from compiler.formats import FORMATS
from compiler.formats.turns import check_turns, take_turns
from compiler.read import FileKind, Row, Unit, read
from compiler.read.literal import parse_literal, parse_text
from compiler.read.value import parse_row
from compiler.rows.keys import RowKeys
from schemas.errors import RowError

# -- values of many rows --

GOOD = ['{"a": 1}', '{"a":{"b":["c","d"]},"e":null}', '"::::"', "[1, 2.5]", "null", '{"a": "北京", "b": "x\\ny"}', "-0"]
DOUBTFUL = [
    '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": ":"}}', '{"a": "x\\u003ay"}', '{"a": "\\u003A", "b": 1, "b": 2}',
    '{"a": 12345678901234567890123}', '{"a": -9223372036854775809}', '{"a": [18446744073709551616]}',
    "1234567890123456789012", '{"a": 0.1234567890123456789012}', '{"a": 1e-12345678901234567890}',
    '{"a": "12345678901234567890"}', '{"a": "see 12345678901234567890"}', '{"a": "\\"12345678901234567890"}',
    "[" * 254 + "]" * 254, "[" * 256 + "]" * 256,
]  # fmt: skip
BAD = [
    "1,2",
    "[3",
    "4]",
    '{"a": 1',
    '"\\ud800"',
    '{"a": NaN}',
    '{"b": 1, "a": Infinity}',
    "[" * 257 + "]" * 257,
    '"\x07"',
]
BALANCED = [row for row in BAD if row not in ("[3", "4]", "1,2", '{"a": 1')]


def kinds_of_row(bad: list[str]) -> st.SearchStrategy[bytes]:
    some = st.sampled_from(GOOD) | st.sampled_from(DOUBTFUL) | st.sampled_from(bad)
    more = st.integers(10**15, 10**22).map(lambda number: f'{{"n": [{number}, "{number}"]}}')
    return (some | more).map(str.encode) | st.just(b'{"a": "\xff"}')


def values(rows: list[Row]) -> list[str]:
    """Written out, so that 1 is not 1.0 and -0.0 not 0."""
    return [repr((row.value, row.reject, row.not_json)) for row in rows]


def alone(raws: list[bytes]) -> list[str]:
    return [repr(parse_row(raw)) for raw in raws]


@pytest.fixture(params=[1, 40, 1 << 17])
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of bytes that are parsed together; hardly any test has enough rows for the usual one."""
    monkeypatch.setattr("compiler.read.text.TOGETHER", request.param)
    return int(request.param)


@pytest.mark.usefixtures("together")
@given(st.lists(kinds_of_row(BAD), min_size=1, max_size=8), st.sampled_from([b"\n", b"\r\n", b"\n\n \n"]))
def test_lines_parsed_together_are_what_each_is_by_itself(raws: list[bytes], between: bytes) -> None:
    data = between.join(raws)
    rows = list(read(Unit("x.jsonl", FileKind.JSONL, 7, len(data), "", data)))
    assert values(rows) == alone(raws)
    assert [data[(row.offset or 0) - 7 :][: row.length] for row in rows] == raws
    assert [row.line for row in rows] == [n * between.count(b"\n") for n in range(len(raws))]
    assert [row.index for row in rows] == list(range(len(raws)))


@pytest.mark.usefixtures("together")
@given(st.lists(kinds_of_row(BALANCED), min_size=1, max_size=8), st.sampled_from([b",", b" ,\n "]))
def test_elements_parsed_together_are_what_each_is_by_itself(raws: list[bytes], between: bytes) -> None:
    data = between.join(raws)
    rows = list(read(Unit("x.json", FileKind.JSON, 7, len(data), "", data)))
    assert values(rows) == alone(raws)
    assert [data[(row.offset or 0) - 7 :][: row.length] for row in rows] == raws


# -- what is kept for the next row --

KEYS = ("messages", "tools", "mood", "role", "content", "tool_calls", "weight")
INNER = st.recursive(
    st.none() | st.text(max_size=2) | st.integers(0, 2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)
ANY_ROW = st.dictionaries(st.sampled_from(KEYS), INNER, max_size=4) | INNER
ALIKE = st.fixed_dictionaries({"mood": st.integers(0, 1), "tools": st.integers(0, 1)}, optional={"messages": INNER})
IN_A_MOOD = {"properties": {"mood": {"const": 1}}, "required": ["mood"]}
MESSAGE = {"properties": {"role": {}, "content": {}, "tool_calls": {"items": {"properties": {"content": {}}}}}}
SCHEMA = {
    "properties": {"messages": {"items": MESSAGE}, "mood": {}},
    "if": IN_A_MOOD,
    "then": {"properties": {"tools": {}}},
}
"""`tools` is read in rows whose mood is 1, and nowhere else."""


@given(st.lists(ALIKE | ANY_ROW, min_size=2, max_size=6))
def test_the_keys_of_a_row_are_judged_as_if_no_row_was_before_it(rows: list[Any]) -> None:
    kept = row_keys()
    for row in [*rows, *rows]:
        assert kept.covers(row) == row_keys().covers(row)


def row_keys() -> RowKeys:
    return RowKeys(SCHEMA, FORMATS["openai"], dict(FORMATS["openai"].columns), ())


@given(st.lists(st.sampled_from([role for role in Role if role is not Role.DOCUMENT]), max_size=6))
def test_roles_take_turns_where_messages_of_them_do(roles: list[Role]) -> None:
    try:
        check_turns(Conversation([Message(role, "x") for role in roles]), None)
    except RowError:
        assert not take_turns(tuple(roles))
    else:
        assert take_turns(tuple(roles))


# -- one way for two spellings --

SAID = st.text(st.sampled_from("a0- (){}[],:'\"\\1e.#\nNoneTrue北"), max_size=12)
PRINTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | SAID,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SAID, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(SAID, PRINTED, min_size=1, max_size=3))
def test_what_python_prints_is_read_as_python_reads_it(value: dict[str, Any]) -> None:
    text = repr(value)
    assert repr(parse_text(text)) == repr(parse_literal(text)) == text


@pytest.mark.parametrize("text", ["{'a': -0}", "{'a': -0.0}", "{'a': 1-0}", "{'a': 1e-05}", "['x', -01]", "{'a': -00}"])
def test_a_minus_before_a_zero_is_read_as_python_reads_it(text: str) -> None:
    def either(parser: Any) -> str:
        try:
            return repr(parser(text))
        except ValueError:
            return "no value"

    assert either(parse_text) == either(parse_literal)


def test_a_date_in_a_literal_takes_no_syntax_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.read.literal.parse_literal", lambda text: pytest.fail(text))
    assert parse_text("{'day': '2025-04-01', 'of': 'f(x)'}") == {"day": "2025-04-01", "of": "f(x)"}
