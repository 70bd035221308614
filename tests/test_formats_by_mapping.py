"""Formats read by mapping: ms-swift's, Firefly's, ToolBench's, Hermes' and ToolAlpaca's rows become conversations."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from compiler.conversation import Call, Conversation, Message, Role
from compiler.formats import FORMATS, chatglm3, conversation_pairs, hermes, query_response, toolalpaca, toolbench
from compiler.read import cut, open_source, read
from compiler.rows.recognise import recognise
from compiler.rows.validate import Validator
from schemas.errors import RowError
from tests.support.shared import shared

Row = dict[str, Any]

DATA = Path(__file__).parent / "data"
MAPPED = ("query_response", "conversation_pairs", "toolbench", "hermes", "toolalpaca")
SYSTEM, USER, ASSISTANT, TOOL = Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL


def validator(name: str) -> Validator:
    format_ = FORMATS[name]
    return Validator(format_, dict(format_.columns), dict(format_.tags), name)


def rows_of(path: Path) -> list[Any]:
    rows = [row for unit in cut(open_source(path)) for row in read(unit)]
    assert not any(row.reject for row in rows)
    return [row.value for row in rows]


def lifted(name: str, row: Row) -> list[Conversation]:
    assert validator(name).check(row) is None
    found = FORMATS[name].lift(row, dict(FORMATS[name].columns), dict(FORMATS[name].tags))
    return found if isinstance(found, list) else [found]


def said(conversation: Conversation) -> list[tuple[Any, ...]]:
    """(role, text) of each message, with (name, arguments) of its calls where it has any."""
    return [(m.role, m.content, *((call.name, call.arguments) for call in m.calls)) for m in conversation.messages]


def reject_of(name: str, row: Row) -> tuple[str, str]:
    with pytest.raises(RowError) as error:
        lifted(name, row)
    return str(error.value.reject.reason), error.value.reject.pointer


# -- which format a row has --


@pytest.mark.parametrize("name", MAPPED)
def test_no_example_of_another_format_passes_for_this_one(name: str) -> None:
    check = validator(name).check
    for other in FORMATS.keys() - {name}:
        for example in FORMATS[other].about["examples"]:
            assert check(example) is not None, other


@pytest.mark.parametrize("name", MAPPED)
def test_rows_of_the_format_are_recognised(name: str) -> None:
    assert (
        recognise([json.loads(line) for line in (DATA / name / "rows.jsonl").read_text("utf-8").splitlines()])[0]
        == name
    )
    for example in FORMATS[name].about["examples"]:
        assert recognise([example])[0] == name


# -- query_response --


def test_history_comes_before_the_query_and_after_the_system_prompt() -> None:
    row = {"system": "s", "query": "q3", "response": "r3", "history": [["q1", "r1"], ["q2", "r2"]]}
    assert said(lifted("query_response", row)[0]) == [
        (SYSTEM, "s"), (USER, "q1"), (ASSISTANT, "r1"), (USER, "q2"), (ASSISTANT, "r2"), (USER, "q3"), (ASSISTANT, "r3")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("swift_single.csv", [["00000", "11111", "22222"], ["aaaaa", "bbbbb"], ["AAAAA", "BBBBB"]]),
        ("swift_single.jsonl", [["00000", "11111", "22222"], ["aaaaa", "bbbbb"], ["AAAAA", "BBBBB"]]),
        (
            "swift_multi.json",
            [["00000", "55555", "66666"], ["eeeee", "fffff"], ["AAAAA", "BBBBB", "CCCCC", "DDDDD", "EEEEE", "FFFFF"]],
        ),
        (
            "swift_multi.jsonl",
            [["00000", "55555", "66666"], ["eeeee", "fffff"], ["AAAAA", "BBBBB", "CCCCC", "DDDDD", "EEEEE", "FFFFF"]],
        ),
    ],
)
def test_ms_swifts_own_files_are_read(file: str, expected: list[list[str]]) -> None:
    found = [lifted("query_response", row)[0] for row in rows_of(shared("data", "ms-swift", "tests", file))]
    assert [[message.content for message in one.messages] for one in found] == expected
    assert [one.messages[0].role for one in found] == [SYSTEM, USER, USER]


def test_the_self_cognition_set_is_in_this_format() -> None:
    rows = rows_of(shared("data", "ms-swift", "self_cognition.jsonl"))
    assert recognise(rows)[0] == "query_response"
    for row in rows:
        assert said(lifted("query_response", row)[0]) == [(USER, row["query"]), (ASSISTANT, row["response"])]


def test_the_user_names_the_columns() -> None:
    columns = {"query": "frage", "response": "antwort", "history": None, "system": "rolle", "tools": None}
    row = {"frage": "q", "antwort": "r", "rolle": "s", "history": [["x", "y"]]}
    assert Validator(FORMATS["query_response"], columns, {}, "x").check(row) is None
    assert said(query_response.FORMAT.lift(row, columns, {})) == [(SYSTEM, "s"), (USER, "q"), (ASSISTANT, "r")]


# -- conversation_pairs --


def test_every_pair_is_a_question_and_its_reply() -> None:
    row = {"conversation": [{"human": "q1", "assistant": "r1"}, {"human": "q2", "assistant": "r2"}], "system": "s"}
    (found,) = lifted("conversation_pairs", row)
    assert said(found) == [(SYSTEM, "s"), (USER, "q1"), (ASSISTANT, "r1"), (USER, "q2"), (ASSISTANT, "r2")]
    assert found.places == [-1, 0, 0, 1, 1]


def test_the_tags_name_the_keys_of_a_pair() -> None:
    columns: dict[str, str | None] = {"messages": "dialog", "system": None}
    tags: dict[str, str | None] = {"user_tag": "问", "assistant_tag": "答"}
    row = {"dialog": [{"问": "q", "答": "r"}], "system": "not a column here"}
    assert Validator(FORMATS["conversation_pairs"], columns, tags, "x").check(row) is None
    assert said(conversation_pairs.lift(row, columns, tags)) == [(USER, "q"), (ASSISTANT, "r")]
    reject = Validator(FORMATS["conversation_pairs"], columns, tags, "x").check({"dialog": [{"human": "q", "答": "r"}]})
    assert reject is not None
    assert (reject.pointer, reject.message) == ("/dialog/0", "expected the key '问', found the keys 'human', '答'")


def test_the_older_sharegpt_of_ms_swift_is_in_this_format() -> None:
    rows = rows_of(shared("data", "ms-swift", "tests", "sharegpt.jsonl"))
    assert recognise(rows)[0] == "conversation_pairs"
    texts = [[m.content for m in lifted("conversation_pairs", row)[0].messages] for row in rows]
    assert texts == [
        ["00000", "11111", "22222"], ["aaaaa", "bbbbb"], ["AAAAA", "BBBBB", "CCCCC", "DDDDD", "EEEEE", "FFFFF"]
    ]  # fmt: skip


# -- toolbench --


def call_of(name: str, arguments: str = "{}", content: str | None = None) -> Row:
    return {"role": "assistant", "content": content, "function_call": {"name": name, "arguments": arguments}}


def answer(*lists: list[Row], **more: Any) -> Row:
    functions = [{"name": "Finish", "parameters": {}}]
    return {"answer_generation": {"valid_data": True, "function": functions, "train_messages": list(lists)} | more}


S, U = {"role": "system", "content": "s"}, {"role": "user", "content": "q"}
R = {"role": "function", "name": "f", "content": "result"}


def test_a_real_answer_file_is_one_conversation_whose_calls_are_all_trained() -> None:
    file = shared("data", "toolbench", "data_example_answer_G1_answer_10_ChatGPT_DFS_woFilter_w2.json")
    row = json.loads(file.read_text("utf-8"))
    (found,) = lifted("toolbench", row)
    longest = row["answer_generation"]["train_messages"][-1]
    assert [m.content for m in found.messages] == [m["content"] or "" for m in longest]
    assert [m.role for m in found.messages] == [SYSTEM, USER, ASSISTANT, TOOL, ASSISTANT, TOOL, ASSISTANT]
    assert [m.weight for m in found.messages] == [None] * 7
    calls = [call for m in found.messages for call in m.calls]
    assert [(call.name, list(call.arguments)) for call in calls] == [
        ("transitaires_for_transitaires", []),
        ("transitaire_for_transitaires", ["is_id"]),
        ("Finish", ["return_type", "final_answer"]),
    ]
    assert json.loads(row["answer_generation"]["final_answer"]) == calls[-1].arguments
    assert [tool["function"]["name"] for tool in found.tools] == [
        "transitaire_for_transitaires", "transitaires_for_transitaires", "Finish"
    ]  # fmt: skip


def test_the_published_training_rows_of_toolbench_are_sharegpt_with_tags() -> None:
    """As the schema's description says: the replies stay ReAct text, function results are results."""
    row = {
        "id": "Step 4: q",
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "user", "value": "q"},
            {"from": "assistant", "value": "\nThought: \nAction: f\nAction Input: {}"},
            {"from": "function", "value": "result"},
            {"from": "assistant", "value": "\nThought: \nAction: Finish\nAction Input: {}"},
        ],
    }
    sharegpt = FORMATS["sharegpt"]
    tags = dict(sharegpt.tags) | {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "function"}
    columns: dict[str, str | None] = {"messages": "conversations"}
    assert Validator(sharegpt, columns, dict(tags), "x").check(row) is None
    found = sharegpt.lift(row, columns, dict(tags))
    assert isinstance(found, Conversation)
    assert [m.role for m in found.messages] == [SYSTEM, USER, ASSISTANT, TOOL, ASSISTANT]


