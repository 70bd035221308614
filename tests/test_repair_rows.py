"""Repairs of raw rows: each mends what it names, leaves the rest alone, and never touches the row it is given."""

from __future__ import annotations

import ast
import copy
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from click.testing import Result
from hypothesis import given, settings

from compiler.formats import FORMATS
from compiler.formats.kinds import of_kind
from compiler.options import DatasetOptions, Names, UnitOptions
from compiler.read import cut, open_source, read
from compiler.read.literal import MAX_LITERAL, parse_literal, parse_text
from compiler.rows.hints import Hints, Made
from compiler.rows.lift import Preparer
from compiler.rows.mend import LISTS, OBJECTS, ROW_REPAIRS
from compiler.rows.validate import Validator
from schemas import schema
from schemas.errors import Reject, RowError
from tests.support.shared import shared

Row = dict[str, Any]
Run = Callable[..., Result]

DATA = Path(__file__).parent / "data"
WITH_DATA = sorted(path.name for path in DATA.iterdir() if path.name in FORMATS and (path / "rows.jsonl").exists())


def names_of(name: str) -> tuple[Names, Names]:
    return of_kind(dict(FORMATS[name].columns), FORMATS[name].kinds[0]), dict(FORMATS[name].tags)


def repaired(repair: str, row: Any, name: str) -> Any:
    return ROW_REPAIRS[repair](row, *names_of(name))


def rejected(name: str, row: Any) -> str | None:
    """Why a row is rejected; None where it is not."""
    columns, tags = names_of(name)
    reject = Validator(FORMATS[name], columns, tags, name, FORMATS[name].kinds[0]).check(row)
    if reject is None:
        try:
            FORMATS[name].lift(row, columns, tags)
        except RowError as error:
            reject = error.reject
    return None if reject is None else str(reject.reason)


def good_rows(name: str) -> list[Row]:
    lines = (DATA / name / "rows.jsonl").read_text("utf-8").splitlines()
    return [*map(json.loads, lines), *schema(name)["examples"]]


def read_rows(path: Path) -> list[Any]:
    return [row.value for unit in cut(open_source(path)) for row in read(unit)]


# -- what every repair keeps --

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["gpt", "assistant", "function_call", "function", "{}", '"{}"', "[1]", "{'a': 1}", "[{}]"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["conversations", "messages", "from", "value", "role", "content", "tool_calls", "function_call", "function",
             "name", "arguments", "history", "Instances", "conversation"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@st.composite
def dirty(draw: st.DrawFn, name: str) -> Any:
    """A good row with some of its parts written as text, quoted once more, removed or wrapped."""
    row = copy.deepcopy(draw(st.sampled_from(good_rows(name))))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(list(_places(row)) or [()]))
        if not path:
            continue
        parent = row
        for part in path[:-1]:
            parent = parent[part]
        write = draw(st.sampled_from([repr, json.dumps, lambda value: json.dumps(json.dumps(value)), None]))
        if write is not None:
            parent[path[-1]] = write(parent[path[-1]])
        elif isinstance(parent, dict):
            del parent[path[-1]]
    return [row] if draw(st.integers(0, 4)) == 0 else row


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        yield (*path, key)
        yield from _places(child, (*path, key))


@pytest.mark.slow
@pytest.mark.parametrize("repair", ROW_REPAIRS)
def test_a_repair_mends_once_and_never_touches_the_row_it_was_given(repair: str) -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(WITH_DATA).flatmap(lambda name: st.tuples(st.just(name), dirty(name) | JSON)))
    def check(case: tuple[str, Any]) -> None:
        name, row = case
        before = copy.deepcopy(row)
        once = repaired(repair, row, name)
        assert row == before
        assert (once is row) == (once == before)
        assert repaired(repair, once, name) is once

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_DATA)
def test_a_row_that_is_valid_is_not_changed(name: str) -> None:
    """Except by `content`, which writes down the empty text that a message beside calls has anyway."""

    @settings(max_examples=100, deadline=None)
    @given(dirty(name))
    def check(row: Any) -> None:
        if rejected(name, row) is not None:
            return
        for repair in ("unwrap", "literals", "arguments"):
            assert repaired(repair, row, name) is row
        columns, tags = names_of(name)
        before, after = (FORMATS[name].lift(one, columns, tags) for one in (row, repaired("content", row, name)))
        assert repr(before) == repr(after)  # errors among them are equal only so

    check()


