"""Policies that leave out whole replies: final answers alone, and no calls whose result is an error.

The masks are held against a second derivation, written here on other ground (exchanges cut at user messages, regular
expressions over whole replies), and the slow reference for everything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings

import registry
from compiler.conversation import Conversation, Message, Role
from compiler.encode.batch import Encoded
from compiler.encode.weigh import Policy
from tests.support.conversations import react_texts, texts
from tests.support.reference import CASES, DEMO, Case, Reference
from tests.support.sets import manifest, rejects, rows, write
from tests.support.shared import tools

Run = Callable[..., Result]
Row = dict[str, Any]
USER, ASSISTANT, TOOL = Role.USER, Role.ASSISTANT, Role.TOOL
LAWS = settings(
    deadline=None, derandomize=True, database=None, max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip


# -- laws --


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    tools(found.tokenizer, found.template)  # skips where it is not here
    return found


def columns_of(encoded: Encoded) -> list[tuple[int, float]]:
    return list(zip(encoded.ids.tolist(), encoded.weights.tolist(), strict=True))


def as_context(conversation: Conversation, untrained: set[int]) -> Conversation:
    messages = [replace(m, weight=0.0) if i in untrained else m for i, m in enumerate(conversation.messages)]
    return replace(conversation, messages=messages)


def told_apart(conversation: Conversation) -> Conversation:
    """The conversation with a note of whether it is ReAct text: no system text of these lists APIs."""
    replies = [message.content for message in conversation.messages if message.role is ASSISTANT]
    return replace(conversation, plain=not any(re.search("^Action:", reply, re.MULTILINE) for reply in replies))


def exchanges(messages: list[Message]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for i, message in enumerate(messages):
        if message.role is USER:
            found.append([])
        if message.role in (ASSISTANT, TOOL):
            found[-1].append(i)
    return [exchange for exchange in found if exchange]


KEYWORD = re.compile("^(?:Thought|Action|Action Input|Observation|Final Answer):", re.MULTILINE)


def answers(conversation: Conversation) -> set[int]:
    found = set()
    for exchange in exchanges(conversation.messages):
        last = conversation.messages[exchange[-1]]
        acts = not conversation.plain and KEYWORD.search(last.content) and "Final Answer:" not in lines_of(last.content)
        if last.role is ASSISTANT and not last.calls and not acts:
            found.add(exchange[-1])
    return found


def lines_of(text: str) -> set[str]:
    return {f"{line.partition(':')[0]}:" for line in text.split("\n") if ":" in line}


def final_answer_weights(reply: str, begin: int) -> list[float]:
    """One weight per character: of a reply with keywords, only the lines from Final Answer on, up to the next one."""
    body = reply[begin:]
    if not KEYWORD.search(body):
        return [1.0] * len(reply)
    weights, content = [0.0] * begin, 0.0
    for line in re.split("(?<=\n)", body):
        if KEYWORD.match(line):
            content = float(line.startswith("Final Answer:"))
        weights += [content] * len(line)
    return weights


@LAWS
@given(data=st.data())
def test_only_final_answers_are_trained(case: Case, data: st.DataObject) -> None:
    conversation = told_apart(data.draw(case.conversations(replies=texts() | react_texts())))
    replies = {i for i, message in enumerate(conversation.messages) if message.role is ASSISTANT}
    expected = as_context(conversation, replies - answers(conversation))
    weights = (lambda reply, _: [1.0] * len(reply)) if conversation.plain else final_answer_weights
    found = case.compile(conversation, Policy.from_card(registry.weights("final_answer")))
    assert columns_of(found) == Reference(case, expected, weights).columns


ERROR = "42|world|é|done"
ACTION = re.compile(
    r"^Action:(?:(?!^(?:Thought|Action|Observation|Final Answer):)[\s\S])*^Observation:"
    r"(?P<result>(?:(?!^(?:Thought|Action|Action Input|Observation|Final Answer):)[\s\S])*)",
    re.MULTILINE,
)


def failed(messages: list[Message]) -> set[int]:
    found = set()
    for i, result in enumerate(messages):
        if result.role is not TOOL or not re.search(ERROR, result.content):
            continue
        before = list(range(i - 1, -1, -1))
        named = [j for j in before for call in messages[j].calls if call.id is not None and call.id == result.call_id]
        asked = next((j for j in before if messages[j].role is USER), -1)
        nearest = [j for j in before if messages[j].role is ASSISTANT and j > asked]
        found |= {*(named or nearest)[:1]}
    return found


def failed_weights(reply: str, begin: int) -> list[float]:
    weights = [1.0] * len(reply)
    for match in ACTION.finditer(reply[begin:]):
        if re.search(ERROR, match["result"]):
            start, end = begin + match.start(), begin + match.start("result")
            weights[start:end] = [0.0] * (end - start)
    return weights


@LAWS
@given(data=st.data())
def test_a_call_whose_result_is_an_error_is_not_trained(case: Case, data: st.DataObject) -> None:
    conversation = told_apart(data.draw(case.conversations(replies=texts() | react_texts())))
    expected = as_context(conversation, failed(conversation.messages))
    policy = Policy.from_card({"name": "made", "errors": {"it": ERROR}})
    assert columns_of(case.compile(conversation, policy)) == Reference(case, expected, failed_weights).columns


@LAWS
@given(data=st.data())
def test_rules_in_a_chain_leave_out_what_each_leaves_out(data: st.DataObject) -> None:
    """And the weights of characters multiply, in any order."""
    conversation = told_apart(data.draw(DEMO.conversations(replies=texts() | react_texts())))
    card = {"name": "made", "errors": {"it": ERROR}}
    parts = [registry.weights("final_answer"), registry.weights("react"), card]
    parts = data.draw(st.permutations(parts))
    chain = Policy.from_card(parts[0] | {"then": parts[1:]})
    alone = [DEMO.compile(conversation, Policy.from_card(part)) for part in parts]
    found = DEMO.compile(conversation, chain)
    least = [min(weights) for weights in zip(*(one.weights.tolist() for one in alone), strict=True)]
    assert [weight > 0 for weight in found.weights.tolist()] == [weight > 0 for weight in least]


# -- rows --


def user(said: str) -> Row:
    return {"role": "user", "content": said}


def reply(said: str, **more: Any) -> Row:
    return {"role": "assistant", "content": said, **more}


def call(*names: str, said: str = "") -> Row:
    calls = [{"id": name, "type": "function", "function": {"name": "look", "arguments": "{}"}} for name in names]
    return reply(said, tool_calls=calls)


def result(said: str, name: str) -> Row:
    return {"role": "tool", "content": said, "tool_call_id": name}


def talk(*messages: Row, **more: Any) -> Row:
    return {"messages": list(messages), **more}


LOOKED = talk(
    user("Where is it?"), call("a", said="Let me look."), result("here", "a"), reply("It is here."),
    user("And now?"), call("b"), result("Error: no such place", "b"), call("c"), result("there", "c"), reply("There."),
)  # fmt: skip
AGENT: Row = {
    "conversations": [
        {"from": "system", "value": "1. lamp: Call this tool. Parameters: []"},
        {"from": "user", "value": "Light!"},
        {
            "from": "assistant",
            "value": "Thought: the lamp\nAction: lamp\nAction Input: {}\nObservation: Error: no bulb\n"
            "Thought: again\nAction: lamp\nAction Input: {}\nObservation: on\nThought: good\nFinal Answer: It is on.",
        },
    ]
}


@pytest.fixture
def trained(run: Run, tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Compile rows with a policy, and return the texts that are trained, example by example."""

    def compile_rows(policy: object, *sources: Row, options: tuple[object, ...] = ()) -> list[list[str]]:
        file = write(tmp_path / "rows.jsonl", *sources)
        options = ("--no-shuffle", "--max-rejects", "100%", *options)
        run("compile", file, "--weights", policy, *options, "-o", tmp_path / "out")
        return [trained_texts(row) for row in rows(tmp_path / "out")]

    return compile_rows


