"""CogAgent's prompt: a task, a platform, the answer format and the history of steps, parsed and written.

Two orders exist. The fine-tuning samples have task, platform, answer format, history; everything that builds a prompt
for inference (README, app/client.py, inference/cli_demo.py) has task, history, platform, answer format. Both are read.
All parts are required, "History steps:" even before the first step. Steps are numbered from 0 and written
`0. OPERATION<tab>what was done`. A task that continues an earlier one may end in `[Continue]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson
import xxhash

from compiler.formats.screens.action_space import Operation
from compiler.formats.screens.located import GrammarError, found
from compiler.formats.screens.operation import read_operation
from schemas.errors import nearest

PLATFORMS = ("WIN", "Mac", "Mobile")
ANSWER_FORMATS = (
    "Action-Operation",
    "Action-Operation-Sensitive",
    "Status-Action-Operation",
    "Status-Action-Operation-Sensitive",
    "Status-Plan-Action-Operation",
    "Status-Plan-Action-Operation-Sensitive",
)
"""README documents all but the last; app/client.py asks for that one."""

_CONTINUE = "[Continue]"
_LOOKS_LIKE_ONE = re.compile(r"\s*(?:<image>\s*)?Task *:")
_PART = re.compile(r"^(?:\(Platform:|\(Answer in |History steps:)", re.MULTILINE)
_ORDERS = (("(Platform:", "(Answer in ", "History steps:"), ("History steps:", "(Platform:", "(Answer in "))
_EXPECTED = {
    "(Platform:": "'(Platform: ...)'",
    "(Answer in ": "'(Answer in ... format.)'",
    "History steps:": "'History steps:', even where there are none yet",
}
_PLATFORM = re.compile(r"\(Platform: *([^)\n]*)\)")
_ANSWER = re.compile(r"\(Answer in ([^)\n]*?) format\.\)")
_INDEX = re.compile(r"([0-9]+)\. ?")


@dataclass(frozen=True)
class ScreenStep:
    """One step of the history: the operation, its text as written, and the action in words."""

    operation: Operation
    written: str
    action: str


@dataclass(frozen=True)
class ScreenPrompt:
    """A prompt for the agent. `continued` is whether the task ends in `[Continue]`."""

    task: str
    platform: str
    answer_format: str
    steps: tuple[ScreenStep, ...] = ()
    continued: bool = False

    @property
    def variables(self) -> frozenset[str]:
        """The variables that the steps so far have set."""
        return frozenset(step.operation.output for step in self.steps if step.operation.output)


def looks_like_prompt(text: str) -> bool:
    """Whether a text is meant as a prompt of this grammar: it begins with `Task:`.

    White space or an `<image>` mark before that is a mistake in a prompt, not a reason to take it for something else.
    """
    return _LOOKS_LIKE_ONE.match(text) is not None


def structure(text: str) -> re.Match[str] | None:
    """The first line of a text that the prompt's grammar would read as a part; None where there is none."""
    return _PART.search(text)


def group_of(task: str, platform: str) -> bytes:
    """16 bytes that are equal for all steps of a task on a platform, so that a split can keep them together."""
    return xxhash.xxh3_128_digest(orjson.dumps([task.strip().removesuffix(_CONTINUE).strip(), platform]))


def render_prompt(prompt: ScreenPrompt) -> str:
    """The text of a prompt, in the order used at inference.

    README calls that order strict, and app/client.py and inference/cli_demo.py build it; the order of the fine-tuning
    samples never occurs at inference. The space after "History steps:" and the line break after the answer format are
    as in README and client.py.
    """
    task = f"Task: {prompt.task}" + (f"{_CONTINUE}\n" if prompt.continued else "")
    steps = "".join(f"\n{i}. {step.written}\t{step.action}" for i, step in enumerate(prompt.steps))
    asked = f"(Platform: {prompt.platform})\n(Answer in {prompt.answer_format} format.)\n"
    return f"{task}\nHistory steps: {steps}\n{asked}"