def test_a_thought_and_its_call_are_one_reply() -> None:
    thought = {"role": "assistant", "content": "I must look."}
    call = call_of("f", '{"a": 1}')
    (found,) = lifted("toolbench", answer([S, U, thought], [S, U, thought, call], [S, U, thought, call, R, call]))
    assert said(found) == [
        (SYSTEM, "s"), (USER, "q"), (ASSISTANT, "I must look.", ("f", {"a": 1})), (TOOL, "result"),
        (ASSISTANT, "", ("f", {"a": 1})),
    ]  # fmt: skip
    assert [m.weight for m in found.messages] == [None] * 5
    assert found.places == [0, 1, 3, 4, 5]


def test_where_the_search_turned_back_each_reply_is_trained_with_the_messages_it_had() -> None:
    """The list of the second call has no remark in it, so its conversation ends there."""
    remark = {"role": "user", "content": "Try something else.", "valid": False}
    first, other, last = call_of("f"), call_of("g"), call_of("Finish")
    row = answer([S, U, first], [S, U, first, R, other], [S, U, remark, first], [S, U, remark, first, R, last])
    tried, won = lifted("toolbench", row)
    assert said(tried)[2:] == [(ASSISTANT, "", ("f", {})), (TOOL, "result"), (ASSISTANT, "", ("g", {}))]
    assert said(won)[1:] == [
        (USER, "q\nTry something else."), (ASSISTANT, "", ("f", {})), (TOOL, "result"), (ASSISTANT, "", ("Finish", {}))
    ]  # fmt: skip
    assert [m.weight for m in tried.messages + won.messages] == [None] * 10
    assert tried.group == won.group is not None


