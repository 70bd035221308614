"""The language of a screen agent: operations, prompts, replies, and the two source formats made of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from compiler.conversation import Conversation, Media, Role
from compiler.formats import cogagent, screen_history
from compiler.formats.screens.action_space import KEYS, OPERATIONS
from compiler.formats.screens.located import GrammarError
from compiler.formats.screens.operation import Operation, parse_operation
from compiler.formats.screens.prompt import (
    ANSWER_FORMATS,
    PLATFORMS,
    ScreenPrompt,
    ScreenStep,
    group_of,
    parse_prompt,
    render_prompt,
)
from compiler.formats.screens.prompt import structure as prompt_structure
from compiler.formats.screens.reply import ScreenReply, parse_reply, render_reply
from compiler.formats.screens.reply import structure as reply_structure
from compiler.formats.turns import check_turns
from compiler.rows.validate import Validator
from schemas.errors import RowError
from tests.support.shared import shared

DATA = Path(__file__).parent / "data"

# -- operations --


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("END()", "END", {}),
        ("CLICK(box=[[7,6,27,31]])", "CLICK", {"box": (7, 6, 27, 31)}),
        ("HOVER(box=[[000,086,999,932]])", "HOVER", {"box": (0, 86, 999, 932)}),
        ("RIGHT_CLICK(box=[1,2,3,4])", "RIGHT_CLICK", {"box": (1, 2, 3, 4)}),
        (
            "DOUBLE_CLICK( box = [[ 1, 2, 3, 4 ]] , element_type='x' )", "DOUBLE_CLICK",
            {"box": (1, 2, 3, 4), "element_type": "x"},
        ),
        (
            "SCROLL_DOWN(box=[[0,209,998,952]], step_count=5, element_info='[None]')", "SCROLL_DOWN",
            {"box": (0, 209, 998, 952), "step_count": 5, "element_info": "[None]"},
        ),
        (
            "GESTURE(actions=[KEY_DOWN(key='Lcontrol'), KEY_PRESS(key='A'), KEY_UP(key=''')])", "GESTURE",
            {"actions": [
                Operation("KEY_DOWN", {"key": "Lcontrol"}),
                Operation("KEY_PRESS", {"key": "A"}),
                Operation("KEY_UP", {"key": "'"}),
            ]},
        ),
        ("LAUNCH(app='微信', url='None')", "LAUNCH", {"app": "微信", "url": "None"}),
        ('LAUNCH(url="example.org/?a=(1,2)")', "LAUNCH", {"url": "example.org/?a=(1,2)"}),
        (
            "QUOTE_TEXT(box=[[1,2,3,4]], auto_scroll=True, output='__CogName_价格__', result='17.00')", "QUOTE_TEXT",
            {"box": (1, 2, 3, 4), "auto_scroll": True, "output": "__CogName_价格__", "result": "17.00"},
        ),
        (
            r"QUOTE_CLIPBOARD(output='__CogName_code__', result='def f():\n\treturn 1')", "QUOTE_CLIPBOARD",
            {"output": "__CogName_code__", "result": "def f():\n\treturn 1"},
        ),
        ("KEY_PRESS(key='F11')  ", "KEY_PRESS", {"key": "F11"}),
    ],
)  # fmt: skip
def test_an_operation_is_its_name_and_its_arguments(text: str, name: str, arguments: dict[str, Any]) -> None:
    assert parse_operation(text) == Operation(name, arguments)


@pytest.mark.parametrize(
    ("quoted", "text"),
    [
        ("''", ""),
        ("'8.8.8.8'", "8.8.8.8"),
        ("'Wi-Fi, Connected'", "Wi-Fi, Connected"),
        ("'f(x), [a], g(y)'", "f(x), [a], g(y)"),
        ("'Don't save'", "Don't save"),
        ("'print('a')'", "print('a')"),
        ("'the 'a', 'b' and 'c''", "the 'a', 'b' and 'c'"),
        (r"'it\'s'", "it's"),
        (r"'\\'", "\\"),
        (r"'C:\dir\file'", r"C:\dir\file"),
        ("\"it's 'so'\"", "it's 'so'"),
        ('"a \\"b\\""', 'a "b"'),
        ("'x=1, y=2'", "x=1, y=2"),
        ("'“双” 引号 🙂'", "“双” 引号 🙂"),
    ],
)
def test_a_text_ends_where_the_operation_goes_on(quoted: str, text: str) -> None:
    """Anything may stand between quotes, other quotes included."""
    alone = parse_operation(f"TYPE(box=[[1,2,3,4]], text={quoted})")
    assert alone.arguments == {"box": (1, 2, 3, 4), "text": text}
    between = parse_operation(f"TYPE(text={quoted}, box=[[1,2,3,4]], element_info={quoted})")
    assert between.arguments == {"text": text, "box": (1, 2, 3, 4), "element_info": text}


CLICK = "known: box, element_info, element_type"


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        ("CLICK‸", "expected '(' after CLICK, found the end of the text"),
        ("CLICK(‸", f"expected an argument of CLICK, found the end of the text; {CLICK}"),
        ("CLICK(‸[[1,2,3,4]])", f"expected an argument of CLICK, found '[[1,2,3,4]])'; {CLICK}"),
        (
            "CLICK(box=[[1,2,3,4]], ‸element_inf='a')",
            f"expected an argument of CLICK, found 'element_inf'; did you mean 'element_info'? {CLICK}",
        ),
        ("CLICK(box=[[1,2,3,4]],‸)", f"expected an argument of CLICK, found ')'; {CLICK}"),
        ("CLICK(box=[[1,2,3,4]], ‸box=[[1,2,3,4]])", "expected each argument of CLICK once, found 'box' twice"),
        ("CLICK(box=[[1,2,3,4]] ‸key='a')", "expected ',' or ')' after the argument 'box', found 'key'"),
        ("CLICK(element_info='a'‸)", "expected CLICK to have 'box', found only 'element_info'"),
        ("LAUNCH(‸)", "expected LAUNCH to have 'app' or 'url', found no arguments"),
        ("CLICK(box=‸'[[1,2,3,4]]')", "expected '[' before the box, found \"'[[1,2,3,4]]')\""),
        ("CLICK(box=[[1,2,3‸]])", "expected ',' between the four numbers of a box, found ']])'"),
        ("CLICK(box=[[1,2,3,4‸,5]])", "expected ']' after the four numbers of a box, found ',5]])'"),
        ("CLICK(box=[[1,2,3,4]‸)", "expected ']' after the four numbers of a box, found ')'"),
        ("CLICK(box=[1,2,3,4]‸])", "expected ',' or ')' after the argument 'box', found '])'"),
        ("CLICK(box=[[1,2,3,‸1000]])", "expected a number from 0 to 999, found '1000'"),
        ("CLICK(box=[[1,2,‸0.5,4]])", "expected a number from 0 to 999, found '0.5'"),
        ("CLICK(box=[[‸-1,2,3,4]])", "expected a number from 0 to 999, found '-1'"),
        ("CLICK(box=[[‸１,2,3,4]])", "expected a number from 0 to 999, found '１'"),
        ("CLICK(box=[‸[30,2,10,4]])", "expected a box whose left is less than its right, found 30 and 10"),
        ("CLICK(box=[‸[10,2,10,4]])", "expected a box whose left is less than its right, found 10 and 10"),
        ("CLICK(box=[‸1,40,3,40])", "expected a box whose top is less than its bottom, found 40 and 40"),
        ("TYPE(box=[[1,2,3,4]], text=‸hello)", "expected the text of 'text' in quotes, found 'hello'"),
        ("LAUNCH(app=‸None)", "expected the text of 'app' in quotes, found 'None'"),
        ("LAUNCH(url=‸'a)", "expected a closing quote for the text of 'url', found none"),
        (
            "CLICK(box=[[1,2,3,4]], element_type=‸'a, element_info='b')",
            "expected a closing quote for the text of 'element_type', found none",
        ),
        ("CLICK(box=[[1,2,3,4]], element_info='a') ‸now", "expected nothing after the operation, found 'now'"),
        ("SCROLL_UP(box=[[1,2,3,4]], step_count=‸'5')", "expected the number of steps, found \"'5')\""),
        ("SCROLL_UP(box=[[1,2,3,4]]‸)", "expected SCROLL_UP to have 'step_count', found only 'box'"),
        ("GESTURE(actions=[‸])", "expected an action of a gesture, found '])'; known: KEY_DOWN, KEY_PRESS, KEY_UP"),
        (
            "GESTURE(actions=[‸CLICK(box=[[1,2,3,4]])])",
            "expected an action of a gesture, found 'CLICK'; known: KEY_DOWN, KEY_PRESS, KEY_UP",
        ),
        ("LLM(prompt='a', output='‸x')", "expected a variable as __CogName_name__, found 'x'"),
        (
            "LLM(prompt='sum up ‸__CogName_x', output='__CogName_y__')",
            "expected a variable as __CogName_name__, found '__CogName_x'",
        ),
        (
            "TYPE(box=[[1,2,3,4]], text='🙂 ‸__CogName_x__')",
            "expected a variable that is set by now, found __CogName_x__; set so far: __CogName_z__",
        ),
        ("END(‸a=1)", "expected an argument of END, found 'a'; known: none"),
        ("CLICK(box=[[1,2,3,4]]‸\n)", "expected ',' or ')' after the argument 'box', found the end of the line"),
        ("END()‸\n", "expected nothing after the operation, found '\\n'"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_operation_is_found_where_it_is(marked: str, message: str) -> None:
    """‸ stands before the character that the error names."""
    text = marked.replace("‸", "")
    with pytest.raises(GrammarError) as error:
        parse_operation(text, {"__CogName_z__"})
    assert (error.value.position, error.value.message) == (marked.index("‸"), message)


@pytest.mark.parametrize(
    ("wrong", "right"), [("CLIK", "CLICK"), ("QUOTE_CLIPBORAD", "QUOTE_CLIPBOARD"), ("type", None)]
)
def test_an_unknown_operation_names_the_nearest_one(wrong: str, right: str | None) -> None:
    with pytest.raises(GrammarError) as error:
        parse_operation(f"{wrong}(box=[[1,2,3,4]])")
    guess = f"did you mean {right!r}? " if right else ""
    known = ", ".join(sorted(OPERATIONS))
    assert str(error.value) == f"character 0: expected an operation, found {wrong!r}; {guess}known: {known}"


ANY = st.characters(exclude_categories=["Cs"])
TEXT = st.text(st.one_of(ANY, st.sampled_from("'\"\\,()[]= \n\t\r")), max_size=12)
LINE = TEXT.map(lambda text: text.replace("\n", " "))
NUMBERS = st.integers(0, 999)
BOXES = st.tuples(st.sets(NUMBERS, min_size=2, max_size=2), st.sets(NUMBERS, min_size=2, max_size=2)).map(
    lambda sides: (min(sides[0]), min(sides[1]), max(sides[0]), max(sides[1]))
)
VARIABLES = ["__CogName_a__", "__CogName_技术报告__", "__CogName_a_1__"]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "box": BOXES,
    "step_count": st.integers(0, 999_999),
    "auto_scroll": st.booleans(),
    "output": st.sampled_from(VARIABLES),
    "actions": st.lists(
        st.builds(Operation, st.sampled_from(list(KEYS)), st.fixed_dictionaries({"key": TEXT})), min_size=1, max_size=4
    ),
}


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    name = draw(st.sampled_from(list(OPERATIONS)))
    required, optional = OPERATIONS[name]
    given_too = draw(st.lists(st.sampled_from(optional), unique=True)) if optional else []
    if name == "LAUNCH" and not given_too:
        given_too = ["url"]
    arguments = draw(st.permutations([*required, *given_too]))
    return Operation(name, {argument: draw(VALUES.get(argument, TEXT)) for argument in arguments})


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(operations())
def test_an_operation_is_what_its_text_is_parsed_to(operation: Operation) -> None:
    assert parse_operation(str(operation)) == operation


@st.composite
def broken(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> str:
    """A text with one to three characters replaced, removed or added, or a piece doubled or cut off."""
    text = draw(texts)
    for _ in range(draw(st.integers(1, 3))):
        at, to = draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))
        new = draw(
            st.one_of(st.just(""), st.sampled_from([*"'\"\\,()[]=\n\t :<>", "0", "__CogName_"]), st.just(text[at:to]))
        )
        text = text[:at] + new + text[draw(st.sampled_from([at, at + 1, to])) :]
    return text


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.one_of(TEXT, broken(operations().map(str))))
def test_no_text_does_anything_but_parse_or_fail_somewhere_in_it(text: str) -> None:
    try:
        operation = parse_operation(text, frozenset())
    except GrammarError as error:
        assert 0 <= error.position <= len(text)
        assert "expected" in error.message
        assert len(error.message) < 500
    else:
        assert parse_operation(str(operation)) == operation


@pytest.mark.parametrize(
    "text",
    [
        "TYPE(box=[[1,2,3,4]], text='" + "'" * 300_000,
        "TYPE(box=[[1,2,3,4]], text='" + "' , x" * 60_000,
        "TYPE(box=[[1,2,3,4]], text='" + "\\'" * 200_000 + ")",
        "TYPE(box=[[1,2,3,4]], text='" + "__CogName_" * 30_000 + "')",
        "GESTURE(actions=" + "[" * 100_000,
        "CLICK(box=[[" + "9" * 300_000 + ",2,3,4]])",
        "CLICK(" + " " * 300_000,
    ],
    ids=["quotes", "quotes and commas", "escapes", "variables", "brackets", "digits", "spaces"],
)
def test_a_long_hostile_operation_fails_as_quickly_as_a_short_one(text: str) -> None:
    with pytest.raises(GrammarError):
        parse_operation(text, frozenset())


# -- prompts --

SEARCH = "CLICK(box=[[352,102,786,139]], element_info='Search')"
HISTORY = f"\n0. {SEARCH}\tClick the search box.\n1. KEY_PRESS(key='A')\tPress A. "
ASKED = "(Platform: WIN)\n(Answer in Action-Operation format.)\n"
STEPS = (
    ScreenStep(
        Operation("CLICK", {"box": (352, 102, 786, 139), "element_info": "Search"}), SEARCH, "Click the search box."
    ),
    ScreenStep(Operation("KEY_PRESS", {"key": "A"}), "KEY_PRESS(key='A')", "Press A. "),
)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (
            f"Task: Buy a door\nHistory steps: {HISTORY}\n{ASKED}",
            ScreenPrompt("Buy a door", "WIN", "Action-Operation", STEPS),
        ),
        (
            f"Task: Buy a door\n{ASKED}History steps: {HISTORY}\n",
            ScreenPrompt("Buy a door", "WIN", "Action-Operation", STEPS),
        ),
        (f"Task: Buy a door\nHistory steps: \n{ASKED}", ScreenPrompt("Buy a door", "WIN", "Action-Operation")),
        (f"Task: Buy a door\nHistory steps:\n{ASKED[:-1]}", ScreenPrompt("Buy a door", "WIN", "Action-Operation")),
        (f"Task: Buy a door\n{ASKED}History steps:", ScreenPrompt("Buy a door", "WIN", "Action-Operation")),
        (f"Task: a\n\nb: c\nHistory steps: \n{ASKED}", ScreenPrompt("a\n\nb: c", "WIN", "Action-Operation")),
        (
            f"Task: Buy it[Continue]\n\nHistory steps: \n{ASKED}",
            ScreenPrompt("Buy it", "WIN", "Action-Operation", continued=True),
        ),
    ],
)
def test_a_prompt_is_read_in_the_order_of_training_and_in_that_of_inference(text: str, prompt: ScreenPrompt) -> None:
    assert parse_prompt(text) == prompt


def test_a_prompt_is_written_as_the_model_is_asked_at_inference() -> None:
    """As CogAgent's README and app/client.py build it, space and line breaks included."""
    assert render_prompt(ScreenPrompt("Buy a door", "Mac", "Status-Action-Operation", STEPS)) == (
        "Task: Buy a door\n"
        "History steps: \n"
        "0. CLICK(box=[[352,102,786,139]], element_info='Search')\tClick the search box.\n"
        "1. KEY_PRESS(key='A')\tPress A. \n"
        "(Platform: Mac)\n"
        "(Answer in Status-Action-Operation format.)\n"
    )
    assert render_prompt(ScreenPrompt("打开微信", "Mobile", "Action-Operation")) == (
        "Task: 打开微信\nHistory steps: \n(Platform: Mobile)\n(Answer in Action-Operation format.)\n"
    )