def parse_prompt(text: str) -> ScreenPrompt:
    """The prompt that a text is; GrammarError with the character where it breaks the grammar."""
    if not text.startswith("Task:"):
        raise GrammarError(0, f"expected a prompt to begin with 'Task:', found {found(text, 0)}")
    starts = [(match.group(), match.start()) for match in _PART.finditer(text)]
    _check_order(text, starts)
    ends = [*(start for _, start in starts[1:]), len(text)]
    parts = {name: (start, end) for (name, start), end in zip(starts, ends, strict=True)}
    task = text[len("Task:") : starts[0][1]].strip()
    continued = task.endswith(_CONTINUE)
    task = task.removesuffix(_CONTINUE).strip()
    if not task:
        raise GrammarError(len("Task:"), "expected a task after 'Task:', found none")
    return ScreenPrompt(
        task,
        _one_of(text, *parts["(Platform:"], _PLATFORM, "a platform as '(Platform: Mac)'", PLATFORMS),
        _one_of(
            text, *parts["(Answer in "], _ANSWER, "a format as '(Answer in Action-Operation format.)'", ANSWER_FORMATS
        ),
        _steps(text, *parts["History steps:"]),
        continued,
    )


def _check_order(text: str, starts: list[tuple[str, int]]) -> None:
    """Raise unless every part is there once, in one of the two orders."""
    expected = next((order for order in _ORDERS if starts and starts[0][0] == order[0]), _ORDERS[1])
    for i in range(max(len(expected), len(starts))):
        name, at = starts[i] if i < len(starts) else ("", len(text))
        if i >= len(expected):
            raise GrammarError(at, f"expected the end of the prompt, found {name.rstrip()!r} again")
        if name != expected[i]:
            either = f"{_EXPECTED['(Platform:']} or " if i == 0 else ""
            shown = repr(name.rstrip()) if name else found(text, at)
            raise GrammarError(at, f"expected {either}{_EXPECTED[expected[i]]}; found {shown}")


def _one_of(text: str, start: int, end: int, pattern: re.Pattern[str], what: str, known: tuple[str, ...]) -> str:
    """The name in a bracketed line, which must be a known one and stand alone."""
    match = pattern.match(text, start, end)
    if match is None:
        line = text[start:end].split("\n")[0]
        raise GrammarError(start, f"expected {what}, found {line[:60]!r}")
    if match[1] not in known:
        raise GrammarError(match.start(1), f"expected {what}, found {match[1][:60]!r}; {nearest(match[1], known)}")
    _nothing_more(text, match.end(), end)
    return match[1]


def _nothing_more(text: str, at: int, end: int) -> None:
    rest = re.compile(r"\s*").match(text, at, end)
    assert rest is not None
    if rest.end() < end:
        raise GrammarError(rest.end(), f"expected nothing more here, found {found(text, rest.end(), end)}")


def _steps(text: str, start: int, end: int) -> tuple[ScreenStep, ...]:
    """The steps of the history, one a line, in the part that begins at "History steps:"."""
    steps: list[ScreenStep] = []
    variables: set[str] = set()
    at = start + len("History steps:")
    line_end = _line_end(text, at, end)
    if text[at:line_end].strip():
        raise GrammarError(at, f"expected the first step on a line of its own, found {text[at:line_end][:24]!r}")
    while (at := line_end + 1) < end:
        line_end = _line_end(text, at, end)
        if not text[at:line_end].strip():
            continue
        if steps and steps[-1].operation.name == "END":
            raise GrammarError(at, f"expected no step after END, found {text[at:line_end][:24]!r}")
        index = _INDEX.match(text, at, line_end)
        if index is None or index[1] != str(len(steps)):
            raise GrammarError(at, f"expected step {len(steps)} as '{len(steps)}. ', found {text[at:line_end][:24]!r}")
        operation, after = read_operation(text, index.end(), line_end, variables)
        if text[after : after + 1] != "\t":
            what = "expected a tab and the action in words after the operation"
            raise GrammarError(after, f"{what}, found {found(text, after, line_end)}")
        steps.append(ScreenStep(operation, text[index.end() : after].strip(" "), text[after + 1 : line_end]))
        if operation.output:
            variables.add(operation.output)
    return tuple(steps)


def _line_end(text: str, at: int, end: int) -> int:
    found_at = text.find("\n", at, end)
    return end if found_at < 0 else found_at
