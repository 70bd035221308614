"""ReAct text: taken apart, checked, and made from structured calls; and the clean-up rules of dataset cards."""

from __future__ import annotations

import copy
import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import assume, event, given

import registry
from compiler import formats
from compiler.conversation import Call, Conversation, Media, Message, Role
from compiler.encode.weigh import KEYWORD, Policy
from compiler.rows.clean import clean
from compiler.rows.react.check import RULES, ReactFinding, check
from compiler.rows.react.dialect import to_text
from compiler.rows.react.parse import MAX_LITERAL, Api, ReplyPart, parse_apis, parse_inputs, parse_reply
from schemas import check_config
from schemas.errors import Reason, RowError, UsageError
from tests.support.conversations import conversations, react_texts, texts
from tests.support.encoded import weighed_texts
from tests.support.shared import shared, tools

REACT = Policy.from_card(registry.weights("react"))


def system(text: str) -> Message:
    return Message(Role.SYSTEM, text)


def user(text: str = "q") -> Message:
    return Message(Role.USER, text)


def reply(text: str, *calls: Call, **more: Any) -> Message:
    return Message(Role.ASSISTANT, text, list(calls), **more)


def result(text: str, **more: Any) -> Message:
    return Message(Role.TOOL, text, **more)


def lifted(row: Any, name: str) -> Conversation:
    format_ = formats.FORMATS[name]
    columns = {key: column for key, column in format_.columns.items() if column in row}
    found = format_.lift(row, columns, dict(format_.tags))
    assert isinstance(found, Conversation)
    return found


# -- replies taken apart --


def test_a_keyword_counts_at_the_start_of_a_line_only() -> None:
    text = "Hm.\nThought: see Action: no\n Action: no\nAction: f\nAction Input:\nObservation: a\nb Final Answer: no"
    assert [(part.keyword, part.text) for part in parse_reply(text)] == [
        ("Thought", " see Action: no\n Action: no\n"),
        ("Action", " f\n"),
        ("Action Input", "\n"),
        ("Observation", " a\nb Final Answer: no"),
    ]
    assert parse_reply("Thought:\nAction:Action Input: x") == [
        ReplyPart("Thought", "\n", 0, 9),
        ReplyPart("Action", "Action Input: x", 9, 31),
    ]
    assert parse_reply("Plain. Action: none") == []


@given(st.one_of(react_texts(), texts()))
def test_parts_are_cut_where_the_weights_policy_cuts(text: str) -> None:
    parts = parse_reply(text)
    intervals = REACT.intervals(text)
    assert [part.start for part in parts] == [start for start, _, _, key in intervals if key == KEYWORD]
    assert [text[part.start : part.end] for part in parts] == [f"{p.keyword}:{p.text}" for p in parts]
    assert "".join(text[part.start : part.end] for part in parts) == text[parts[0].start if parts else len(text) :]


# -- inputs --


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"city": "北京"}', {"city": "北京"}),
        ("{'keywords_dict': {'商品类目': '手机'}}", {"keywords_dict": {"商品类目": "手机"}}),
        ("{'a': None, 'b': True, 'c': -1.5e3, 'd': ('x',)}", {"a": None, "b": True, "c": -1500.0, "d": ["x"]}),
        ("{'re': '\\d+', 'quote': \"it's\"}", {"re": "\\d+", "quote": "it's"}),
        ("[1, 2]", [1, 2]),
        ('"x"', "x"),
        ("", {}),
        (" \n", {}),
    ],
)
def test_an_input_is_json_or_a_python_literal(text: str, value: Any) -> None:
    assert parse_inputs([f" {text}\n"]) == [value]


@pytest.mark.parametrize(
    "text",
    ["/tmp/1.jpg", "{'a': 1", "city=Paris", "{a: 1}", "__import__('os')", "f('x')", "[x for x in 'ab']", "1 + 1",
     "{'a': open('x')}", '{"a": 1} and more', "f'{1}'", "NaN"],
)  # fmt: skip
def test_anything_else_is_no_input(text: str) -> None:
    (found,) = parse_inputs([text])
    assert isinstance(found, ValueError)
    assert "JSON" in str(found)


