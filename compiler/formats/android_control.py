"""android_control: AndroidControl's episodes on phones, one example for each step in CogAgent's form."""

from __future__ import annotations

from typing import Any

import registry
from compiler.conversation import Conversation
from compiler.formats.common import read_columns
from compiler.formats.format import Format
from compiler.formats.screens.recorded import Action, Recorded, lift_recorded
from compiler.options import Names
from schemas.errors import Reason, RowError


def lift(row: dict[str, Any], columns: Names, tags: Names) -> list[Conversation | RowError]:  # noqa: ARG001
    """One conversation for each step, up to the first that CogAgent could not do.

    An episode may have one screenshot more than actions, of the screen after the last of them; it is not needed.
    """
    found, actions = read_columns(row, columns), row[str(columns["actions"])]
    for name in ("steps", "texts", "widths", "heights"):
        if len(found[name]) not in (len(actions), len(actions) + (name != "texts")):
            what = f"expected as many as there are actions, found {len(found[name])} and {len(actions)}"
            raise RowError(Reason.SCREEN, what, f"/{columns[name]}")
    steps = [
        Recorded(
            [
                Action(
                    action["action_type"],
                    named={key: value for key, value in action.items() if key != "action_type" and value is not None},
                )
            ],
            {"image": found["steps"][k], "action": found["texts"][k]},
            {
                "step": f"/{columns['actions']}/{k}",
                "image": f"/{columns['steps']}/{k}",
                "operation": f"/{columns['actions']}/{k}",
                "action": f"/{columns['texts']}/{k}",
            },
            (found["widths"][k], found["heights"][k]),
        )
        for k, action in enumerate(actions)
    ]
    table, task = registry.action_space("android_control"), columns["task"]
    return lift_recorded(steps, table, found["task"], "Mobile", f"/{task}")


FORMAT = Format(
    name="android_control",
    lift=lift,
    columns={
        "task": "goal",
        "actions": "actions",
        "texts": "step_instructions",
        "steps": "screenshots",
        "widths": "screenshot_widths",
        "heights": "screenshot_heights",
    },
    ignorable=("episode_id", "accessibility_trees"),
)