def test_every_repair_says_in_one_sentence_what_it_changes() -> None:
    for name, repair in ROW_REPAIRS.items():
        assert repair.__name__ == name
        assert repair.__doc__ is not None
        assert repair.__doc__.count(".") == 1
        assert repair.__doc__.endswith(".")


# -- unwrap --


def test_the_file_that_the_script_of_seed_002_writes_is_mended(tmp_path: Path) -> None:
    """It appends a list of one row, and dumps the list of those."""
    rows = [{"instruction": "画出图谱", "input": f"公司 {i}", "output": "跳过"} for i in range(3)]
    c: list[list[Row]] = []
    for row in rows:
        c.append([row])  # noqa: PERF401  # as the script has it
    file = tmp_path / "ESG_Knowledge_Network.json"
    with file.open("w", encoding="utf-8") as stream:
        json.dump(c, stream, ensure_ascii=False)
    found = read_rows(file)
    assert [rejected("alpaca", row) for row in found] == ["schema"] * 3
    assert [repaired("unwrap", row, "alpaca") for row in found] == rows


@pytest.mark.parametrize("row", [[], [{}, {}], [[{}]], ["text"], [None], {"a": [{}]}, "text", None, 1])
def test_only_a_list_of_exactly_one_object_is_unwrapped(row: Any) -> None:
    assert repaired("unwrap", row, "alpaca") is row


# -- literals --

CHAT = [{"from": "human", "value": 'It\'s "q"\n问'}, {"from": "gpt", "value": "r", "loss": True}]


@pytest.mark.parametrize("write", [repr, str, json.dumps, lambda value: f" \n{value!r}\n"])
def test_a_column_of_messages_given_as_text_is_read(write: Any) -> None:
    row = {"conversations": write(CHAT), "system": "[1]", "tools": "[]"}
    assert rejected("sharegpt", row) == "schema"
    assert repaired("literals", row, "sharegpt") == row | {"conversations": CHAT}


def test_messages_given_as_text_are_read_one_by_one() -> None:
    row = {"conversations": [repr(CHAT[0]), CHAT[1]]}
    found = repaired("literals", row, "sharegpt")
    assert found == {"conversations": CHAT}
    assert found["conversations"][1] is CHAT[1]


def test_history_given_as_text_in_a_table_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('query,response,history\nq,r,"[[\'它\', ""r0""]]"\nq,r,[]\n', "utf-8")
    found = [repaired("literals", row, "query_response") for row in read_rows(file)]
    assert [row["history"] for row in found] == [[["它", "r0"]], []]
    assert [rejected("query_response", row) for row in found] == [None, None]


def test_text_where_text_may_stand_is_left_alone() -> None:
    """A list in a reply, in a system prompt or as tools is meant as text."""
    for name, row in (
        ("alpaca", {"instruction": "[1]", "input": "{}", "output": "{'a': 1}", "system": "['s']", "tools": "[]"}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "[1]"}, {"from": "gpt", "value": "{}"}]}),
        ("chatglm3", {"conversations": [{"role": "user", "content": "[1]"}], "tools": "['any']"}),
    ):
        assert repaired("literals", row, name) is row


def test_text_that_is_not_the_list_that_is_wanted_is_left_for_its_reject() -> None:
    for text in ("hello", "{'from': 'human'}", "[1", "[open('x')]", "[{'a': 1, 'a': 2}]", "(" * 300, ""):
        row = {"conversations": text}
        assert repaired("literals", row, "sharegpt") is row