HOSTILE = """
import resource, sys
from compiler.rows.react.parse import MAX_LITERAL as n, parse_inputs
texts = ["[" * n, "{" * n, "-" * n + "1", "1" + "+1" * n, "a" + ".a" * n, "x" + "[0]" * n, "f" + "()" * n, "not " * n,
         "lambda:" * n, '"' + '\\\\"' * n, "'" * n, "9" * n, "1<" * n, "{" + "1:2," * n + "}", "[" * 150 + "]" * 150]
texts += [text[:n] for text in texts] + ["[" + "[]," * (n // 3 - 1) + "'x']", "{'a':" * 90 + "1" + "}" * 90]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for text in texts:
    (found,) = parse_inputs([text])
    assert not isinstance(found, ValueError) or len(str(found)) < 500
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown // (1 << 20 if sys.platform == "darwin" else 1 << 10))
"""


def test_no_input_exhausts_the_stack_or_the_memory() -> None:
    done = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    assert int(done.stdout) < 300  # MiB, for inputs of up to 700 kB


def test_a_long_input_is_read_if_it_is_json() -> None:
    long = ["x" * MAX_LITERAL]
    assert parse_inputs([json.dumps(long)]) == [long]
    (found,) = parse_inputs([str(long)])
    assert "neither JSON nor, with 100,004 characters, a Python literal" in str(found)


def test_each_input_is_read_by_itself() -> None:
    """Beside one that is too long for a Python literal, and between pieces that together would be JSON."""
    first, second, third, fourth = parse_inputs(["[1", "2]", "{'a': 1}", json.dumps("x" * MAX_LITERAL)])
    assert isinstance(first, ValueError)
    assert isinstance(second, ValueError)
    assert (third, fourth) == ({"a": 1}, "x" * MAX_LITERAL)


# -- the APIs of a system prompt --

AGENT_PROMPT = """\
Answer the following questions as best you can. You have access to the following APIs:
1. weather: Call this tool to interact with the weather API. What is the weather API useful for? . Parameters: \
[{"name": "city", "description": "a [b] \\"c\\"", "required": "True"}, {"name": "day", "required": "False"}]

2. fire_alert: Call this tool to interact with the fire alert API. It alerts. Parameters: []

Use the following format:

Action: the action to take, should be one of the above tools[weather, fire_alert, other]
Begin!"""


def test_apis_are_read_from_the_prompts_of_ms_agent() -> None:
    assert parse_apis(AGENT_PROMPT) == {
        "weather": Api("weather", ("city",)),
        "fire_alert": Api("fire_alert", ()),
        "other": Api("other", None),
    }


@pytest.mark.parametrize(
    ("prompt", "apis"),
    [
        (
            'f: Call this tool to interact with the f API. What is it for? X. Parameters: {"type": "object", '
            '"properties": {"a": {}, "b": {}}, "required": ["a"]} Format the arguments as a JSON object.',
            {"f": ("a",)},
        ),
        ("1. 查询: 查一查。 Parameters: [{'name': '词', 'required': True}]", {"查询": ("词",)}),
        ("1. f: the Parameters: [see below] are: Parameters: []", {"f": ()}),
        ("1. f: g Parameters: [{oops", {"f": None}),
        ('1. f: g Parameters: ["a", "b"]', {"f": None}),
        ("Action: the action to take, should be one of [a,b]", {"a": None, "b": None}),
    ],
)
def test_apis_are_read_in_every_layout(prompt: str, apis: dict[str, tuple[str, ...] | None]) -> None:
    assert {name: api.required for name, api in (parse_apis(prompt) or {}).items()} == apis


@pytest.mark.parametrize(
    "prompt",
    ["", "You are a helpful assistant.", "Rules:\n1. Brevity: be brief.\n2. Tone: be kind.", "Pick one of [a, b].",
     "Action: search[query]"],
)  # fmt: skip
def test_a_prompt_without_apis_lists_none(prompt: str) -> None:
    assert parse_apis(prompt) is None


@given(texts(max_pieces=30))
def test_any_prompt_can_be_read(prompt: str) -> None:
    parse_apis(f"{AGENT_PROMPT}\n1. x: Parameters: {prompt}")


# -- the checks --

GOOD = 'Thought: t\nAction: weather\nAction Input: {"city": "Bergen"}\nObservation: rain\nFinal Answer: Rain.'