def trained_texts(row: Row) -> list[str]:
    found: list[list[int]] = [[]]
    for label in row["labels"]:
        if label >= 0:
            found[-1].append(label)
        elif found[-1]:
            found.append([])
    return [DEMO.text_of(ids) for ids in found if ids]


def notes(out: Path) -> dict[str, int]:
    found: dict[str, int] = manifest(out)["datasets"][0]["notes"]
    return found


Trained = Callable[..., list[list[str]]]


def test_the_final_answer_of_each_exchange_is_trained(trained: Trained, tmp_path: Path) -> None:
    assert trained("final_answer", LOOKED) == [["It is here.<|im_end|>", "There.<|im_end|>"]]
    assert notes(tmp_path / "out") == {"untrained:not_final": 3}


def test_a_reply_that_a_result_follows_is_no_answer_though_its_call_is_text(trained: Trained) -> None:
    source = talk(user("a"), reply("<call>look</call>"), {"role": "tool", "content": "r"}, reply("b"), user("c"))
    source["messages"] += [reply("<call>look</call>"), {"role": "tool", "content": "r"}, reply("d")]
    assert trained("final_answer", source) == [["b<|im_end|>", "d<|im_end|>"]]


def test_an_exchange_that_ends_in_a_call_has_no_answer(trained: Trained, tmp_path: Path) -> None:
    found = trained(
        "final_answer", LOOKED, talk(user("a"), call("x")), talk(user("a"), reply("b"), user("c"), call("x"))
    )
    assert found[1:] == [["b<|im_end|>"]]
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (1, "nothing_trained")
    assert "final_answer leaves out every reply" in reject["message"]