HEAD = "Task: Buy a door\n(Platform: WIN)\n(Answer in Action-Operation format.)\n"


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        ("‸task: Buy", "expected a prompt to begin with 'Task:', found 'task'"),
        (f"Task:‸ \n{ASKED}History steps: \n", "expected a task after 'Task:', found none"),
        (f"Task: x\n{ASKED}‸", "expected 'History steps:', even where there are none yet; found the end of the text"),
        ("Task: x\nHistory steps: \n‸(Answer in Action format.)\n", "expected '(Platform: ...)'; found '(Answer in'"),
        (f"{HEAD}History steps: \n‸(Platform: WIN)", "expected the end of the prompt, found '(Platform:' again"),
        (f"Task: x\nHistory steps: \n{ASKED}‸thanks", "expected nothing more here, found 'thanks'"),
        ("Task: x\n(Platform: ‸win)\n(Answer in Action-Operation format.)\nHistory steps: \n",
         "expected a platform as '(Platform: Mac)', found 'win'; known: Mac, Mobile, WIN"),
        (f"{HEAD}History steps:‸ none", "expected the first step on a line of its own, found ' none'"),
        (f"{HEAD}History steps: \n‸1. END()\tDone.", "expected step 0 as '0. ', found '1. END()\\tDone.'"),
        (f"{HEAD}History steps: \n0. {SEARCH}\tClick.\n‸0. {SEARCH}\tClick.",
         "expected step 1 as '1. ', found '0. CLICK(box=[[352,102,7'"),
        (f"{HEAD}History steps: \n0. END()‸  Done.",
         "expected a tab and the action in words after the operation, found '  '"),
        (f"{HEAD}History steps: \n0. END()‸",
         "expected a tab and the action in words after the operation, found the end of the text"),
        (f"{HEAD}History steps: \n0. END()\tDone.\n‸1. {SEARCH}\tClick.",
         "expected no step after END, found '1. CLICK(box=[[352,102,7'"),
        (f"{HEAD}History steps: \n0. {SEARCH}\tClick.\n1. CLICK(box=[‸[9,2,3,4]])\tClick.",
         "expected a box whose left is less than its right, found 9 and 3"),
        (f"{HEAD}History steps: \n0. TYPE(box=[[1,2,3,4]], text='‸__CogName_a__')\tType.\n"
         "1. LLM(prompt='x', output='__CogName_a__')\tAsk.",
         "expected a variable that is set by now, found __CogName_a__; set so far: none"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_prompt_is_found_where_it_is(marked: str, message: str) -> None:
    with pytest.raises(GrammarError) as error:
        parse_prompt(marked.replace("‸", ""))
    assert (error.value.position, error.value.message) == (marked.index("‸"), message)


def test_a_variable_may_be_used_once_an_earlier_step_has_set_it() -> None:
    steps = [
        "QUOTE_TEXT(box=[[1,2,3,4]], output='__CogName_a__')",
        "LLM(prompt='Sum up __CogName_a__', output='__CogName_b__')",
        "TYPE(box=[[1,2,3,4]], text='__CogName_b__ (of __CogName_a__)')",
    ]
    history = "".join(f"\n{i}. {step}\tdo it" for i, step in enumerate(steps))
    assert parse_prompt(f"Task: x\nHistory steps: {history}\n{ASKED}").variables == {"__CogName_a__", "__CogName_b__"}


TASKS = TEXT.map(str.strip).filter(lambda task: task and not prompt_structure(task) and not task.endswith("[Continue]"))
STEP_LISTS = st.lists(
    st.tuples(operations(), LINE).map(lambda pair: ScreenStep(pair[0], str(pair[0]), pair[1])), max_size=4
).map(lambda steps: tuple(step for step in steps[:-1] if step.operation.name != "END") + tuple(steps[-1:]))
PROMPTS = st.builds(
    ScreenPrompt, TASKS, st.sampled_from(PLATFORMS), st.sampled_from(ANSWER_FORMATS), STEP_LISTS, st.booleans()
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(PROMPTS)
def test_a_prompt_is_what_its_text_is_parsed_to(prompt: ScreenPrompt) -> None:
    assert parse_prompt(render_prompt(prompt)) == prompt


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(broken(PROMPTS.map(render_prompt)))
def test_no_prompt_does_anything_but_parse_or_fail_somewhere_in_it(text: str) -> None:
    try:
        prompt = parse_prompt(text)
    except GrammarError as error:
        assert 0 <= error.position <= len(text)
        assert error.in_row(text, "/x").reject.message.startswith(f"character {error.position}, near ")
    else:
        assert parse_prompt(render_prompt(prompt)) == prompt


def test_the_steps_of_a_task_are_one_group_wherever_they_come_from() -> None:
    assert group_of("Buy a door", "WIN") == group_of(" Buy a door[Continue]\n", "WIN")
    assert len({group_of("Buy a door", "WIN"), group_of("Buy a door", "Mac"), group_of("Buy a house", "WIN")}) == 3
    assert len(group_of("x", "Mac")) == 16


# -- replies --

SAYS = f"Action: Click it.\nGrounded Operation: {SEARCH}"
SAID = ScreenReply("Click it.", STEPS[0].operation, SEARCH)


@pytest.mark.parametrize(
    ("text", "answer_format", "more"),
    [
        (SAYS, "Action-Operation", {}),
        (SAYS.replace("Operation: ", "Operation:"), "Action-Operation", {}),
        (f"{SAYS}\n<<END>>", "Action-Operation", {"ended": True}),
        (f"{SAYS}\n<<一般操作>>", "Action-Operation-Sensitive", {"sensitive": False}),
        (f"{SAYS}\n<<敏感操作>>\n", "Action-Operation-Sensitive", {"sensitive": True}),
        (f"{SAYS}\n<<END>>", "Action-Operation-Sensitive", {"ended": True}),
        (f"{SAYS}\n<<一般操作>>\n<<END>>", "Action-Operation-Sensitive", {"sensitive": False, "ended": True}),
        (f"Status: a [[0, 2, 998, 905]]\n{SAYS}", "Status-Action-Operation", {"status": "a [[0, 2, 998, 905]]"}),
        (
            f"Status: a\nPlan: 1. b\n2. c\n{SAYS}",
            "Status-Plan-Action-Operation",
            {"status": "a", "plan": "1. b\n2. c"},
        ),
        (f"All in all:\n{SAYS}", "Action-Operation", {"summary": "All in all:"}),
    ],
)
def test_a_reply_has_the_parts_that_the_answer_format_asks_for(
    text: str, answer_format: str, more: dict[str, Any]
) -> None:
    assert parse_reply(text, answer_format) == ScreenReply(SAID.action, SAID.operation, SAID.written, **more)


MARKS = "<<一般操作>>, <<敏感操作>> or <<END>>"


@pytest.mark.parametrize(
    ("marked", "answer_format", "message"),
    [
        ("Do.‸", "Action-Operation", "expected 'Action:' as Action-Operation asks for, found the end of the text"),
        ("Action:‸ \nGrounded Operation: END()", "Action-Operation", "expected text after 'Action:', found none"),
        ("Action: a‸\nb\nGrounded Operation: END()", "Action-Operation",
         "expected the action on one line, as it becomes a step of the history, found two"),
        (f"‸Status: a\n{SAYS}", "Action-Operation", "expected 'Action:' as Action-Operation asks for, found 'Status:'"),
        (f"Status: a\n‸{SAYS}", "Status-Plan-Action-Operation",
         "expected 'Plan:' as Status-Plan-Action-Operation asks for, found 'Action:'"),
        (f"{SAYS}\n‸Action: b", "Action-Operation", "expected no part after 'Grounded Operation:', found 'Action:'"),
        (f"{SAYS}‸", "Action-Operation-Sensitive",
         f"expected {MARKS} at the end, as Action-Operation-Sensitive asks for, found none"),
        (f"{SAYS}\n‸<<一般操作>>", "Action-Operation",
         "expected no mark, as Action-Operation asks for none, found <<一般操作>>"),
        (f"{SAYS}\n‸<<end>>", "Action-Operation-Sensitive", f"expected {MARKS}, found '<<end>>'"),
        (f"{SAYS} ‸<<END>>", "Action-Operation-Sensitive",
         "expected the end of the line after the operation, found '<<END>>'"),
        (f"{SAYS}\n  ‸Done.", "Action-Operation", "expected a mark or the reply's end, found 'Done.'"),
        (f"{SAYS}\n<<END>>\n‸<<一般操作>>", "Action-Operation-Sensitive",
         "expected nothing after <<END>>, found <<一般操作>>"),
        (f"{SAYS}\n<<敏感操作>>\n‸<<一般操作>>", "Action-Operation-Sensitive",
         "expected <<END>> or the end, found <<一般操作>>"),
        ("Action: a\nGrounded Operation: TYPE(box=[[1,2,3,4]], text='‸__CogName_a__')", "Action-Operation",
         "expected a variable that is set by now, found __CogName_a__; set so far: none"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_reply_is_found_where_it_is(marked: str, answer_format: str, message: str) -> None:
    with pytest.raises(GrammarError) as error:
        parse_reply(marked.replace("‸", ""), answer_format)
    assert (error.value.position, error.value.message) == (marked.index("‸"), message)


@st.composite
def replies(draw: st.DrawFn) -> tuple[ScreenReply, str]:
    answer_format = draw(st.sampled_from(ANSWER_FORMATS))
    free = TEXT.map(str.strip).filter(lambda text: text and not reply_structure(text))
    operation = draw(operations())
    ended = draw(st.booleans())
    marked = answer_format.endswith("Sensitive")
    sensitive = draw(st.sampled_from([True, False, *([None] if ended else [])])) if marked else None
    return ScreenReply(
        draw(LINE.map(str.strip).filter(bool)),
        operation,
        str(operation),
        draw(free) if "Status" in answer_format else None,
        draw(free) if "Plan" in answer_format else None,
        sensitive,
        ended,
        draw(st.one_of(st.just(""), free)),
    ), answer_format


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(replies())
def test_a_reply_is_what_its_text_is_parsed_to(made: tuple[ScreenReply, str]) -> None:
    reply, answer_format = made
    assert parse_reply(render_reply(reply), answer_format) == reply


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(broken(replies().map(lambda made: render_reply(made[0]))), st.sampled_from(ANSWER_FORMATS))
def test_no_reply_does_anything_but_parse_or_fail_somewhere_in_it(text: str, answer_format: str) -> None:
    try:
        parse_reply(text, answer_format)
    except GrammarError as error:
        assert 0 <= error.position <= len(text)


# -- rows of CogAgent --


def lifted(row: dict[str, Any]) -> Conversation:
    return cogagent.lift(row, dict(cogagent.FORMAT.columns), {})


def test_the_sample_of_the_fine_tuning_guide_is_taken_as_it_stands() -> None:
    """Its label, a last CLICK and `<<END>>`, breaks no rule: no document says which operation ends a task."""
    with gzip.open(shared("golden", "cogagent.jsonl.gz"), "rt", encoding="utf-8") as file:
        row = json.loads(file.readline())["source"]
    conversation = lifted(row)
    assert [message.content for message in conversation.messages] == [m["content"] for m in row["messages"]]
    assert conversation.messages[0].media == [Media("image", row["messages"][0]["image"], pointer="/messages/0/image")]
    assert conversation.messages[1].media == []
    prompt = parse_prompt(conversation.messages[0].content)
    assert (prompt.platform, prompt.answer_format) == ("Mac", "Action-Operation-Sensitive")
    assert [step.operation.name for step in prompt.steps] == ["CLICK"] * 7 + ["TYPE", "CLICK"]
    assert prompt.steps[6].operation.arguments["element_info"] == "8.8.8.8"
    assert conversation.group == group_of(
        'Open the system settings through the launch pad, navigate to the "Network" section, and set the DNS manual IP '
        "address to 8.8.4.4.",
        "Mac",
    )


def test_every_source_of_the_goldens_is_lifted() -> None:
    with gzip.open(shared("golden", "cogagent.jsonl.gz"), "rt", encoding="utf-8") as file:
        for line in file:
            source = json.loads(line)["source"]
            assert len(lifted(source).messages) == len(source["messages"])


def test_every_image_stays_in_the_message_that_carries_it() -> None:
    conversation = lifted(
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "one", "image": "a.png"},
                {"role": "assistant", "content": "1"},
                {"role": "user", "content": "two", "image": "b.png"},
                {"role": "assistant", "content": "2"},
            ]
        }
    )
    assert [[media.uri for media in message.media] for message in conversation.messages] == [
        [],
        ["a.png"],
        [],
        ["b.png"],
        [],
    ]
    assert [media.pointer for media in conversation.media()] == ["/messages/1/image", "/messages/3/image"]
    assert conversation.group is None


def test_a_chat_that_happens_to_begin_with_task_is_a_chat() -> None:
    row = {"messages": [{"role": "user", "content": "Task: a haiku"}, {"role": "assistant", "content": "Wood, ajar."}]}
    assert [message.content for message in lifted(row).messages] == ["Task: a haiku", "Wood, ajar."]


# -- trajectories --


def trajectory(*operations: str, **more: Any) -> dict[str, Any]:
    steps = [{"image": f"{k}.png", "operation": text, "action": f"do {k}"} for k, text in enumerate(operations)]
    return {"task": "Buy a door", "platform": "WIN", "steps": steps} | more


def expanded(row: dict[str, Any]) -> list[Conversation]:
    return screen_history.lift(row, dict(screen_history.FORMAT.columns), {})


def test_a_trajectory_is_one_example_a_step_with_the_steps_before_it_as_history() -> None:
    row = trajectory(SEARCH, "KEY_PRESS(key='A')", "END()")
    row["steps"][0]["sensitive"] = False
    row["steps"][1]["sensitive"] = True
    asked = "(Platform: WIN)\n(Answer in Action-Operation-Sensitive format.)\n"
    found = [[message.content for message in conversation.messages] for conversation in expanded(row)]
    assert found == [
        [
            f"Task: Buy a door\nHistory steps: \n{asked}",
            f"Action: do 0\nGrounded Operation: {SEARCH}\n<<一般操作>>",
        ],
        [
            f"Task: Buy a door\nHistory steps: \n0. {SEARCH}\tdo 0\n{asked}",
            "Action: do 1\nGrounded Operation: KEY_PRESS(key='A')\n<<敏感操作>>",
        ],
        [
            f"Task: Buy a door\nHistory steps: \n0. {SEARCH}\tdo 0\n1. KEY_PRESS(key='A')\tdo 1\n{asked}",
            "Action: do 2\nGrounded Operation: END()\n<<END>>",
        ],
    ]


def test_every_step_has_its_own_screenshot_place_and_the_group_of_the_task() -> None:
    conversations = expanded(trajectory(SEARCH, SEARCH, SEARCH))
    for k, conversation in enumerate(conversations):
        assert [message.role for message in conversation.messages] == [Role.USER, Role.ASSISTANT]
        assert conversation.media() == [Media("image", f"{k}.png", pointer=f"/steps/{k}/image")]
        assert conversation.messages[0].media == conversation.media()
        assert conversation.places == [k, k]
        assert conversation.group == group_of("Buy a door", "WIN")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([{}, {}], "Action-Operation"),
        ([{"sensitive": False}, {}], "Action-Operation"),
        ([{"sensitive": False}, {"sensitive": True}], "Action-Operation-Sensitive"),
        ([{"status": "s"}, {"status": "s", "sensitive": True}], "Status-Action-Operation"),
        ([{"plan": "p"}, {"plan": "p"}], "Action-Operation"),
        (
            [{"status": "s", "plan": "p", "sensitive": False}] * 2,
            "Status-Plan-Action-Operation-Sensitive",
        ),
    ],
)
def test_without_an_answer_format_it_is_the_fullest_that_every_step_can_answer(
    parts: list[dict[str, Any]], expected: str
) -> None:
    row = trajectory(SEARCH, SEARCH)
    for step, more in zip(row["steps"], parts, strict=True):
        step |= more
    for conversation in expanded(row):
        prompt = parse_prompt(conversation.messages[0].content)
        assert prompt.answer_format == expected
        parse_reply(conversation.messages[1].content, expected)