def findings(text: str, prompt: str = AGENT_PROMPT) -> list[tuple[str, str, int]]:
    found = check(Conversation([system(prompt), user(), reply(text)]))
    assert all(finding.message_index == 2 for finding in found)
    return [(finding.rule, finding.message, finding.start) for finding in found]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Just talk.",
        "Final Answer: at once",
        GOOD.replace('{"city": "Bergen"}', "{'city': 'Bergen', 'more': None}"),
        GOOD.replace("rain\n", "a log:\n Action: nonsense\nsee Observation: x\n"),
        "Action: fire_alert\nAction Input:\nObservation:\nFinal Answer: Done.",
        "Action: other\nAction Input: [1]\nObservation: x\nFinal Answer: Done.",
    ],
)
def test_good_replies_have_no_findings(text: str) -> None:
    assert findings(text) == []


UNKNOWN = (
    "Action 'wether' is not an API of the system prompt; did you mean 'weather'? known: fire_alert, other, weather"
)
NO_VALUE = "Action Input 'Bergen' is neither JSON nor a Python literal"
NO_CITY = "expected Action Input with the parameters that 'weather' requires, found no 'city'"
NO_CALL = "expected Observation after Action and Action Input, found it"
NOT_ENDED = "expected the last reply to end with Final Answer, found"
INPUT = 'Action Input: {"city": "Bergen"}\n'