def test_a_reply_that_two_conversations_share_is_trained_in_one_of_them() -> None:
    row = answer([S, U, call_of("f")], [S, U, call_of("f"), R, call_of("g")], [S, U, call_of("f"), R, call_of("h")])
    both = lifted("toolbench", row)
    assert [[m.weight for m in one.messages if m.role is ASSISTANT] for one in both] == [[None, None], [0.0, None]]


def test_a_search_without_an_answer_is_rejected_where_it_says_so() -> None:
    assert reject_of("toolbench", {"answer_generation": {"valid_data": False, "function": []}}) == (
        "turn_order", "/answer_generation/valid_data"
    )  # fmt: skip


@st.composite
def searches(draw: st.DrawFn) -> list[list[Row]]:
    """Lists of messages as a search writes them: each continues the one before or branches off earlier."""
    lists: list[list[Row]] = []
    for _ in range(draw(st.integers(1, 6))):
        before = draw(st.sampled_from([[S, U], *([*one, R] for one in lists)]))
        lists.append([*before, call_of(draw(st.sampled_from(["f", "g", "Finish"])))])
    return lists


@pytest.mark.slow
@given(searches())
def test_every_reply_of_a_search_is_trained_once_after_exactly_its_messages(lists: list[list[Row]]) -> None:
    """Upstream makes a training row of each list and trains its last reply; here, equal lists are one example."""
    found = []
    for conversation in lifted("toolbench", answer(*lists)):
        for i, message in enumerate(conversation.messages):
            if message.role is ASSISTANT and message.weight is None:
                found.append(repr(said(conversation)[: i + 1]))
    expected = set()
    for one in lists:
        names = [m["function_call"]["name"] for m in one if m["role"] == "assistant"]
        turns: list[tuple[Any, ...]] = [(SYSTEM, "s"), (USER, "q")]
        for name in names:
            turns += [(ASSISTANT, "", (name, {})), (TOOL, "result")]
        expected.add(repr(turns[:-1]))
    assert Counter(found) == Counter(expected)


