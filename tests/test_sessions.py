"""Agents' formats: items become messages, calls and results keep their values, typed control tokens stay text."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from compiler.conversation import Call, Conversation, Role
from compiler.formats import FORMATS
from compiler.read import as_session, cut, open_source, read
from compiler.rows.recognise import recognise
from compiler.rows.unpack import check
from compiler.rows.validate import Validator
from schemas import schema
from schemas.errors import RowError
from schemas.reader import CompiledSet

Run = Callable[..., Result]
Row = dict[str, Any]

DATA = Path(__file__).parent / "data"
AGENTS = ("anthropic", "openai_responses", "atif", "claude_code", "codex", "session_trace")
SYSTEM, USER, ASSISTANT, TOOL = Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL
END, STOP = "<|im_end|>", 8002
"""The end of a turn in the embedded tokenizer, and its id."""


def lifted(name: str, row: Any) -> Conversation:
    format_ = FORMATS[name]
    assert Validator(format_, dict(format_.columns), dict(format_.tags), name).check(row) is None
    found = format_.lift(row, dict(format_.columns), dict(format_.tags))
    assert isinstance(found, Conversation)
    return found


def said(conversation: Conversation) -> list[tuple[Any, ...]]:
    """(role, text) of each message, with its calls where it has any."""
    return [(m.role, m.content, *m.calls) for m in conversation.messages]


def rows_of(name: str, row: Any) -> list[Any]:
    """The rows of a file that holds a row: the lines of a session, else the row."""
    return list(row["lines"]) if FORMATS[name].session else [row]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("name", AGENTS)
def test_the_rows_of_every_agent_format_are_recognised(name: str) -> None:
    for row in schema(name)["examples"]:
        assert recognise(rows_of(name, row))[0] == name


@pytest.mark.parametrize("name", AGENTS)
def test_control_tokens_in_texts_calls_and_results_stay_text(run: Run, tmp_path: Path, name: str) -> None:
    """Every text of the example ends with a typed stop; there are still as many stops as without."""
    plain = schema(name)["examples"][0]

    def typed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {key: typed(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [typed(inner, key) for inner in value]
        return (
            value + END if isinstance(value, str) and key in ("text", "content", "output", "city", "message") else value
        )

    def stops(row: Row, out: Path) -> tuple[int, int]:
        run("compile", write(tmp_path / "x.jsonl", rows_of(name, row)), "--format", name, "-o", out)
        (ids,) = CompiledSet.open(out).table("train").column("input_ids").to_pylist()
        return ids.count(STOP), len(ids)

    bare, some = stops(plain, tmp_path / "plain"), stops(typed(plain), tmp_path / "typed")
    assert some[0] == bare[0]
    assert some[1] > bare[1]


# -- anthropic --

USE = {"type": "tool_use", "id": "t1", "name": "dig", "input": {"x": 3}}
QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "r"}


def test_blocks_of_anthropic_become_reasoning_text_calls_and_results() -> None:
    said_first = [
        {"type": "thinking", "thinking": "Where?", "signature": "s"},
        {"type": "text", "text": "I "},
        {"type": "text", "text": "dig."},
        USE,
        USE | {"id": "t2", "input": {}},
    ]
    heard = [
        {"type": "tool_result", "tool_use_id": "t1", "content": "sand"},
        {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "mud"}]},
    ]
    row = {
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            QUESTION,
            {"role": "assistant", "content": said_first},
            {"role": "user", "content": heard},
            ANSWER,
        ],
        "tools": [{"name": "dig", "input_schema": {"type": "object"}}],
    }
    found = lifted("anthropic", row)
    assert said(found) == [
        (SYSTEM, "Be brief."),
        (USER, "q"),
        (ASSISTANT, "I dig.", Call("dig", {"x": 3}, "t1"), Call("dig", {}, "t2")),
        (TOOL, "sand"),
        (TOOL, "mud"),
        (ASSISTANT, "r"),
    ]
    assert [m.reasoning for m in found.messages] == [None, None, "Where?", None, None, None]
    assert [m.call_id for m in found.messages[3:5]] == ["t1", "t2"]
    assert found.places == [-1, 0, 1, 2, 2, 3]
    assert found.tools == [{"type": "function", "function": {"name": "dig", "parameters": {"type": "object"}}}]


def test_what_a_user_says_beside_a_result_is_a_message_of_its_own() -> None:
    heard = [
        {"type": "tool_result", "tool_use_id": "t1", "content": "sand"},
        {"type": "text", "text": "Deeper"},
        {"type": "text", "text": "!"},
    ]
    row = {"messages": [QUESTION, {"role": "assistant", "content": [USE]}, {"role": "user", "content": heard}, ANSWER]}
    assert said(lifted("anthropic", row))[2:4] == [(TOOL, "sand"), (USER, "Deeper!")]


def test_images_of_anthropic_keep_their_places() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    heard = [{"type": "text", "text": "See "}, picture, {"type": "text", "text": "this"}]
    (user, _) = lifted("anthropic", {"messages": [{"role": "user", "content": heard}, ANSWER]}).messages
    (media,) = user.media
    assert (user.content, media.at) == ("See this", 4)
    assert (media.uri, media.pointer) == ("data:image/png;base64,QUJD", "/messages/0/content/1")


def test_encrypted_reasoning_is_counted_and_not_read(run: Run, tmp_path: Path) -> None:
    hidden = {
        "role": "assistant",
        "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "r"}],
    }
    file = write(tmp_path / "x.jsonl", [{"messages": [QUESTION, hidden]}])
    result = run("compile", file, "-o", tmp_path / "out")
    assert "in 1 row, reasoning that is encrypted was not read" in result.stdout


# -- openai_responses --


def item(kind: str, **more: Any) -> Row:
    return {"type": kind, **more}


ASKED = item("message", role="user", content=[{"type": "input_text", "text": "q"}])
SAID = item("message", role="assistant", content=[{"type": "output_text", "text": "I dig."}])
DIG = item("function_call", call_id="c1", name="dig", arguments='{"x": 3}')
SAND = item("function_call_output", call_id="c1", output="sand")


def test_items_of_one_reply_become_one_message() -> None:
    thought = item("reasoning", summary=[{"type": "summary_text", "text": "Where?"}], encrypted_content="gAAA")
    items = [ASKED, thought, SAID, DIG, DIG | {"call_id": "c2"}, SAND, SAND | {"call_id": "c2"}, SAID]
    found = lifted("openai_responses", {"input": items, "instructions": "Be brief."})
    assert said(found) == [
        (SYSTEM, "Be brief."),
        (USER, "q"),
        (ASSISTANT, "I dig.", Call("dig", {"x": 3}, "c1"), Call("dig", {"x": 3}, "c2")),
        (TOOL, "sand"),
        (TOOL, "sand"),
        (ASSISTANT, "I dig."),
    ]
    assert found.messages[2].reasoning == "Where?"
    assert found.places == [-1, 0, 1, 5, 6, 7]


def test_the_items_of_an_output_follow_those_of_the_input() -> None:
    found = lifted("openai_responses", {"input": "q", "output": [SAID]})
    assert said(found) == [(USER, "q"), (ASSISTANT, "I dig.")]


def test_tools_of_the_responses_api_become_those_of_chat_templates() -> None:
    tool = {"type": "function", "name": "dig", "parameters": {"type": "object"}, "strict": True}
    inner = {"name": "dig", "parameters": {"type": "object"}, "strict": True}
    found = lifted("openai_responses", {"input": [ASKED, SAID], "tools": [tool]})
    assert found.tools == [{"type": "function", "function": inner}]


def test_a_free_text_for_a_tool_is_its_argument_input() -> None:
    patch = item("custom_tool_call", call_id="c1", name="apply_patch", input="*** Begin Patch")
    output = item("custom_tool_call_output", call_id="c1", output="ok")
    found = lifted("openai_responses", {"input": [ASKED, patch, output, SAID]})
    assert found.messages[1].calls == [Call("apply_patch", {"input": "*** Begin Patch"}, "c1")]


# -- atif --


def step(source: str, message: str, **more: Any) -> Row:
    return {"source": source, "message": message, **more}


def test_steps_become_replies_with_their_calls_and_results() -> None:
    call = {"tool_call_id": "c1", "function_name": "dig", "arguments": {"x": 3}}
    seen = {"results": [{"source_call_id": "c1", "content": "sand"}, {"content": [{"type": "text", "text": "mud"}]}]}
    tool = {"type": "function", "function": {"name": "dig", "parameters": {"type": "object"}}}
    steps = [
        step("system", "Be brief."),
        step("user", "q"),
        step("agent", "I dig.", reasoning_content="Where?", tool_calls=[call], observation=seen),
        step("agent", "Sand."),
    ]
    found = lifted("atif", {"steps": steps, "agent": {"name": "a", "tool_definitions": [tool]}})
    assert said(found) == [
        (SYSTEM, "Be brief."),
        (USER, "q"),
        (ASSISTANT, "I dig.", Call("dig", {"x": 3}, "c1")),
        (TOOL, "sand"),
        (TOOL, "mud"),
        (ASSISTANT, "Sand."),
    ]
    assert (found.messages[2].reasoning, found.messages[3].call_id, found.messages[4].call_id) == ("Where?", "c1", None)
    assert (found.places, found.tools) == ([0, 1, 2, 2, 2, 3], [tool])


def test_copied_context_and_steps_that_no_model_wrote_are_not_trained() -> None:
    steps = [step("user", "q"), step("agent", "a", is_copied_context=True), step("user", "q")]
    steps += [step("agent", "b", llm_call_count=0), step("user", "q"), step("agent", "c", llm_call_count=1)]
    assert [m.weight for m in lifted("atif", {"steps": steps}).messages] == [None, 0.0, None, 0.0, None, None]


# -- JSON as text, nulls --


SWE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Fix it."},
    {"role": "assistant", "content": "I look.", "tool_calls": [{"function": {"name": "dig", "arguments": '{"x": 3}'}}]},
    {"role": "tool", "content": "sand"},
    {"role": "assistant", "content": "Done."},
]
DIGGER = {
    "type": "function",
    "function": {"name": "dig", "description": "Dig a hole", "parameters": {"type": "object"}},
}


def ids_of(run: Run, out: Path, rows: list[Row], *options: str) -> list[list[int]]:
    run("compile", write(out.with_suffix(".jsonl"), rows), "--no-shuffle", *options, "-o", out)
    return [list(ids) for ids in CompiledSet.open(out).table("train").column("input_ids").to_pylist()]


@pytest.mark.parametrize("column", ["messages", "trajectory"])
@pytest.mark.parametrize("tools", [json.dumps([DIGGER]), [json.dumps(DIGGER)], [DIGGER]])
def test_trajectories_as_json_text_are_read_as_what_they_hold(
    run: Run, tmp_path: Path, column: str, tools: Any
) -> None:
    plain = ids_of(run, tmp_path / "plain", [{"messages": SWE, "tools": [DIGGER]}])
    row = {column: json.dumps(SWE), "tools": tools, "resolved": 1, "exit_status": "submitted"}
    assert ids_of(run, tmp_path / "text", [row]) == plain
    notes = CompiledSet.open(tmp_path / "text").manifest["datasets"][0]["notes"]
    assert notes["json_text"] == 1


def test_the_function_calls_of_toucan_are_read(run: Run, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "function_call": {"name": "dig", "arguments": '{"x": 3}'}},
        {"role": "function", "name": "dig", "content": "sand"},
        {"role": "assistant", "content": "Sand."},
    ]
    plain = ids_of(run, tmp_path / "plain", [{"messages": messages, "tools": [DIGGER]}])
    row = {"messages": json.dumps(messages), "available_tools": json.dumps([DIGGER]), "question": "q"}
    assert ids_of(run, tmp_path / "text", [row]) == plain


def test_text_that_is_no_list_of_messages_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [{"messages": "[1, 2]"}, {"messages": "[{"}, {"messages": SWE}])
    run("compile", file, "--format", "openai", "--max-rejects", "2", "-o", tmp_path / "out")
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    found = [(reject["row"], reject["pointer"], reject["message"]) for reject in map(json.loads, lines)]
    assert found == [(row, "/messages", "expected array, found string") for row in (0, 1)]


def test_what_is_wrong_in_json_text_is_located(run: Run, tmp_path: Path) -> None:
    bad = [SWE[1], {"role": "assistant", "content": 3}]
    file = write(tmp_path / "x.jsonl", [{"trajectory": json.dumps(bad)}, {"trajectory": SWE}])
    run("compile", file, "--format", "openai", "--max-rejects", "1", "-o", tmp_path / "out")
    reject = json.loads((tmp_path / "out" / "rejects.jsonl").read_text())
    assert (reject["pointer"], reject["reason"]) == ("/trajectory/1/content", "schema")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("openai", {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]}),
        ("anthropic", {"messages": [QUESTION, {"role": "assistant", "content": [USE]}, QUESTION]}),
    ],
)
def test_nulls_that_a_union_of_columns_adds_do_not_matter(run: Run, tmp_path: Path, name: str, row: Row) -> None:
    """`datasets` gives every object of a list the keys of all others, with null where there was none."""
    row = json.loads(json.dumps(row))
    if name == "anthropic":
        row["messages"][2] = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "a"}]}
        row["messages"].append(ANSWER)
    keys = ("type", "text", "image", "image_url", "source", "id", "name", "input", "tool_use_id", "content", "thinking")
    filled = json.loads(json.dumps(row))
    for message in filled["messages"]:
        message |= {key: message.get(key) for key in ("tool_calls", "weight", "name")}
        if isinstance(message["content"], list):
            message["content"] = [{key: block.get(key) for key in keys} for block in message["content"]]
    assert ids_of(run, tmp_path / "with", [filled]) == ids_of(run, tmp_path / "without", [row], "--format", name)


def test_nulls_among_the_arguments_of_a_call_are_kept() -> None:
    format_ = FORMATS["anthropic"]
    checker = Validator(format_, dict(format_.columns), dict(format_.tags), "anthropic")
    block = USE | {"input": {"x": None}, "text": None, "source": 3}
    row = {"messages": [QUESTION, {"role": "assistant", "content": [block | {"name": "dig"}]}]}
    row["messages"][0] = {"role": "user", "content": [{"type": "text", "text": "q", "source": None}]}
    found, reject = check(row, ("messages",), checker)
    assert reject is None
    assert found["messages"][1]["content"][0]["input"] == {"x": None}


# -- session files --


def line(kind: str, uuid: str, parent: str | None, content: Any, name: str | None = None, **more: Any) -> Row:
    message = {"role": kind, "content": content} | ({"id": name} if name else {})
    return {"type": kind, "uuid": uuid, "parentUuid": parent, "sessionId": "s", "message": message} | more


def used(name: str) -> list[Row]:
    return [USE | {"id": name}]


def result(name: str, text: str = "sand") -> list[Row]:
    return [{"type": "tool_result", "tool_use_id": name, "content": text}]


SESSION = [
    {"type": "summary", "summary": "Digging", "leafUuid": "u5"},
    line("user", "u1", None, "q"),
    line("assistant", "u2", "u1", [{"type": "text", "text": "I dig."}], "m1"),
    line("assistant", "u3", "u2", used("t1"), "m1"),
    line("user", "u4", "u3", result("t1")),
    line("assistant", "u5", "u4", [{"type": "text", "text": "Sand."}], "m2"),
]
DUG = [
    (USER, "q"),
    (ASSISTANT, "I dig.", Call("dig", {"x": 3}, "t1")),
    (TOOL, "sand"),
    (ASSISTANT, "Sand."),
]


def test_the_lines_of_a_session_are_joined_and_fragments_of_one_reply_merged() -> None:
    found = lifted("claude_code", {"lines": SESSION})
    assert said(found) == DUG
    assert found.places == [1, 2, 4, 5]
    assert found.notes == ["session_prompt"]


def test_results_of_calls_made_at_once_are_found_on_their_branches() -> None:
    """The second call follows the first one, and so does the first result: the newest leaf has one result above it."""
    lines = [
        line("user", "u1", None, "q"),
        line("assistant", "u2", "u1", used("t1"), "m1"),
        line("assistant", "u3", "u2", used("t2"), "m1"),
        line("user", "u4", "u2", result("t1", "sand")),
        line("user", "u5", "u3", result("t2", "mud")),
        line("assistant", "u6", "u5", "Both.", "m2"),
    ]
    found = lifted("claude_code", {"lines": lines})
    assert said(found) == [
        (USER, "q"),
        (ASSISTANT, "", Call("dig", {"x": 3}, "t1"), Call("dig", {"x": 3}, "t2")),
        (TOOL, "sand"),
        (TOOL, "mud"),
        (ASSISTANT, "Both."),
    ]
    assert found.notes == ["session_prompt"]


def test_a_result_between_two_calls_of_one_reply_follows_the_reply() -> None:
    lines = [
        line("user", "u1", None, "q"),
        line("assistant", "u2", "u1", used("t1"), "m1"),
        line("user", "u3", "u2", result("t1")),
        line("assistant", "u4", "u3", used("t2"), "m1"),
        line("user", "u5", "u4", result("t2")),
        line("assistant", "u6", "u5", "Both.", "m2"),
    ]
    assert [m.role for m in lifted("claude_code", {"lines": lines}).messages] == [
        USER,
        ASSISTANT,
        TOOL,
        TOOL,
        ASSISTANT,
    ]


def test_subagents_and_earlier_branches_are_left_out_and_said() -> None:
    lines = [
        line("user", "a1", None, "for a subagent", isSidechain=True),
        line("assistant", "a2", "a1", "done", "m8", isSidechain=True),
        *SESSION,
        line("user", "u6", "u1", "an edited question"),
        line("assistant", "u7", "u6", "r", "m9"),
    ]
    found = lifted("claude_code", {"lines": lines})
    assert said(found) == [(USER, "q"), (USER, "an edited question"), (ASSISTANT, "r")]
    assert found.notes == ["session_branches", "session_prompt", "session_subagents"]


def test_what_the_program_says_in_the_place_of_the_model_is_not_trained() -> None:
    lines = copy.deepcopy(SESSION)
    lines[5]["message"]["model"] = "<synthetic>"
    assert [m.weight for m in lifted("claude_code", {"lines": lines}).messages] == [None, None, None, 0.0]


@pytest.mark.parametrize(
    ("at", "change", "pointer", "message"),
    [
        (4, {"parentUuid": "gone"}, "/lines/4/parentUuid", "expected a line with the uuid 'gone', found none"),
        (1, {"parentUuid": "u4"}, "/lines/4", "expected a tree of lines, found a line above itself"),
        (2, {"message": {"role": "assistant", "content": 3}}, "/lines/2/message/content", "expected string or array"),
        (4, {"message": None}, "/lines/4/message", "expected object, found null"),
    ],
)
def test_what_is_wrong_in_a_session_is_located(
    run: Run, tmp_path: Path, at: int, change: Row, pointer: str, message: str
) -> None:
    lines = [*SESSION[:at], SESSION[at] | change, *SESSION[at + 1 :]]
    write(tmp_path / "x.jsonl", lines)
    run("compile", tmp_path / "x.jsonl", "--format", "claude_code", "-o", tmp_path / "out", code=3)
    reject = json.loads((tmp_path / "out.rejects.jsonl").read_text())
    assert (reject["row"], reject["offset"]) == (0, 0)
    assert message in reject["message"]
    assert reject["pointer"] == pointer


def test_a_file_of_two_sessions_is_refused() -> None:
    other = line("user", "v1", None, "q") | {"sessionId": "other"}
    with pytest.raises(RowError, match="found a line of another: 'other'"):
        lifted("claude_code", {"lines": [other, *SESSION]})


def codex(kind: str, payload: Any) -> Row:
    return {"timestamp": "2026-01-01T00:00:00Z", "type": kind, "payload": payload}


def test_the_items_of_a_codex_session_are_read_with_its_instructions() -> None:
    lines = [
        codex("session_meta", {"id": "s", "base_instructions": {"text": "Be brief."}}),
        codex("turn_context", {"cwd": "/tmp"}),
        codex("response_item", ASKED),
        codex("event_msg", {"type": "user_message", "message": "q"}),
        codex("response_item", SAID),
        codex("response_item", DIG),
        codex("response_item", {"type": "ghost_snapshot", "ghost_commit": {}}),
        codex("response_item", SAND),
        codex("response_item", SAID),
    ]
    found = lifted("codex", {"lines": lines})
    assert said(found) == [
        (SYSTEM, "Be brief."),
        (USER, "q"),
        (ASSISTANT, "I dig.", Call("dig", {"x": 3}, "c1")),
        (TOOL, "sand"),
        (ASSISTANT, "I dig."),
    ]
    assert (found.places, found.notes) == ([0, 2, 4, 7, 8], ["session_tools"])
    lines[0] = codex("session_meta", {"instructions": "q"})
    assert said(lifted("codex", {"lines": lines}))[0] == (USER, "q")  # an item has the instructions already


def test_a_session_whose_context_was_replaced_is_refused() -> None:
    lines = [codex("response_item", ASKED), codex("compacted", {"message": "..."}), codex("response_item", SAID)]
    with pytest.raises(RowError, match="replaced by a summary") as error:
        lifted("codex", {"lines": lines})
    assert error.value.reject.pointer == "/lines/1"


def test_the_messages_of_a_session_trace_are_read_in_both_spellings() -> None:
    plain: list[Row] = [
        {"type": "session", "id": "s"},
        {"type": "message", "message": {"role": "user", "content": "q"}},
        {
            "type": "message",
            "message": {
                "role": "assistant",
                "content": "I dig.",
                "reasoningContent": "Where?",
                "toolCalls": [{"id": "t1", "function": {"name": "dig", "arguments": '{"x": 3}'}}],
            },
        },
        {"type": "message", "message": {"role": "tool", "toolCallId": "t1", "content": "sand"}},
        {"type": "message", "message": {"role": "assistant", "content": "Sand."}},
    ]
    parts = copy.deepcopy(plain)
    call = {"type": "toolCall", "id": "t1", "name": "dig", "arguments": {"x": 3}}
    thought, text = {"type": "thinking", "thinking": "Where?"}, {"type": "text", "text": "I dig."}
    parts[2]["message"] = {"role": "assistant", "content": [thought, text, call]}
    parts[3]["message"] = {"role": "toolResult", "toolCallId": "t1", "content": [{"type": "text", "text": "sand"}]}
    for lines in (plain, parts):
        found = lifted("session_trace", {"lines": lines})
        assert said(found) == DUG
        assert found.messages[1].reasoning == "Where?"
        assert (found.places, found.notes) == ([1, 2, 3, 4], ["session_tools"])


def test_a_session_trace_with_branches_is_refused() -> None:
    lines: list[Row] = [{"type": "session", "id": "s"}]
    for name, parent, role in (("a", "s", "user"), ("b", "a", "assistant"), ("c", "a", "assistant")):
        lines.append({"type": "message", "id": name, "parentId": parent, "message": {"role": role, "content": "r"}})
    with pytest.raises(RowError, match="the session has branches") as error:
        lifted("session_trace", {"lines": lines})
    assert error.value.reject.pointer == "/lines/3/parentId"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_session_file_is_one_unit_and_one_row(tmp_path: Path, suffix: str) -> None:
    data = b"\n".join(json.dumps(one).encode() for one in SESSION * 50) + b"\n\n"
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    for target in (1, 100, 1 << 20):
        (unit,) = cut(as_session(open_source(path)), target)
        (row,) = read(unit)
        assert (unit.offset, unit.length, row.index, row.offset, row.length) == (0, len(data), 0, 0, len(data) - 2)
        assert row.value == {"lines": SESSION * 50}
        assert row.raw == data[:-2]


def test_a_broken_line_of_a_session_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\n{"type": "user"}\n{"type": \n')
    (row,) = read(next(cut(as_session(open_source(path)))))
    assert row.reject is not None
    assert row.reject.pointer == "/lines/1"


def test_what_json_does_not_have_is_refused_in_a_session(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"type": "user"}\n{"type": "user", "cost": NaN}\n')
    (row,) = read(next(cut(as_session(open_source(path)))))
    assert row.reject is not None
    assert row.reject.message.startswith("NaN is not JSON")
    assert row.reject.pointer == "/lines/1/cost"


def test_a_session_must_be_json_lines(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    result = run("compile", tmp_path / "x.csv", "--format", "codex", "-o", tmp_path / "out", code=5)
    assert "a session was expected, which is a file of JSON lines; found csv" in result.stderr


def test_each_session_of_a_folder_is_a_row(run: Run, tmp_path: Path) -> None:
    (tmp_path / "chats").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "chats" / f"{name}.jsonl", SESSION)
    result = run("compile", tmp_path / "chats", "-o", tmp_path / "out")
    table = CompiledSet.open(tmp_path / "out").table("train")
    assert sorted(Path(file).name for file in table.column("file").to_pylist()) == ["a.jsonl", "b.jsonl"]
    assert table.column("row").to_pylist() == [0, 0]
    assert "all lines of a file are one row" in result.stderr
    assert "in 2 rows, the session holds neither the system prompt nor the tools that the model saw" in result.stdout