@pytest.mark.parametrize(
    ("old", "new", "rule", "message", "at"),
    [
        ("Action: weather", "Action: wether", "react_action", UNKNOWN, "Action:"),
        ('{"city": "Bergen"}', "Bergen", "react_input", NO_VALUE, "Action Input:"),
        ('"city"', '"town"', "react_input", NO_CITY, "Action Input:"),
        ('{"city": "Bergen"}', '["city"]', "react_input", NO_CITY, "Action Input:"),
        (INPUT, "", "react_observation", f"{NO_CALL} after Thought and Action", "Observation:"),
        (f"Action: weather\n{INPUT}", "", "react_observation", f"{NO_CALL} after Thought", "Observation:"),
        (f"Thought: t\nAction: weather\n{INPUT}", "", "react_observation", f"{NO_CALL} first", "Observation:"),
        (
            "Rain.",
            "Rain.\nThought: x",
            "react_final",
            "expected nothing after Final Answer, found Thought",
            "Thought: x",
        ),
        ("\nFinal Answer: Rain.", "", "react_final", f"{NOT_ENDED} Observation", "Observation:"),
    ],
)
def test_a_bad_reply_is_found_with_its_place(old: str, new: str, rule: str, message: str, at: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    [(found, said, start)] = findings(text)
    assert found == rule
    assert said.startswith(message)
    assert text[start:].startswith(at)


def test_an_action_may_have_any_name_where_the_prompt_lists_no_apis() -> None:
    assert findings(GOOD.replace("weather", "anything"), "You are kind.") == []


def test_a_rule_finds_one_thing_in_each_reply() -> None:
    bad = "Action: x\nAction Input: y\nAction: x\nAction Input: y\nObservation: o\nObservation: o\nThought: t"
    found = check(Conversation([system(AGENT_PROMPT), user(), reply(bad), user(), reply("Hello."), user(), reply(bad)]))
    assert [(f.rule, f.message_index) for f in found] == [
        ("react_action", 2), ("react_input", 2), ("react_observation", 2),
        ("react_action", 6), ("react_input", 6), ("react_observation", 6), ("react_final", 6),
    ]  # fmt: skip
    assert {finding.rule for finding in found} == set(RULES)


def test_only_the_last_reply_that_uses_react_must_end_with_a_final_answer() -> None:
    open_ = GOOD.removesuffix("Final Answer: Rain.")
    rows = [user(), reply(open_), user(), reply(GOOD), user("Thanks"), reply("You're welcome.")]
    assert check(Conversation([system(AGENT_PROMPT), *rows])) == []
    [finding] = check(Conversation([system(AGENT_PROMPT), *rows[:2], *rows[4:]]))
    assert finding == ReactFinding(
        "react_final", "expected the last reply to end with Final Answer, found Observation", 2, open_.index("Obs")
    )


@cache
def samples() -> tuple[Conversation, ...]:
    rows = [json.loads(line) for line in (registry.SAMPLES / "agent.jsonl").read_text("utf-8").splitlines()]
    return tuple(lifted(row, "ms_agent") for row in rows)


def test_the_embedded_samples_have_no_findings() -> None:
    assert [finding for conversation in samples() for finding in check(conversation)] == []


@pytest.mark.parametrize(
    ("pattern", "text", "rule"),
    [
        (r"^Action: (.)", r"Action: \1_", "react_action"),
        (r"^Action Input: ", "Action Input: see ", "react_input"),
        (r"^Action Input: (.*)$", "Action Input: {}", "react_input"),
        (r"^Action Input: .*\n", "", "react_observation"),
        (r"^Final Answer:", "Final answer:", "react_final"),
        (r"\Z", "\nThought: done", "react_final"),
    ],
)
def test_a_mistake_is_found_in_every_sample_it_is_made_in(pattern: str, text: str, rule: str) -> None:
    changed = 0
    for conversation in samples():
        for i, message in enumerate(conversation.messages):
            calls_nothing_that_asks = rule == "react_input" and text.endswith("{}") and asks_nothing(conversation, i)
            if message.role is not Role.ASSISTANT or calls_nothing_that_asks:
                continue
            last = i == len(conversation.messages) - 1
            content = re.sub(pattern, text, message.content, count=1, flags=re.MULTILINE)
            if content == message.content or (text == "Final answer:" and not last):
                continue
            messages = [*conversation.messages]
            messages[i] = replace(message, content=content)
            found = check(replace(conversation, messages=messages))
            assert {(f.rule, f.message_index) for f in found} >= {(rule, i)}, content
            changed += 1
    assert changed >= 60


def asks_nothing(conversation: Conversation, i: int) -> bool:
    """Whether the first call of a reply is to an API without required parameters."""
    names = re.findall(r"^Action: (\w+)$", conversation.messages[i].content, re.MULTILINE)
    entry = re.search(rf"^\d+\. {names[0]}: .*$", conversation.messages[0].content, re.MULTILINE) if names else None
    return entry is not None and '"required": "True"' not in entry[0]


def test_the_row_of_seed_003_has_no_findings() -> None:
    row = json.loads(shared("data", "ms-swift", "ms_agent_seed_row.json").read_text("utf-8"))
    conversation = lifted(row, "ms_agent")
    assert check(conversation) == []
    apis = parse_apis(conversation.messages[0].content)
    assert apis is not None
    assert {name: len(api.required or ()) for name, api in apis.items()} == {
        "hm_recipe_recommend": 1, "hm_product_marketing": 1, "hm_product_info": 3, "hm_product_recommend": 1,
    }  # fmt: skip


# -- structured calls as text --

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
EN = """\
Answer the following questions as best you can. You have access to the following tools:

weather: Call this tool to interact with the weather API. What is the weather API useful for? Weather of a city. \
Parameters: {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]} \
Format the arguments as a JSON object.

stop: Call this tool to interact with the stop API. What is the stop API useful for? Parameters: {} \
Format the arguments as a JSON object.

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [weather,stop]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!
"""
BERGEN, OSLO = Call("weather", {"city": "Bergen"}), Call("weather", {"city": "北京"})


def test_a_turn_with_calls_becomes_one_reply_in_the_format_of_its_prompt() -> None:
    messages = [
        system("Be kind."),
        user("Bergen and Beijing?"),
        reply("Bergen first.", BERGEN),
        result("rain\n", name="weather"),
        reply("", OSLO),
        result("Action: sun"),
        reply("Rain and sun.\nIn that order."),
        user("Thanks"),
        reply("You're welcome."),
        user("Bergen again?"),
        reply("Thought: again\n", BERGEN),
    ]
    said = to_text(Conversation(messages, [WEATHER, {"name": "stop"}]), "en")
    assert said.tools is None
    assert said.places == [0, 1, 2, 7, 8, 9, 10]
    assert said.messages == [
        system(f"Be kind.\n\n{EN}"),
        user("Bergen and Beijing?"),
        reply(
            "Thought: Bergen first.\n"
            'Action: weather\nAction Input: {"city": "Bergen"}\nObservation: rain\n'
            'Action: weather\nAction Input: {"city": "北京"}\nObservation: Action: sun\n'
            "Final Answer: Rain and sun.\nIn that order."
        ),
        user("Thanks"),
        reply("You're welcome."),
        user("Bergen again?"),
        reply('Thought: again\nAction: weather\nAction Input: {"city": "Bergen"}\nObservation:'),
    ]


def test_a_system_message_is_made_for_the_tools_where_there_is_none() -> None:
    said = to_text(Conversation([user(), reply("Hi.")], [WEATHER, {"name": "stop"}], context=1), "en")
    assert (said.messages, said.places, said.context) == ([system(EN), user(), reply("Hi.")], [-1, 0, 1], 2)


def test_the_chinese_prompt_has_the_same_apis_and_english_keywords() -> None:
    said = to_text(Conversation([user(), reply("", BERGEN)], [WEATHER, {"name": "stop"}]), "zh")
    prompt = said.messages[0].content
    assert parse_apis(prompt) == parse_apis(EN) == {"weather": Api("weather", ("city",)), "stop": Api("stop", ())}
    lines = [line.split(":")[0] for line in prompt.splitlines() if re.match(r"[A-Z][A-Za-z ]+: ", line)]
    assert lines == ["Question", "Thought", "Action", "Action Input", "Observation", "Thought", "Final Answer"]
    assert said.messages[1:] == to_text(Conversation([user(), reply("", BERGEN)]), "en").messages


def test_a_conversation_without_tools_and_calls_is_returned_as_it_is() -> None:
    conversation = Conversation([system("s"), user(), reply("Observation: none")])
    assert to_text(conversation, "en") is conversation
    none = Conversation([user(), reply("r")], [])
    assert to_text(none, "en") == replace(none, tools=None, places=[0, 1])


def test_calls_made_at_once_have_their_results_one_by_one() -> None:
    expected = (
        'Action: weather\nAction Input: {"city": "Bergen"}\nObservation: rain\n'
        'Action: weather\nAction Input: {"city": "北京"}\nObservation: sun\n'
        "Final Answer: Both."
    )
    by_id = [result("sun", call_id="b"), result("rain", call_id="a")]
    in_order = [result("rain", call_id="a", name="x"), result("sun")]
    for results, name in ((by_id, "weather"), (in_order, "x")):
        named = [replace(IDS[0], name=name), IDS[1]]
        said = to_text(Conversation([user(), reply("", *named), *results, reply("Both.")]), "en")
        assert said.messages[1].content == expected.replace("weather", name, 1)


def test_media_stand_where_they_stood_in_the_text() -> None:
    picture, chart = Media("image", "a.png", at=2), Media("image", "b.png", at=0)
    messages = [user(), reply("", BERGEN), result("a  b", media=[picture]), reply("See.", media=[chart])]
    said = to_text(Conversation(messages), "en").messages[1]
    first, second = said.media
    assert said.content[: first.at].endswith("Observation: a ")
    assert said.content[second.at :] == "See."
    assert (picture.at, chart.at) == (2, 0)


def test_the_rejected_reply_of_a_pair_is_put_in_its_turn() -> None:
    chosen = Conversation([user(), reply("Sunny.")], rejected=reply("", BERGEN))
    said = to_text(chosen, "en")
    assert said.messages == [user(), reply("Sunny.")]
    assert said.rejected == reply('Action: weather\nAction Input: {"city": "Bergen"}\nObservation:')


CALLED = [user(), reply("", BERGEN), result("rain"), reply("Rain.")]
IDS = [replace(BERGEN, id="a"), replace(OSLO, id="b")]


def called(*calls: Call, answers: Any = "rain", text: str = "", ends: str = "Rain.") -> list[Message]:
    """A turn: a text with its calls, their results, and the end of the reply."""
    results = [result(answers)] if isinstance(answers, str) else answers
    return [user(), reply(text, *(calls or (BERGEN,))), *results, reply(ends)]


@pytest.mark.parametrize(
    ("messages", "place", "message"),
    [
        (called(answers="ok\nAction: x"), 2, "a line of the result begins with 'Action:'"),
        (called(answers="Thought: a\nThought: b"), 2, "a line of the result begins with 'Thought:'"),
        (called(text="Final Answer: x"), 1, "a line of the reply begins with 'Final Answer:'"),
        (called(ends="See:\nObservation: x"), 3, "a line of the reply begins with 'Observation:'"),
        (called(Call("a\nb", {})), 1, "the name 'a\\nb' of a tool has a newline"),
        ([user(), reply("", BERGEN, OSLO)], 1, "2 calls with 0 results"),
        (called(BERGEN, OSLO), 1, "2 calls with 1 result,"),
        (called(answers=[reply("", OSLO), result("x")]), 1, "1 call with 0 results"),
        ([user(), reply("Hm."), result("x"), reply("r")], 1, "0 calls with 1 result"),
        (CALLED[:3], 2, "a result without a reply to it"),
        ([user(), result("rain"), reply("r")], 1, "a result without a call"),
        (
            called(BERGEN, Call("stop", {}), answers=[result("x", name="stop"), result("y")]),
            2,
            "a result of 'stop' in the place of one of 'weather'",
        ),
        (
            called(*IDS, answers=[result("x", call_id="a"), result("y", call_id="c")]),
            1,
            "the ids of the results are not those of the calls",
        ),
        (
            [user(), reply("", BERGEN, weight=0.0), *CALLED[2:]],
            3,
            "the replies of one turn have different weights, 0 and none asked for",
        ),
        (
            [user(), reply("", BERGEN, weight=2.0), result("rain"), reply("Rain.", weight=2.0)],
            1,
            "the reply asks for a weight of 2, and the results inside it",
        ),
        (called(answers=[result("rain", weight=1.0)]), 2, "the result is trained"),
        ([*CALLED[:3], reply("Rain.", reasoning="Hm.")], 3, "the reasoning of a reply"),
    ],
)
def test_what_the_text_cannot_say_is_refused_with_its_place(messages: list[Message], place: int, message: str) -> None:
    with pytest.raises(RowError, match=re.escape(f"ReAct text cannot express this: {message}")) as caught:
        to_text(Conversation(messages), "en", turns="/messages")
    assert caught.value.reject.reason is Reason.TEMPLATE_REFUSED
    assert caught.value.reject.pointer == f"/messages/{place}"
    shifted = Conversation([system("s"), *messages], places=[-1, *range(5, 5 + len(messages))])
    with pytest.raises(RowError) as caught:
        to_text(shifted, "en", turns="/messages")
    assert caught.value.reject.pointer == f"/messages/{place + 5}"


def test_a_turn_that_is_history_in_part_is_refused() -> None:
    with pytest.raises(RowError, match="a part of the turn is history"):
        to_text(Conversation(CALLED, context=3), "en")
    assert to_text(Conversation([*CALLED, user(), reply("r")], context=5), "en").context == 3
    with pytest.raises(RowError, match="the system message is trained"):
        to_text(Conversation([replace(system("s"), weight=1.0), *CALLED], [WEATHER]), "en")


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"any": "JSON"}, "expected a list"),
        (["f"], "expected tool 0 to be an object with a name"),
        ([WEATHER, {"function": {}}], "expected tool 1 to be an object with a name"),
        ([{"name": "f", "description": 1}], "expected the description of 'f' to be text"),
        ([{"name": "f", "returns": {"type": "string"}}], "'f' has 'returns', which would be lost"),
    ],
)
def test_tools_without_a_place_in_the_prompt_are_refused(given_: Any, message: str) -> None:
    with pytest.raises(RowError, match=re.escape(f"ReAct text cannot list the tools: {message}")) as caught:
        to_text(Conversation(CALLED, given_), "en", tools="/tools")
    assert caught.value.reject.pointer == "/tools"


