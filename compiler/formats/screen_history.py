"""screen_history: a row is a whole trajectory on a screen, and each step becomes one example.

The prompt of step k has its screenshot and the steps before it as history, in the form that CogAgent sees at inference;
the reply has the parts that the answer format asks for. All examples of a trajectory, and of other rows with its task
and platform, stay on one side of the validation split.

If the row names no answer format, it is the fullest one that every step can answer: Status if all steps have `status`,
Plan if they have `plan` too, Sensitive if all have `sensitive` (END needs none: its reply ends in `<<END>>`). Parts
that a named answer format does not ask for are left out, and so is white space around a text.
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import read_columns
from compiler.formats.format import Format
from compiler.formats.marks import image
from compiler.formats.screens import prompt as prompts
from compiler.formats.screens import reply as replies
from compiler.formats.screens.located import GrammarError
from compiler.formats.screens.operation import parse_operation
from compiler.formats.screens.prompt import ScreenPrompt, ScreenStep, group_of, render_prompt
from compiler.formats.screens.reply import ScreenReply, render_reply
from compiler.options import Names
from schemas.errors import Reason, RowError


def lift(
    row: dict[str, Any],
    columns: Names,
    tags: Names,  # noqa: ARG001
) -> list[Conversation]:
    """One conversation for each step; its `places` point to the step."""
    found = read_columns(row, columns)
    task, platform = found["task"].strip(), found["platform"]
    if not task or prompts.structure(task):
        what = "found a line that the prompt would read as another part" if task else "found none"
        raise RowError(Reason.SCREEN, f"expected the text of a task, {what}", f"/{columns['task']}")
    sources = found["steps"]
    steps = _steps(sources, f"/{columns['steps']}")
    answer_format = found.get("answer_format") or _fullest_format(sources, steps)
    group = group_of(task, platform)
    conversations = []
    for k, (source, step) in enumerate(zip(sources, steps, strict=True)):
        pointer = f"/{columns['steps']}/{k}"
        asked = render_prompt(ScreenPrompt(task, platform, answer_format, tuple(steps[:k])))
        screenshot = image(source["image"], f"{pointer}/image")
        answer = render_reply(_reply(source, step, answer_format, pointer))
        messages = [Message(Role.USER, asked, media=[screenshot]), Message(Role.ASSISTANT, answer)]
        conversations.append(Conversation(messages, places=[k, k], group=group))
    return conversations


def _steps(sources: list[dict[str, Any]], pointer: str) -> list[ScreenStep]:
    """The steps, each parsed with the variables that earlier steps have set."""
    steps: list[ScreenStep] = []
    variables: set[str] = set()
    for k, source in enumerate(sources):
        if steps and steps[-1].operation.name == "END":
            raise RowError(Reason.SCREEN, "expected END in the last step, found a step after it", f"{pointer}/{k}")
        written, action = source["operation"].strip(), source["action"].strip()
        try:
            operation = parse_operation(written, variables)
        except GrammarError as error:
            raise error.in_row(written, f"{pointer}/{k}/operation") from error
        if not action or "\n" in action:
            what = "found more than one" if action else "found none"
            raise RowError(Reason.SCREEN, f"expected the action as one line of text, {what}", f"{pointer}/{k}/action")
        steps.append(ScreenStep(operation, written, action))
        if operation.output:
            variables.add(operation.output)
    return steps


def _fullest_format(sources: list[dict[str, Any]], steps: list[ScreenStep]) -> str:
    """The answer format with every part that all the steps have."""

    def all_have(key: str) -> bool:
        return all(source.get(key) is not None for source in sources)

    parts = ["Status"] * all_have("status") + ["Plan"] * (all_have("status") and all_have("plan"))
    rated = [source.get("sensitive") is not None for source in sources]
    sensitive = any(rated) and all(has or step.operation.name == "END" for has, step in zip(rated, steps, strict=True))
    return "-".join([*parts, "Action-Operation"] + ["Sensitive"] * sensitive)


def _reply(source: dict[str, Any], step: ScreenStep, answer_format: str, pointer: str) -> ScreenReply:
    """The reply of a step, with the parts that the answer format asks for."""

    def text(key: str) -> str | None:
        if key.capitalize() not in answer_format.split("-"):
            return None
        said = (source.get(key) or "").strip()
        if not said or replies.structure(said):
            what = "found a line that the reply would read as another part" if said else "found none"
            where = f"{pointer}/{key}" if key in source else pointer
            raise RowError(Reason.SCREEN, f"expected the text of {key!r} for {answer_format}, {what}", where)
        return said

    marked, ends = answer_format.endswith("Sensitive"), step.operation.name == "END"
    if marked and not ends and source.get("sensitive") is None:
        raise RowError(Reason.SCREEN, f"expected 'sensitive' (true or false) for {answer_format}, found none", pointer)
    return ScreenReply(
        step.action,
        step.operation,
        step.written,
        text("status"),
        text("plan"),
        source["sensitive"] if marked and not ends else None,
        marked and ends,
    )


FORMAT = Format(
    name="screen_history",
    lift=lift,
    columns={"task": "task", "platform": "platform", "answer_format": "answer_format", "steps": "steps"},
)