# -- hermes --


def hermes_row(*turns: tuple[str, str], **more: Any) -> Row:
    return {"conversations": [{"from": role, "value": value} for role, value in turns]} | more


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bergen"}}\n</tool_call>'


def test_call_blocks_become_calls_and_the_text_before_them_stays() -> None:
    python = "<tool_call>\n{'arguments': {'city': 'Oslo', 'days': None}, 'name': 'weather'}\n</tool_call>\n"
    (found,) = lifted("hermes", hermes_row(("human", "q"), ("gpt", f"First both.\n{CALL}\n{python}")))
    assert said(found)[1] == (
        ASSISTANT, "First both.", ("weather", {"city": "Bergen"}), ("weather", {"city": "Oslo", "days": None})
    )  # fmt: skip


def test_response_blocks_become_one_result_each_unchanged_inside() -> None:
    blocks = "<tool_response>\n{'name': 'weather', 'content': {'rain': True}}\n</tool_response>\n"
    two = blocks + '<tool_response>\n  {"rain": false}\n</tool_response>'
    (found,) = lifted("hermes", hermes_row(("human", "q"), ("gpt", CALL), ("tool", two), ("gpt", "r")))
    assert said(found)[2:4] == [(TOOL, "{'name': 'weather', 'content': {'rain': True}}"), (TOOL, '  {"rain": false}')]
    assert found.places == [0, 1, 2, 2, 3]


@pytest.mark.parametrize("text", ["plain", "", "\nout <tool_response>x</tool_response>", "<tool_response>open"])
def test_a_result_that_is_not_made_of_blocks_stays_as_it_is(text: str) -> None:
    (found,) = lifted("hermes", hermes_row(("human", "q"), ("gpt", CALL), ("tool", text), ("gpt", "r")))
    assert said(found)[2] == (TOOL, text)


def test_tags_in_what_others_say_are_text() -> None:
    turns = (("system", f"<tools>[]</tools> {CALL}"), ("human", CALL), ("gpt", "<tool_response> is a tag."))
    (found,) = lifted("hermes", hermes_row(*turns))
    assert said(found) == [(SYSTEM, turns[0][1]), (USER, CALL), (ASSISTANT, "<tool_response> is a tag.")]


@pytest.mark.parametrize(
    ("system", "column", "expected"),
    [
        (f"Use <tools> </tools>:\n<tools>\n{[WEATHER]}\n</tools>", json.dumps([WEATHER]), None),
        (f"<tools>{json.dumps(WEATHER)}\n{json.dumps(WEATHER)}</tools>", json.dumps([WEATHER, WEATHER]), None),
        ("<tools>[]</tools>", json.dumps([WEATHER]), [WEATHER]),
        ("<tools>weather(city)</tools>", json.dumps([WEATHER]), [WEATHER]),
        ("You help.", json.dumps([WEATHER["function"]]), [WEATHER]),
        (f"<tools>\n{[WEATHER]}\n</tools>", None, None),
    ],
)
def test_tools_are_in_the_prompt_once(system: str, column: str | None, expected: Any) -> None:
    """The column goes to the chat template unless the system message, which stays unchanged, lists the same tools."""
    (found,) = lifted("hermes", hermes_row(("system", system), ("human", "q"), ("gpt", CALL), tools=column))
    assert (said(found)[0], found.tools) == ((SYSTEM, system), expected)