def test_a_reply_that_the_row_leaves_untrained_stays_so(trained: Trained, tmp_path: Path) -> None:
    source = talk(user("a"), reply("b", loss=False), user("c"), reply("d", weight=0.5))
    assert trained("final_answer", source) == [["d<|im_end|>"]]
    (row,) = rows(tmp_path / "out")
    assert {weight for weight in row["loss_weights"] if weight} == {0.5}
    assert notes(tmp_path / "out") == {}


def test_of_react_text_only_the_final_answer_is_trained(trained: Trained, tmp_path: Path) -> None:
    plain = {"conversations": [{"from": "user", "value": "x"}, {"from": "assistant", "value": "So.\nFinal Answer: 4"}]}
    acts = {
        "conversations": [*AGENT["conversations"][:2], {"from": "assistant", "value": "Thought: no\nAction: lamp\n"}]
    }
    found = trained("final_answer", AGENT, plain, acts, options=("--format", "ms_agent"))
    assert found == [["Final Answer: It is on.<|im_end|>"], ["So.\nFinal Answer: 4<|im_end|>"]]
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (2, "nothing_trained")
    assert notes(tmp_path / "out")["untrained:before_final"] == 1


def test_tools_written_as_react_text_have_a_final_answer_too(trained: Trained) -> None:
    lamp = {"type": "function", "function": {"name": "look", "parameters": {}}}
    source = talk(*LOOKED["messages"][:4], tools=[lamp])
    assert trained("final_answer", source, options=("--tools", "react")) == [["Final Answer: It is here.<|im_end|>"]]


def test_a_pair_of_final_answers_is_trained_and_one_with_a_call_is_not(trained: Trained, tmp_path: Path) -> None:
    good = {"messages": [user("a")], "chosen": reply("b"), "rejected": reply("c")}
    bad = {"messages": [user("a")], "chosen": reply("b"), "rejected": call("x")}
    assert trained("final_answer", good, bad) == [["b<|im_end|>"]]
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (1, "nothing_trained")


def test_a_call_that_failed_is_context_and_the_summary_counts_it(trained: Trained, run: Run, tmp_path: Path) -> None:
    (found,) = trained("ignore_failed_calls", LOOKED)
    assert len(found) == 4
    assert found[0].startswith("Let me look.")
    assert "there" not in "".join(found)
    assert notes(tmp_path / "out") == {"untrained:failed_reply": 1}
    again = run("compile", tmp_path / "rows.jsonl", "--weights", "ignore_failed_calls", "-o", tmp_path / "out")
    assert "rows: replies left untrained, because the result of a call is an error: 1" in again.stdout


def test_a_reply_with_several_calls_is_context_if_one_of_them_failed(trained: Trained) -> None:
    source = talk(user("a"), call("x", "y"), result("fine", "y"), result("ValueError: bad", "x"), reply("b"))
    assert trained("ignore_failed_calls", source) == [["b<|im_end|>"]]


def test_an_action_whose_observation_is_an_error_is_context(trained: Trained, tmp_path: Path) -> None:
    (found,) = trained("ignore_failed_calls+react", AGENT, options=("--format", "ms_agent"))
    assert found == [
        "Thought: the lamp\n",
        "Thought: again\nAction: lamp\nAction Input: {}\nObservation:",
        "Thought: good\nFinal Answer: It is on.<|im_end|>",
    ]
    assert notes(tmp_path / "out")["untrained:failed_action"] == 1