def test_the_columns_read_from_text_are_those_that_must_be_lists_or_objects() -> None:
    """In every schema; a column that may be text anywhere must not be among them."""
    wanted: dict[str, set[str]] = {"array": set(), "object": set()}
    text = set()
    for name in FORMATS:
        for node in FORMATS[name].schema.get("properties", {}).values():
            kinds = {node["type"]} if isinstance(node.get("type"), str) else set(node.get("type", ["string"]))
            if "x-kinds" in node or "x-column" not in node:
                continue
            if "string" in kinds:
                text.add(node["x-column"])
            for kind in kinds & wanted.keys() if "string" not in kinds else ():
                wanted[kind].add(node["x-column"])
    assert wanted["array"] <= set(LISTS)
    assert wanted["object"] <= set(OBJECTS)
    assert not text & {*LISTS, *OBJECTS}


def json_values() -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    return st.recursive(
        scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(inner).map(tuple)
    )


@pytest.mark.slow
@given(json_values())
def test_what_python_prints_is_read_back(value: Any) -> None:
    assert parse_literal(repr(value)) == json.loads(json.dumps(value))


@given(st.text(st.sampled_from("[]{}(),:'\"-+ab1e.\\nrxu0_ \n#*TrueFalsNo"), max_size=30))
def test_what_is_read_is_what_python_would_read(text: str) -> None:
    try:
        found = parse_literal(text)
    except ValueError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found == json.loads(json.dumps(ast.literal_eval(text.strip())))


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "[a]", "f()", "[x for x in y]", "{1, 2}", "{1: 2}", "{**a}", "b'x'", "1j", "1+2j", "...", "f'{a}'",
        "__import__('os')", "lambda: 1", "-'a'", "--1", "+1", "not 1", "1 if 1 else 2", "[1", "{'a': 1, 'a': 2}",
        "'\\ud800'", "{'\\udfff': 1}", "1e999", "-1e999", "[1,]]", "a\0b",
        "[" * 250 + "]" * 250, "-" * 100_000 + "1", "1" * 5000, "(" * 199 + "1 1" + ")" * 199, "'a'" + ".b" * 200_000,
        "[" + "1," * (MAX_LITERAL // 2) + "]",
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_what_is_no_value_is_refused_and_nothing_runs(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_literal(text)


def test_json_is_tried_first_and_python_is_as_strict() -> None:
    assert parse_text(' {"a": [true, null, 1e5]} ') == {"a": [True, None, 1e5]}
    assert parse_text("{'a': (True, None, -1)}") == {"a": [True, None, -1]}
    assert parse_text(r"['\d', 'a' 'b']") == ["\\d", "ab"]
    with pytest.raises(ValueError, match=r"^neither JSON nor a Python literal: the key 'a' occurs more than once"):
        parse_text('{"a": 1, "a": 2}')


_PIECES = [
    "'", "'", "{", "}", "[", "]", ", ", ": ", ",", "a", "é", "true", "None", "-0", "-", "0", "1", "01", "1_0", "1e5",
    "1.", ".5", "1e999", "9" * 20, "0x1", "1j", "(", ")", '"', "\\", "\n", "\t", "\x0c", "\xa0", "\u2028", "#", "b",
    "f", "\0", "NaN",
]  # fmt: skip
_PRINTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.one_of(_PRINTED.map(repr), st.lists(st.sampled_from(_PIECES), max_size=12).map("".join)),
    st.sampled_from(["['", "{'", "{'a': ", "['a', ", " { 'a':[", "[  'x', {'b': "]),
    st.sampled_from(["]", "'}", "}", "']", "]} ", "}]", ""]),
)
def test_python_texts_that_could_be_json_in_other_quotes_mean_the_same(text: str, before: str, after: str) -> None:
    """A text that begins like this is no JSON, so the parser of Python's literals alone says what it is."""

    def outcome(parser: Callable[[str], Any]) -> str:
        try:
            return json.dumps(parser(before + text + after))
        except ValueError:
            return "no value"

    assert outcome(parse_text) == outcome(parse_literal)


# -- arguments --


def test_real_arguments_that_were_encoded_twice_are_mended() -> None:
    for row in read_rows(shared("data", "dirty", "openai_drone_double_encoded_excerpt.jsonl")):
        assert rejected("openai", row) == "tool_arguments"
        found = repaired("arguments", row, "openai")
        assert rejected("openai", found) is None
        (call,) = found["messages"][2]["tool_calls"]
        assert call == {
            "id": "call_id",
            "type": "function",
            "function": {"name": "land_drone", "arguments": '{"location": "current"}'},
        }
        assert found["messages"][:2] == row["messages"][:2]
        assert found["tools"] is row["tools"]


def quoted(value: Any, times: int) -> Any:
    for _ in range(times):
        value = json.dumps(value, ensure_ascii=False)
    return value


@pytest.mark.parametrize("times", [2, 3, 4])
def test_arguments_are_taken_out_of_all_their_quotes(times: int) -> None:
    given = {"city": "卑尔根", "note": '"quoted"'}
    call = {"name": "f", "arguments": quoted(given, times)}
    for message in ({"role": "assistant", "content": "", "function_call": call},
                    {"role": "assistant", "tool_calls": [{"function": call}]}):  # fmt: skip
        row = {"messages": [{"role": "user", "content": "q"}, message]}
        (found,) = FORMATS["openai"].lift(repaired("arguments", row, "openai"), *names_of("openai")).messages[1].calls
        assert found.arguments == given
    for value in (call, [call, {"name": "g", "arguments": {"a": 1}}]):
        turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(value)}]
        row = {"conversations": turns}
        assert rejected("sharegpt", row) == "tool_arguments"
        found_row = repaired("arguments", row, "sharegpt")
        calls = FORMATS["sharegpt"].lift(found_row, *names_of("sharegpt")).messages[1].calls
        assert calls[0].arguments == given
        assert [one.name for one in calls] == ["f", "g"][: len(calls)]


