"""agentnet: AgentNet's trajectories on desktops (OpenCUA), one example for each step in CogAgent's form.

The code of a step is parsed and never run: calls with plain values. The observation is the Status of a reply, and the
thought its Plan, where all steps have them. A step that was found to be wrong is part of the history and not trained.
"""

from __future__ import annotations

import ast
from typing import Any

import registry
from compiler.conversation import Conversation
from compiler.formats.format import Format
from compiler.formats.screens.recorded import Action, Recorded, lift_recorded
from compiler.options import Names
from schemas.errors import Reason, RowError

_PLATFORMS = {"win": "WIN", "windows": "WIN", "mac": "Mac", "macos": "Mac", "darwin": "Mac"}
_LONGEST = 20_000


def lift(row: dict[str, Any], columns: Names, tags: Names) -> list[Conversation | RowError]:
    """One conversation for each step, up to the first that CogAgent could not do."""
    platform = _platform(row.get(columns.get("platform") or ""), columns.get("platform"), tags.get("platform_tag"))
    column = str(columns["steps"])
    steps = [_step(step, f"/{column}/{k}") for k, step in enumerate(row[column])]
    task = str(columns["task"])
    return lift_recorded(steps, registry.action_space("agentnet"), row[task], platform, f"/{task}")


def _platform(given: Any, column: str | None, tag: str | None) -> str:
    asked = given or tag or ""
    if (platform := _PLATFORMS.get(str(asked).lower())) is None:
        what = (
            f"expected the platform, one that CogAgent knows (WIN, Mac), found {asked!r}"
            if asked
            else "expected the platform, found none"
        )
        raise RowError(
            Reason.SCREEN,
            f"{what}; --tags platform_tag=WIN gives it to rows without one",
            f"/{column}" if given else "",
        )
    return platform


def _step(step: dict[str, Any], at: str) -> Recorded:
    value = step["value"]
    texts = {"image": step["image"], "action": value["action"]}
    texts |= {key: text for key, name in (("status", "observation"), ("plan", "thought")) if (text := value.get(name))}
    return Recorded(
        parse_code(value["code"], f"{at}/value/code"),
        texts,
        {
            "step": at,
            "image": f"{at}/image",
            "operation": f"{at}/value/code",
            "action": f"{at}/value/action",
            "status": f"{at}/value/observation",
            "plan": f"{at}/value/thought",
        },
        trained=value.get("last_step_correct") is not False,
    )


def parse_code(code: str, pointer: str) -> list[Action]:
    """The calls that code consists of. It is parsed, and nothing of it is run."""
    if len(code) > _LONGEST:
        raise RowError(Reason.SCREEN, f"expected at most {_LONGEST:,} characters of code, found {len(code):,}", pointer)
    try:
        lines = ast.parse(code.strip()).body
        return [_action(line) for line in lines if not isinstance(line, ast.Import)]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        what = "expected calls as pyautogui.click(x=0.5, y=0.5), with plain values"
        raise RowError(Reason.SCREEN, f"{what}, found {code.strip()[:60]!r}", pointer) from error


def _action(line: ast.stmt) -> Action:
    if not isinstance(line, ast.Expr) or not isinstance(line.value, ast.Call):
        raise TypeError(line)
    call = line.value
    named = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}  # **more would be "None"
    return Action(ast.unparse(call.func), [ast.literal_eval(value) for value in call.args], named)


FORMAT = Format(
    name="agentnet",
    lift=lift,
    columns={"task": "instruction", "platform": "platform", "steps": "traj"},
    tags={"platform_tag": ""},
    ignorable=(
        "task_id", "task_completed", "alignment_score", "efficiency_score", "task_difficulty", "natural_language_task",
        "actual_task", "reason", "domain", "last_step_redundant", "reflection", "step_id", "marks",
    ),
)  # fmt: skip