def test_a_reply_that_is_context_does_not_become_trained() -> None:
    messages = [user(), reply("", BERGEN, weight=0.0), result("rain"), reply("Rain.", weight=0.0)]
    assert to_text(Conversation(messages), "en").messages[1].weight == 0.0


def weighed(conversation: Conversation) -> list[tuple[str, float]]:
    """What the model writes and reads in its replies, by the weights of the policy `react`."""
    tokenizer, template = tools("demo")
    found = weighed_texts(conversation, template.program.joined(conversation), tokenizer, REACT)
    return [(text, weight) for text, weight, generated in found if generated]


def test_the_policy_trains_all_but_the_results() -> None:
    assert weighed(to_text(Conversation(CALLED), "en")) == [
        ("Action:", 2.0), (" weather\n", 2.0), ("Action Input:", 2.0), (' {"city": "Bergen"}\n', 2.0),
        ("Observation:", 2.0), (" rain\n", 0.0), ("Final Answer:", 1.0), (" Rain.", 1.0), ("<|im_end|>", 1.0),
    ]  # fmt: skip


@given(conversations(weights=False, replies=st.one_of(texts(), st.just("Let me see."))), st.sampled_from(("en", "zh")))
def test_results_are_context_and_all_else_is_trained_in_any_conversation(source: Conversation, language: Any) -> None:
    before = copy.deepcopy(source)
    try:
        said = to_text(source, language)
    except RowError as error:
        event(error.reject.message[:50])
        assume(False)
    assert source == before
    called = any(message.calls for message in source.messages)
    event(f"calls: {called}, tools: {bool(source.tools)}")
    assert said.tools is None
    assert not any(message.calls or message.role is Role.TOOL for message in said.messages)
    roles = [message.role for message in said.messages]
    assert roles.count(Role.ASSISTANT) == sum(role is Role.USER for role in roles)
    assert [m for m in said.messages if m.role is Role.USER] == [m for m in source.messages if m.role is Role.USER]
    for old, new in turns_of(source, said):
        if len(old) == 1 and not old[0].calls:
            assert new is old[0]
            continue
        context = [(a, b) for a, b, weight, _ in REACT.intervals(new.content) if weight == 0]
        answers = [message.content for message in old if message.role is Role.TOOL]
        assert Counter(new.content[a:b] for a, b in context) == Counter(
            f" {answer}" if answer.endswith("\n") else f" {answer}\n" for answer in answers
        )
        trained = "".join(pieces(new.content, context))
        for message in old:
            if message.role is Role.ASSISTANT:
                assert message.content in trained
                for call in message.calls:
                    action = f"Action: {call.name}\nAction Input: {json.dumps(call.arguments, ensure_ascii=False)}\n"
                    assert f"{action}Observation:" in trained
        assert {finding.rule for finding in check(Conversation([user(), new]))} <= {"react_final"}