@pytest.mark.parametrize(
    "arguments", ["{}", '{"a": "\\"{}\\""}', '"text"', '"[1]"', '"1"', "no", '"{"', {"a": 1}, None, 3]
)
def test_other_arguments_are_left_alone(arguments: Any) -> None:
    call = {"name": "f", "arguments": arguments}
    row: Row = {"messages": [{"role": "assistant", "tool_calls": [{"function": call}], "function_call": call}]}
    assert repaired("arguments", row, "openai") is row
    row = {"conversations": [{"from": "function_call", "value": json.dumps(call)}]}
    assert repaired("arguments", row, "sharegpt") is row


def test_what_others_say_is_no_call() -> None:
    """A user, a reply or a tool's result may quote JSON as often as it likes; openai's `function` is a result."""
    text = json.dumps({"name": "f", "arguments": quoted({"a": 1}, 2)})
    row: Row = {"conversations": [{"from": role, "value": text} for role in ("human", "gpt", "observation", "system")]}
    assert repaired("arguments", row, "sharegpt") is row
    row = {"messages": [{"role": role, "content": text} for role in ("user", "assistant", "tool", "function")]}
    assert repaired("arguments", row, "openai") is row


# -- content --


def test_real_messages_without_content_beside_their_calls_get_an_empty_one() -> None:
    rows = read_rows(shared("data", "openai", "drone_training.jsonl"))
    assert all("content" not in row["messages"][-1] for row in rows)
    for row in rows:
        found = repaired("content", row, "openai")
        assert found == row | {"messages": [*row["messages"][:-1], row["messages"][-1] | {"content": ""}]}


def test_a_message_without_calls_or_of_another_format_gets_no_content() -> None:
    """In sharegpt with OpenAI's names `tool_calls` are not read: a message given a content would lose its calls."""
    call = {"function": {"name": "f", "arguments": "{}"}}
    for message in (
        {"role": "assistant"},
        {"role": "assistant", "tool_calls": []},
        {"role": "user", "tool_calls": [call]},
        {"role": "assistant", "content": "text", "tool_calls": [call]},
    ):
        row = {"messages": [message]}
        assert repaired("content", row, "openai") is row
    row = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    tags: Names = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    assert ROW_REPAIRS["content"](row, {"messages": "messages"}, tags) is row


# -- what a reject says of repairs --