IS_ERROR = {
    "Error: no such file": True,
    "ERROR: timeout": True,
    "[ERROR] timeout": True,
    "fatal error: out of memory": True,
    "Traceback (most recent call last):\n  File \"x\", line 1\nKeyError: 'a'": True,
    "requests.exceptions.HTTPError: 404 Client Error": True,
    "json.decoder.JSONDecodeError: Expecting value": True,
    '{"error": "Invalid argument"}': True,
    '{"error": {"code": -32601, "message": "Method not found"}}': True,
    '{"jsonrpc": "2.0", "id": 3, "error": {"code": -32601}}': True,
    '{"content": [{"type": "text", "text": "x"}], "isError": true}': True,
    '{"is_error": true, "content": "x"}': True,
    "<tool_use_error>String to replace not found</tool_use_error>": True,
    '{"error": "", "response": "21 degrees"}': False,
    '{"error": null, "data": 3}': False,
    '{"error": false}': False,
    '{"isError": false, "content": "Error: quoted"}': False,
    '{"log": "ValueError: seen yesterday"}': False,
    "error: none": False,
    "Errors are documented in chapter 3": False,
    "The error rate is 3%": False,
    "3 tests passed, Error: 0": False,
    "def f():\n    raise ValueError('x')": False,
    "log of Monday\nTraceback (most recent call last):\n": False,
    "": False,
}


@pytest.mark.parametrize(("said", "is_error"), IS_ERROR.items(), ids=range(len(IS_ERROR)))
def test_what_is_an_error_begins_like_one(said: str, is_error: bool) -> None:
    assert Policy.from_card(registry.weights("ignore_failed_calls")).is_error(said) == is_error


# -- policies of the user's --

NO_ARGUMENTS = {
    "name": "no_arguments",
    "description": "The arguments of a call are context, in the layout of Hermes and Qwen.",
    "patterns": {"arguments": {"pattern": r'(?<="arguments": )\{.*?\}(?=\}\s*</tool_call>)', "weight": 0}},
}


def own(path: Path, **card: Any) -> Path:
    path.write_text(json.dumps({"name": "mine", "description": "", **card}), "utf-8")
    return path


def test_a_policy_in_a_file_is_used_and_combined(trained: Trained, tmp_path: Path) -> None:
    file = own(tmp_path / "mine.json", errors={"status": r"\AHTTP [45]"})
    source = talk(user("a"), call("x"), result("HTTP 404", "x"), call("y"), result("Error: x", "y"), reply("b"))
    (found,) = trained(file, source)
    assert len(found) == 2
    assert trained(f"final_answer+{file}", source) == [["b<|im_end|>"]]
    (entry,) = manifest(tmp_path / "out")["datasets"]
    assert (entry["weights"], entry["policy"]["then"]) == ("final_answer+mine", [json.loads(file.read_text())])


def test_a_policy_may_leave_the_arguments_of_calls_untrained(trained: Trained, tmp_path: Path) -> None:
    file = own(tmp_path / "mine.json", **NO_ARGUMENTS)
    function = {"name": "look", "arguments": '{"at": {"x": 1}}'}
    source = talk(user("a"), reply("", tool_calls=[{"id": "x", "type": "function", "function": function}]))
    assert trained(file, source) == [
        ['<tool_call>\n{"name": "look", "arguments":', "}\n</tool_call><|im_end|>"],
    ]


def test_a_changed_file_is_another_policy(trained: Trained, tmp_path: Path) -> None:
    file = own(tmp_path / "mine.json", replies="last")
    source = talk(user("a"), reply("b"), user("c"), reply("d"))
    assert trained(file, source) == [["d<|im_end|>"]]
    own(file, replies="all")
    assert trained(file, source) == [["b<|im_end|>", "d<|im_end|>"]]


MISTAKES = {
    "none.json": (None, "--weights none.json: cannot be read: No such file or directory"),
    "text.json": ("{", "--weights text.json: not JSON in UTF-8"),
    "key.json": ('{"name": "a", "description": "", "error": {}}', "key.json#: Additional properties are not allowed"),
    "weight.json": (
        '{"name": "a", "description": "", "patterns": {"p": {"pattern": "x", "weight": -1}}}',
        "weight.json#/patterns/p/weight: -1 is less than the minimum of 0",
    ),
    "regex.json": (
        '{"name": "a", "description": "", "errors": {"p": "("}}',
        "regex.json#/errors/p: not a regular expression of Python",
    ),
    "name.json": ('{"name": "react", "description": ""}', "name.json#/name: a shipped policy is called 'react'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_file_is_one_message_with_its_place(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, message = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text, "utf-8")
    found = run("compile", write(tmp_path / "rows.jsonl", LOOKED), "--weights", name, "-o", "out", code=2)
    assert message in found.stderr
    assert not Path("out").exists()