def test_columns_may_have_other_names() -> None:
    row = trajectory(SEARCH, "CLICK()")
    row["trace"] = row.pop("steps")
    with pytest.raises(RowError) as error:
        screen_history.lift(row, {**screen_history.FORMAT.columns, "steps": "trace", "answer_format": None}, {})
    assert error.value.reject.pointer == "/trace/1/operation"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(operations(), LINE.map(str.strip).filter(bool)), min_size=1, max_size=4), TASKS)
def test_every_example_of_a_trajectory_is_a_row_of_cogagent(said: list[tuple[Operation, str]], task: str) -> None:
    """One format reads what the other writes: the same steps, in the same group."""
    steps = [said_ for said_ in said[:-1] if said_[0].name != "END"] + said[-1:]
    row = {
        "task": task,
        "platform": "Mac",
        "steps": [{"image": "x.png", "operation": str(operation), "action": action} for operation, action in steps],
    }
    for k, conversation in enumerate(expanded(row)):
        asked, answer = (message.content for message in conversation.messages)
        again = lifted(
            {
                "messages": [
                    {"role": "user", "content": asked, "image": "x.png"},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
        assert again.group == conversation.group
        assert [(step.operation, step.action) for step in parse_prompt(asked).steps] == steps[:k]


# -- data --

FORMATS = {"cogagent": cogagent.FORMAT, "screen_history": screen_history.FORMAT}


def outcome(name: str, row: Any) -> dict[str, Any] | None:
    """Why a row is rejected; None where it is compiled."""
    format_ = FORMATS[name]
    columns = dict(format_.columns)
    reject = Validator(format_, columns, {}, name).check(row)
    if reject is None:
        try:
            made = format_.lift(row, columns, {})
            for conversation in made if isinstance(made, list) else [made]:
                check_turns(conversation, "/messages" if format_.turns else None)
        except RowError as error:
            reject = error.reject
    return reject and {"reason": str(reject.reason), "pointer": reject.pointer, "message": reject.message}


def load(name: str, file: str) -> list[Any]:
    return [json.loads(line) for line in (DATA / name / file).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", FORMATS)
def test_good_rows_are_taken_and_bad_ones_rejected_with_the_message_that_helps(name: str) -> None:
    assert [outcome(name, row) for row in load(name, "rows.jsonl")] == [None] * len(load(name, "rows.jsonl"))
    for case in load(name, "bad.jsonl"):
        assert {"row": case["row"], **(outcome(name, case["row"]) or {})} == case