ASKED = {"role": "user", "content": "What is 2+3?"}
CALLED = {"type": "function", "function": {"name": "add", "arguments": json.dumps(json.dumps({"a": 2, "b": 3}))}}
ANSWERED = [{"role": "tool", "content": "5"}, {"role": "assistant", "content": "5."}]
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALLED]}
MENDED = {
    "unwrap": [{"messages": [ASKED, {"role": "assistant", "content": "5."}]}],
    "literals": {"messages": str([ASKED, {"role": "assistant", "content": "5."}])},
    "arguments": {"messages": [ASKED, CALLS, *ANSWERED]},
    "literals,arguments": {"messages": str([ASKED, CALLS, *ANSWERED])},
    "literals,dangling": {"messages": str([ASKED, {"role": "assistant", "content": "5."}, ASKED])},
}
"""Rows in openai's format by the repairs that they need."""
HOPELESS = [{"messages": "[1, 2"}, {"messages": [ASKED | {"role": "nobody"}]}, {"messages": str([ASKED, {"role": 1}])}]


@pytest.fixture
def bad_and_good(tmp_path: Path) -> Path:
    good = {"messages": [ASKED, {"role": "assistant", "content": "5."}]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*MENDED.values(), *HOPELESS, *[good] * 9]))
    return file


def test_a_reject_names_the_repairs_that_would_make_the_row_good_and_they_do(
    run: Run, bad_and_good: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def rejects_of(*options: str) -> list[Any]:
        run("compile", bad_and_good, "--max-rejects", "100%", *options, "-o", out)
        return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]

    rejects = rejects_of()
    for reject, repairs in zip(rejects, MENDED, strict=False):
        assert f"--repair {repairs}" in reject["message"], reject
        assert reject["row"] not in [still["row"] for still in rejects_of("--repair", repairs)]
    assert [reject["row"] for reject in rejects[len(MENDED) :]] == [5, 6, 7]
    assert not any("--repair" in reject["message"] for reject in rejects[len(MENDED) :])


def test_what_is_tried_for_a_message_is_not_counted(run: Run, bad_and_good: Path, tmp_path: Path) -> None:
    run("compile", bad_and_good, "--max-rejects", "100%", "--repair", "literals", "-o", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["datasets"][0]["notes"] == {"repair:literals": 1}


class Attempts:
    """What a real unit makes of rows, and how often it was asked to."""

    def __init__(self) -> None:
        self.count = 0
        columns, tags = names_of("openai")
        self.rows = Preparer(DatasetOptions("openai", columns, tags, "none"), UnitOptions(), None)
        self.hints = Hints(self.attempt, (), columns, tags)

    def attempt(self, row: Any, repairs: Sequence[str]) -> Made:
        self.count += 1
        return self.rows._attempt(row, repairs)

    def hint(self, row: Any) -> tuple[str, int]:
        """The repairs that a reject of the row names, and the number of attempts that took."""
        before = self.count
        bare = self.rows._made(copy.deepcopy(row))
        (reject,) = self.hints.add(row, bare)
        assert isinstance(reject, Reject)
        return reject.message.partition("--repair ")[2].partition(" ")[0], self.count - before


def test_a_row_that_no_repair_changes_is_not_compiled_again() -> None:
    attempts = Attempts()
    assert attempts.hint({"messages": [ASKED | {"role": "nobody"}]}) == ("", 0)
    assert attempts.hint({"messages": "not a list"}) == ("", 0)


def test_rows_that_are_wrong_in_the_same_way_are_compiled_once_more_each() -> None:
    attempts, row = Attempts(), MENDED["literals,arguments"]
    assert attempts.hint(row) == ("literals,arguments", 3)  # all repairs, then each of the two alone
    assert attempts.hint(row) == ("literals,arguments", 1)


def test_repairs_that_helped_another_row_are_not_named_where_they_do_not_help() -> None:
    attempts = Attempts()
    assert attempts.hint(MENDED["literals,arguments"])[0] == "literals,arguments"
    assert attempts.hint(MENDED["literals"]) == ("literals", 2)  # the two do not both change it
    assert attempts.hint({"messages": str([ASKED, {"role": "nobody", "content": ""}])})[0] == ""