def turns_of(source: Conversation, said: Conversation) -> list[tuple[list[Message], Message]]:
    """The replies and results of each turn, with the reply that they became."""
    runs: list[list[Message]] = []
    for i, message in enumerate(source.messages):
        if message.role in (Role.ASSISTANT, Role.TOOL):
            if i and source.messages[i - 1].role in (Role.ASSISTANT, Role.TOOL):
                runs[-1].append(message)
            else:
                runs.append([message])
    return list(zip(runs, (m for m in said.messages if m.role is Role.ASSISTANT), strict=True))


def pieces(text: str, left_out: list[tuple[int, int]]) -> list[str]:
    """The text without some intervals of it."""
    ends = [(0, 0), *left_out, (len(text), len(text))]
    return [text[before[1] : after[0]] for before, after in pairwise(ends)]


# -- ms-swift's rendering --


@cache
def goldens() -> list[dict[str, Any]]:
    with gzip.open(shared("golden", "ms_swift_qwen.jsonl.gz")) as file:
        rows = [json.loads(line) for line in file]
    return [row for row in rows if row["settings"].get("agent_template") == "react_en" and "input_ids" in row]


def undone(reply_text: str) -> str:
    """A reply with the declared differences undone: Python's notation, no space, no keywords of our own."""
    text = re.sub(
        r"^Action Input: (.*)$", lambda match: f"Action Input: {json.loads(match[1])}", reply_text, flags=re.MULTILINE
    )
    text = re.sub(r"^(?:Final Answer|Thought): ", "", text, flags=re.MULTILINE)
    return re.sub(r"^Observation: ", "Observation:", text, flags=re.MULTILINE)


