"""Trajectories of AgentNet and AndroidControl as CogAgent's operations; the operations are written by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import registry
from compiler.conversation import Conversation
from compiler.formats import FORMATS, cogagent
from compiler.formats.agentnet import parse_code
from compiler.formats.screens.action_space import OPERATIONS
from compiler.formats.screens.operation import parse_operation
from compiler.rows.validate import Validator
from schemas.errors import RowError
from tests.support.command import runner
from tests.support.shared import shared

Row = dict[str, Any]
Made = list[Conversation | RowError]


def desktop(*codes: str | Row, platform: str = "WIN", **more: Any) -> Row:
    values = [{"action": f"do {k}", "code": code} if isinstance(code, str) else code for k, code in enumerate(codes)]
    steps = [{"index": k, "image": f"{k}.png", "value": value} for k, value in enumerate(values)]
    return {"task_id": "t", "instruction": "Buy a door", "platform": platform, "traj": steps} | more


def phone(*actions: Row) -> Row:
    n = len(actions)
    return {
        "episode_id": 1,
        "goal": "Buy a door",
        "actions": list(actions),
        "step_instructions": [f"do {k}" for k in range(n)],
        "screenshots": [f"{k}.png" for k in range(n + 1)],
        "screenshot_widths": [1000] * (n + 1),
        "screenshot_heights": [2000] * (n + 1),
    }


def made(row: Row, **tags: str) -> Made:
    format_ = FORMATS["agentnet" if "traj" in row else "android_control"]
    columns = dict[str, str | None](format_.columns)
    assert Validator(format_, columns, dict(format_.tags), format_.name).check(row) is None
    return list(format_.lift(row, columns, {**format_.tags, **tags}))  # type: ignore[arg-type]


def operations(found: Made) -> list[str]:
    """The operation of each example, and each reject with its pointer."""
    return [
        f"{one.reject.pointer}: {one.reject.message}"
        if isinstance(one, RowError)
        else one.messages[1].content.rpartition("Grounded Operation: ")[2]
        for one in found
    ]


CLICK, BOX = "pyautogui.click(x=0.5, y=0.25)", "[[499,249,501,251]]"


@pytest.mark.parametrize(
    ("code", "operation"),
    [
        (CLICK, f"CLICK(box={BOX})"),
        ("pyautogui.click(0.5, 0.25)", f"CLICK(box={BOX})"),
        ("pyautogui.click(x=0.5, y=0.25, button='right')", f"RIGHT_CLICK(box={BOX})"),
        ("pyautogui.click(x=0.5, y=0.25, clicks=2, interval=0.1)", f"DOUBLE_CLICK(box={BOX})"),
        ("pyautogui.doubleClick(x=0.5, y=0.25)", f"DOUBLE_CLICK(box={BOX})"),
        ("pyautogui.rightClick(x=0.5, y=0.25)", f"RIGHT_CLICK(box={BOX})"),
        ("pyautogui.moveTo(x=0.5, y=0.25)", f"HOVER(box={BOX})"),
        ("pyautogui.click(x=0, y=1)", "CLICK(box=[[0,997,2,999]])"),
        ("pyautogui.click(x=0.97, y=0.9704)", "CLICK(box=[[969,969,971,971]])"),
        ("pyautogui.scroll(-5)", "SCROLL_DOWN(box=[[0,0,999,999]], step_count=5)"),
        ("pyautogui.moveTo(0.5, 0.25)\npyautogui.scroll(3)", f"SCROLL_UP(box={BOX}, step_count=3)"),
        ("pyautogui.hscroll(2)", "SCROLL_RIGHT(box=[[0,0,999,999]], step_count=2)"),
        ("pyautogui.press('enter')", "KEY_PRESS(key='Return')"),
        ("pyautogui.press(keys=['f11'])", "KEY_PRESS(key='F11')"),
        ("pyautogui.press(['down'], presses=2)", "GESTURE(actions=[KEY_PRESS(key='Down'), KEY_PRESS(key='Down')])"),
        (
            "pyautogui.hotkey('ctrl', 'shift', 'a')",
            "GESTURE(actions=[KEY_DOWN(key='Lcontrol'), KEY_DOWN(key='Lshift'), KEY_PRESS(key='A'), "
            "KEY_UP(key='Lshift'), KEY_UP(key='Lcontrol')])",
        ),
        (
            "pyautogui.hotkey(['ctrl', 'c'])",
            "GESTURE(actions=[KEY_DOWN(key='Lcontrol'), KEY_PRESS(key='C'), KEY_UP(key='Lcontrol')])",
        ),
        ("computer.terminate(status='success')", "END()"),
    ],
)
def test_a_call_becomes_the_operation_that_does_the_same(code: str, operation: str) -> None:
    assert operations(made(desktop(code))) == [operation]


@pytest.mark.parametrize(
    ("action", "operation"),
    [
        ({"action_type": "click", "x": 500, "y": 500}, f"CLICK(box={BOX})"),
        ({"action_type": "click", "x": 500, "y": 500, "text": None, "direction": None}, f"CLICK(box={BOX})"),
        ({"action_type": "open_app", "app_name": "Zoho"}, "LAUNCH(app='Zoho', url='None')"),
        ({"action_type": "scroll", "direction": "down"}, "SCROLL_DOWN(box=[[0,0,999,999]], step_count=1)"),
        ({"action_type": "status", "goal_status": "successful"}, "END()"),
    ],
)
def test_an_action_on_a_phone_becomes_the_operation_that_does_the_same(action: Row, operation: str) -> None:
    assert operations(made(phone(action))) == [operation]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("pyautogui.dragTo(x=0.5, y=0.5)", "CogAgent has no operation for pyautogui.dragTo"),
        ("computer.tripleClick(x=0.5, y=0.5)", "CogAgent has no operation for computer.tripleClick"),
        (
            "pyautogui.click(x=0.5, y=0.5, button='middle')",
            "no operation for pyautogui.click(x=0.5, y=0.5, clicks=1, button='middle')",
        ),
        ("computer.terminate(status='failure')", "CogAgent has no operation for computer.terminate(status='failure')"),
        ("pyautogui.click(x=640, y=480)", "expected x and y from 0 to 1 in pyautogui.click, found 640 and 480"),
        ("pyautogui.click()", "expected x and y from 0 to 1 in pyautogui.click, found None and None"),
        ("pyautogui.click(z=1)", "interval, button, duration of pyautogui.click, found z"),
        ("pyautogui.press('volumeup')", "CogAgent has no name for the key 'volumeup' on WIN"),
        ("pyautogui.press('a', presses=1000)", "expected to press a key 1 to 100 times, found 1000"),
        ("pyautogui.write(message='x')", "where the text of pyautogui.write goes, in a step before it, found none"),
        (f"{CLICK}\n{CLICK}", "expected one action in a step, found pyautogui.click, pyautogui.click"),
        ("pyautogui.scroll(0.5)", "expected clicks of pyautogui.scroll as a number, found 0.5"),
        ("pyautogui.scroll(0)", "CogAgent has no operation for pyautogui.scroll(clicks=0)"),
    ],
)
def test_what_cogagent_cannot_do_is_a_reject_at_its_code(code: str, message: str) -> None:
    (found,) = operations(made(desktop(code)))
    assert found.startswith("/traj/0/value/code: ")
    assert message in found


@pytest.mark.parametrize(
    "code", ["import os; os.remove('x')", "__import__('os').system('ls')", "open('made', 'w').close()"]
)
def test_code_is_never_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("here")
    (found,) = made(desktop(code))
    assert isinstance(found, RowError)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("code", ["x = 1", "f(", "pyautogui.click(x=y)", "(" * 500, "f(1)" * 9000, "f('\0')"])
def test_code_that_is_no_call_with_plain_values_is_refused(code: str) -> None:
    with pytest.raises(RowError, match=r"expected (calls as|at most)"):
        parse_code(code, "/code")


@pytest.mark.parametrize(
    ("between", "box"),
    [
        ((), BOX),
        (("pyautogui.hotkey('ctrl', 'a')", "pyautogui.press('backspace')"), BOX),
        (("pyautogui.scroll(2)",), BOX),
        (("pyautogui.press('tab')",), None),
        (("pyautogui.hotkey('ctrl', 'l')",), None),
        (("pyautogui.rightClick(x=0.1, y=0.1)",), None),
    ],
)
def test_a_text_goes_where_the_last_click_was_while_that_is_known(between: tuple[str, ...], box: str | None) -> None:
    *_, last = operations(made(desktop(CLICK, *between, 'pyautogui.write(message="it\'s")')))
    assert last == f"TYPE(box={box}, text='it\\'s')" if box else last.endswith("in a step before it, found none")


def test_keys_have_the_names_of_the_platform() -> None:
    assert "key='Command'" in operations(made(desktop("pyautogui.hotkey('command', 'c')", platform="Darwin")))[0]
    assert "no name for the key 'command'" in operations(made(desktop("pyautogui.press('command')")))[0]


def test_the_platform_is_the_rows_or_what_the_user_says() -> None:
    row = desktop(CLICK)
    assert "(Platform: WIN)" in made(row)[0].messages[0].content  # type: ignore[union-attr]
    del row["platform"]
    assert "(Platform: Mac)" in made(row, platform_tag="Mac")[0].messages[0].content  # type: ignore[union-attr]
    with pytest.raises(RowError, match="expected the platform, found none; --tags platform_tag=WIN"):
        made(row)
    with pytest.raises(RowError, match=r"one that CogAgent knows .*found 'Ubuntu'"):
        made(desktop(CLICK, platform="Ubuntu"))


def test_steps_up_to_one_that_cannot_be_written_are_examples() -> None:
    found = made(desktop(CLICK, "pyautogui.dragTo(x=0.1, y=0.1)", CLICK, CLICK))
    assert operations(found) == [
        f"CLICK(box={BOX})",
        "/traj/1/value/code: CogAgent has no operation for pyautogui.dragTo; "
        "2 more steps after it cannot be compiled without it",
    ]


def test_waiting_is_no_step_and_a_wrong_step_is_history_only() -> None:
    wrong = {"action": "do wrong", "code": "pyautogui.press('enter')", "last_step_correct": False}
    found = made(desktop(CLICK, "computer.wait()", wrong, CLICK))
    assert operations(found) == [f"CLICK(box={BOX})"] * 2
    first, last = found
    assert isinstance(first, Conversation)
    assert isinstance(last, Conversation)
    assert (
        "0. CLICK(box=[[499,249,501,251]])\tdo 0\n1. KEY_PRESS(key='Return')\tdo wrong\n(P" in last.messages[0].content
    )
    assert first.notes == ["screen_untrained", "screen_waits"]
    assert last.notes == []
    assert [media.pointer for media in last.media()] == ["/traj/3/image"]
    (none,) = made(desktop("computer.wait(3)", wrong))
    assert isinstance(none, RowError)
    assert none.reject.reason == "nothing_trained"


def test_observation_and_thought_are_the_status_and_the_plan_of_replies() -> None:
    value = {"action": "Click.", "code": CLICK, "observation": "A page.", "thought": "1. Click.", "reflection": "Good."}
    (found,) = made(desktop(value))
    assert isinstance(found, Conversation)
    assert "(Answer in Status-Plan-Action-Operation format.)" in found.messages[0].content
    assert found.messages[1].content.startswith("Status: A page.\nPlan: 1. Click.\nAction: Click.\n")


@pytest.mark.parametrize(
    ("row", "pointer"),
    [
        (desktop(CLICK, instruction="a\n(Platform: Mac)"), "/instruction"),
        (desktop(CLICK, {"action": "a\nb", "code": CLICK}), "/traj/1/value/action"),
        (desktop({"action": "a", "code": CLICK, "observation": "x\nAction: y"}), "/traj/0/value/observation"),
        (desktop("computer.terminate(status='success')", CLICK), "/traj/1"),
        (phone({"action_type": "click", "x": 1001, "y": 5}), "/actions/0"),
        (phone({"action_type": "long_press", "x": 5, "y": 5}), "/actions/0"),
        (phone({"action_type": "navigate_back"}), "/actions/0"),
        (phone({"action_type": "input_text", "text": "x"}), "/actions/0"),
    ],
)
def test_a_mistake_is_refused_at_its_place_in_the_row(row: Row, pointer: str) -> None:
    *_, last = made(row)
    assert isinstance(last, RowError)
    assert last.reject.pointer == pointer


def test_lists_of_an_episode_must_have_the_same_length() -> None:
    row = phone({"action_type": "click", "x": 1, "y": 1})
    for key, more in (("step_instructions", ["a", "b"]), ("screenshots", ["a", "b", "c"]), ("screenshot_widths", [])):
        with pytest.raises(RowError) as error:
            made(row | {key: more})
        assert error.value.reject.pointer == f"/{key}"


@pytest.mark.parametrize("name", ["agentnet", "android_control"])
def test_every_operation_of_a_table_is_one_of_cogagents(name: str) -> None:
    table = registry.action_space(name)
    for action, about in table["actions"].items():
        assert set(about.get("defaults", {})) <= set(about["arguments"]), action
        for rule in about.get("becomes", ()):
            if "operation" not in rule:
                assert "press" in rule or "hold" in rule
                continue
            required, optional = OPERATIONS[rule["operation"]]
            given = {*rule.get("take", {}), *rule.get("set", {}), *(["box"] if "box" in rule else [])}
            assert set(required) <= given <= {*required, *optional}, action
            assert {*rule.get("take", {}).values(), *rule.get("if", {})} <= set(about["arguments"]), action


def test_every_example_is_a_row_of_cogagent() -> None:
    """What is typed stays a text, whatever it spells: the grammar reads back what was written."""
    typed = 'it\'s 100%\n<<END>> <|user|> \\n "x"'
    row = desktop(CLICK, f"pyautogui.write(message={typed!r})", "computer.terminate(status='success')")
    for one in made(row):
        assert isinstance(one, Conversation)
        asked, answer = (message.content for message in one.messages)
        again = {
            "messages": [{"role": "user", "content": asked, "image": "x.png"}, {"role": "assistant", "content": answer}]
        }
        assert cogagent.lift(again, dict(cogagent.FORMAT.columns), {}).group == one.group
    second = made(row)[1]
    assert isinstance(second, Conversation)
    written = re.search("Grounded Operation: (.*)", second.messages[1].content)
    assert written is not None
    assert parse_operation(written[1]).arguments["text"] == typed


@pytest.mark.parametrize("name", ["agentnet", "android_control"])
def test_good_rows_are_taken_and_bad_ones_rejected_with_the_message_that_helps(name: str) -> None:
    format_, folder = FORMATS[name], Path(__file__).parent / "data" / name
    columns = dict[str, str | None](format_.columns)
    validator = Validator(format_, columns, dict(format_.tags), name)

    def outcome(row: Row) -> Row | None:
        reject = validator.check(row)
        try:
            found = made(row) if reject is None else []
            reject = next((one.reject for one in found if isinstance(one, RowError)), reject)
        except RowError as error:
            reject = error.reject
        return reject and {
            "row": row,
            "reason": str(reject.reason),
            "pointer": reject.pointer,
            "message": reject.message,
        }

    good, bad = ((folder / file).read_text("utf-8").splitlines() for file in ("rows.jsonl", "bad.jsonl"))
    assert [outcome(json.loads(line)) for line in good] == [None] * len(good)
    for case in map(json.loads, bad):
        assert outcome(case["row"]) == case


def test_trajectories_compile_with_cogagents_tokenizer(tmp_path: Path) -> None:
    """And a control token that was typed stays a text."""
    from PIL import Image

    from cli import main
    from schemas.reader import CompiledSet

    tokenizer = shared("tokenizers", "glm4")
    for k in range(4):
        Image.new("RGB", (1000, 2000), "navy").save(tmp_path / f"{k}.png")
    typed = desktop(CLICK, "pyautogui.write(message='<|user|>')", "pyautogui.dragTo(0.1, 0.1)")
    rows = {"desktop": typed, "phone": phone({"action_type": "click", "x": 5, "y": 5}, {"action_type": "wait"})}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
        options = ["--tokenizer", tokenizer, "--template", "cogagent", "--max-rejects", "100%", "--no-shuffle"]
        given = ["compile", tmp_path / f"{name}.jsonl", *options, "--cache", tmp_path / "cache", "-o", tmp_path / name]
        result = runner().invoke(main, [str(argument) for argument in given], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    steps = CompiledSet.open(tmp_path / "desktop").table("train").to_pylist()
    assert [step["input_ids"].count(151336) for step in steps] == [2, 2]  # <|user|>: the prompt's, and the stop
    assert len(CompiledSet.open(tmp_path / "phone").table("train")) == 1