def test_a_block_that_is_no_call_is_rejected_where_it_is() -> None:
    assert reject_of("hermes", hermes_row(("human", "q"), ("gpt", "<tool_call>\nweather()\n</tool_call>"))) == (
        "tool_arguments", "/conversations/1/value"
    )  # fmt: skip
    assert reject_of("hermes", hermes_row(("human", "q"), ("gpt", f"{CALL}\nDone."))) == (
        "tool_arguments", "/conversations/1/value"
    )  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.tuples(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=3)), min_size=1, max_size=3)


@pytest.mark.slow
@given(CALLS, st.sampled_from([json.dumps, repr]), st.text())
def test_calls_are_read_as_they_were_written(calls: list[Any], write: Any, text: str) -> None:
    """In JSON and as Python prints them; only a text that contains the tags itself is ambiguous, and is rejected."""
    blocks = [f"<tool_call>\n{write({'name': name, 'arguments': given})}\n</tool_call>" for name, given in calls]
    message = Message(ASSISTANT, text.rstrip(" \t\r\n"), [Call(name, given) for name, given in calls])
    value = f"{text}\n" + "\n".join(blocks)
    if "tool_call>" not in f"{text}{calls}":
        row = hermes_row(("human", "q"), ("gpt", value))
        assert hermes.lift(row, dict(hermes.FORMAT.columns), dict(hermes.FORMAT.tags)).messages[1] == message


# -- toolalpaca --


def script_rows() -> list[Row]:
    """The output of ChatGLM3's format_tool_alpaca.py for the file."""
    lines = shared("data", "chatglm3", "tool_alpaca.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def toolalpaca_rows() -> list[Row]:
    found: list[Row] = json.loads(shared("data", "toolalpaca", "train_format.json").read_text("utf-8"))
    return found


def test_instances_become_what_chatglm3s_script_makes_of_them() -> None:
    expected = [chatglm3.lift(row, dict(chatglm3.FORMAT.columns), {}).fingerprint() for row in script_rows()]
    made = [one for row in toolalpaca_rows() for one in toolalpaca.lift(row, dict(toolalpaca.FORMAT.columns), {})]
    found = [one.fingerprint() for one in made if isinstance(one, Conversation)]
    assert len(found) == 163
    assert found == expected


def test_what_the_script_leaves_out_is_rejected_at_its_place() -> None:
    """The six that it counts as errors: the parameters continue with an invented observation, or are not JSON."""
    bad = []
    for number, row in enumerate(toolalpaca_rows()):
        assert validator("toolalpaca").check(row) is None
        for one in toolalpaca.lift(row, dict(toolalpaca.FORMAT.columns), {}):
            if isinstance(one, RowError):
                assert one.reject.reason == "tool_arguments"
                bad.append((number, one.reject.pointer))
    assert bad == [
        (2, "/Instances/4/intermediate_steps/0/0/1"),
        (9, "/Instances/6/intermediate_steps/0/0/1"),
        (10, "/Instances/4/intermediate_steps/1/0/1"),
        (12, "/Instances/4/intermediate_steps/0/0/1"),
        (16, "/Instances/0/intermediate_steps/0/0/1"),
        (19, "/Instances/3/intermediate_steps/0/0/1"),
    ]


def test_an_instance_is_input_thought_with_call_observation_and_output() -> None:
    step = [["tide", '{"at": "Cuxhaven"}\n', "I look it up.\nAction: tide\nAction Input: {}"], {"high": "14:20"}]
    instance = {"input": "q", "output": "r", "Final Thought": "t", "intermediate_steps": [step]}
    one, two = lifted("toolalpaca", {"NLDocumentation": "tide: ...", "Instances": [instance, instance]})
    assert one == two
    assert one.tools == ["tide: ..."]
    assert said(one) == [
        (USER, "q"), (ASSISTANT, "I look it up.", ("tide", {"at": "Cuxhaven"})), (TOOL, '{"high": "14:20"}'),
        (ASSISTANT, "t\nr"),
    ]  # fmt: skip
    assert one.messages[2].name == "tide"


def test_toolbench_and_toolalpaca_name_their_columns() -> None:
    row = {"a": answer([S, U, call_of("Finish")])["answer_generation"]}
    assert len(toolbench.lift(row, {"answer": "a"}, {})) == 1
    row = {"doc": "d", "all": [{"input": "q", "output": "r", "Final Thought": "", "intermediate_steps": []}]}
    assert len(toolalpaca.lift(row, {"tools": "doc", "instances": "all"}, {})) == 1