def trained_text(row: dict[str, Any]) -> str:
    tokenizer, _ = tools("qwen2.5")
    return tokenizer.decode([label for label in row["labels"] if label != -100])


def test_the_rendering_is_that_of_ms_swift_but_for_the_declared_differences() -> None:
    tokenizer, _ = tools("qwen2.5")
    compared = 0
    for row in goldens():
        source = row["source"]
        conversation = lifted(source, "openai" if "messages" in source else "sharegpt")
        said = to_text(conversation, "en")
        if not conversation.tools:
            assert said.messages == conversation.messages
            continue
        if len(conversation.messages[1].calls) == 2:
            continue  # the next test
        own = conversation.messages[0].content if conversation.messages[0].role is Role.SYSTEM else ""
        texts_ = [said.messages[0].content.removeprefix(f"{own}\n\n" if own else ""), *map_undone(said.messages[1:])]
        ours = "".join(
            f"<|im_start|>{message.role}\n{text}<|im_end|>\n"
            for message, text in zip(said.messages, texts_, strict=True)
        )
        assert ours == tokenizer.decode(row["input_ids"]), row["id"]
        compared += 1
        if row["settings"]["loss_scale"] == "react":
            assert trained_text(row) == "".join(f"{text}<|im_end|>\n" for text in our_trained(said)), row["id"]
    assert compared >= 10


def map_undone(messages: list[Message]) -> list[str]:
    return [undone(m.content) if m.role is Role.ASSISTANT else m.content for m in messages]


def our_trained(said: Conversation) -> list[str]:
    """The text that the policy trains in each reply, with the declared differences undone."""
    replies = [message.content for message in said.messages if message.role is Role.ASSISTANT]
    context = [[(a, b) for a, b, weight, _ in REACT.intervals(text) if weight == 0] for text in replies]
    return ["".join(map(undone, pieces(*both))) for both in zip(replies, context, strict=True)]


def test_calls_at_once_are_where_ms_swift_loses_the_lines() -> None:
    rows = [row for row in goldens() if row["id"] == "openai_tools_synthetic/1"]
    tokenizer, _ = tools("qwen2.5")
    for row in rows:
        theirs = tokenizer.decode(row["input_ids"]).split("<|im_start|>assistant\n")[1]
        assert theirs == (
            "Let me check.Action: get_weather\nAction Input: {'city': 'Paris'}\nAction: get_weather\n"
            "Action Input: {'city': '北京'}\nObservation:2125Paris 21, 北京 25.<|im_end|>\n"
        )
        assert to_text(lifted(row["source"], "openai"), "en").messages[2].content == (
            'Thought: Let me check.\nAction: get_weather\nAction Input: {"city": "Paris"}\nObservation: 21\n'
            'Action: get_weather\nAction Input: {"city": "北京"}\nObservation: 25\nFinal Answer: Paris 21, 北京 25.'
        )
    assert len(rows) == 2


# -- the clean-up rules of a card --

BENCH = {"drop_system": ["You are a helpful assistant."], "drop_rows_with": ["moss", "Human:"]}


def test_a_system_message_of_the_card_is_left_out() -> None:
    conversation = Conversation([system("You are a helpful assistant."), user(), reply("Hi.")])
    assert clean(conversation, BENCH) == ["drop_system"]
    assert (conversation.messages, conversation.places) == ([user(), reply("Hi.")], [1, 2])
    for text in ("You are a helpful assistant", "", "you are a helpful assistant."):
        kept = Conversation([system(text), user(), reply("Hi.")])
        assert clean(kept, BENCH) == []
        assert kept == Conversation([system(text), user(), reply("Hi.")])


def test_places_and_history_follow_when_a_message_is_left_out() -> None:
    messages = [system("You are a helpful assistant."), user(), reply("a"), user(), reply("b")]
    conversation = Conversation(messages, places=[-1, 0, 1, 2, 3], context=3)
    clean(conversation, BENCH)
    assert (conversation.places, conversation.context) == ([0, 1, 2, 3], 2)
    assert len(messages) == 5


@pytest.mark.parametrize(
    ("messages", "text", "pointer"),
    [
        ([user("I am MOSS."), reply("Hi.")], "moss", "/conversations/0"),
        ([user("Hi"), reply("human: hello")], "Human:", "/conversations/1"),
        (
            [system("You are a helpful assistant."), user("Hi"), reply("HUMAN: a, mossy one")],
            "moss",
            "/conversations/2",
        ),
    ],
)
def test_a_row_with_a_text_of_the_card_is_rejected_with_its_place(
    messages: list[Message], text: str, pointer: str
) -> None:
    with pytest.raises(RowError, match=f"message contains '{text}'") as caught:
        clean(Conversation(messages), BENCH, "/conversations")
    assert (caught.value.reject.reason, caught.value.reject.pointer) == (Reason.CLEANED, pointer)


def test_without_rules_nothing_is_cleaned() -> None:
    assert clean(Conversation([system("moss"), user(), reply("human:")]), {}) == []


def test_the_card_of_ms_bench_has_the_rules_of_ms_swift_and_the_samples_have_none() -> None:
    cards = registry.datasets()
    assert cards["ms-bench"]["clean"] == {
        "drop_system": ["You are a helpful assistant."],
        "drop_rows_with": ["moss", "human:", "assistant:", "user:"],
    }
    assert not any("clean" in cards[name] for name in ("agent", "bench", "ms-agent"))


def test_an_unknown_rule_is_a_mistake_of_the_card() -> None:
    card = {"name": "x", "description": "y", "format": "ms_agent", "files": ["x"], "clean": {"drop_row_with": ["a"]}}
    with pytest.raises(UsageError, match="did you mean 'drop_rows_with'"):
        check_config(card, "dataset_card", "card")
