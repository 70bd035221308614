"""Recorded trajectories of other agents, as CogAgent sees them: the actions by a table of their action space.

An action becomes the operation that the table (`registry/action_spaces/`) gives for it. Where it gives none, the step
is a reject, and so are those after it: their history could not be written. A step that only waits is left out.

A point becomes the smallest box around it, one thousandth to each side, since CogAgent acts at the center of a box. A
text goes where the last click was, or the last text: the actions of other agents do not say where.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.conversation import Conversation
from compiler.formats import screen_history
from compiler.formats.screens.action_space import Box, Operation
from schemas.errors import Reason, RowError

_SCREEN: Box = (0, 0, 999, 999)
_MOST_PRESSES = 100
_PLAIN_KEY = re.compile(r"[a-z0-9]|f([1-9]|1\d|2[0-4])", re.IGNORECASE)
_POINTERS = re.compile(r"/(task|steps/(\d+)(?:/(\w+))?)$")


@dataclass(frozen=True)
class Action:
    """One action: its name, and its arguments in order and by name."""

    name: str
    given: Sequence[Any] = ()
    named: dict[str, Any] = field(default_factory=dict)


@dataclass
class Recorded:
    """One step as it was recorded. `texts` are keys of a step of screen_history; `pointers` lead to each in the row."""

    actions: list[Action]
    texts: dict[str, Any]
    pointers: dict[str, str]
    size: tuple[float, float] | None = None
    """The width and height of the screenshot, where points are in pixels."""
    trained: bool = True


class Translator:
    """Turns the actions of one trajectory into operations."""

    def __init__(self, table: dict[str, Any], platform: str) -> None:
        self.table, self.platform = table, platform
        self._focus: Box | None = None
        """Where a text would go."""

    def operation(self, step: Recorded) -> Operation | None:
        """The operation of a step; None where it does nothing on the screen."""
        pointer = step.pointers["operation"]
        actions = [(action, self._described(action, pointer)) for action in step.actions]
        acting = [(action, about) for action, about in actions if not about.get("left_out")]
        moved: dict[str, Any] = {}
        if len(acting) == 2 and acting[0][1].get("moves"):
            moved = self._bound(*acting.pop(0), pointer)
        if len(acting) > 1:
            what = f"expected one action in a step, found {', '.join(action.name for action, _ in acting)}"
            raise RowError(Reason.SCREEN, what, pointer)
        for action, about in acting:
            arguments = {"x": moved.get("x"), "y": moved.get("y")} | self._bound(action, about, pointer)
            found = self._made(action, about, arguments, step, pointer)
            self._focus = self._focus_after(found, arguments)
            return found
        return None

    def _described(self, action: Action, pointer: str) -> dict[str, Any]:
        about: dict[str, Any] | None = self.table["actions"].get(action.name)
        if about is None:
            raise RowError(Reason.SCREEN, f"CogAgent has no operation for {action.name}", pointer)
        return about

    def _bound(self, action: Action, about: dict[str, Any], pointer: str) -> dict[str, Any]:
        """The arguments by name, with defaults."""
        unused = about.get("unused", ())
        if (rest := about.get("rest")) and set(action.named) <= set(unused):
            keys = action.given[0] if len(action.given) == 1 and isinstance(action.given[0], list) else action.given
            return {rest: list(keys)}
        names, found = about["arguments"], about.get("defaults", {}) | action.named
        by_order = dict(zip(names, action.given, strict=False))
        wrong = [name for name in found if name not in names] + [name for name in by_order if name in action.named]
        if wrong or len(action.given) > len(names):
            what = f"expected the arguments {', '.join(names) or 'none'} of {action.name}"
            raise RowError(Reason.SCREEN, f"{what}, found {wrong[0] if wrong else len(action.given)}", pointer)
        return {name: value for name, value in (found | by_order).items() if name not in unused and value is not None}

    def _made(
        self, action: Action, about: dict[str, Any], arguments: dict[str, Any], step: Recorded, pointer: str
    ) -> Operation:
        rule = next((one for one in about["becomes"] if _applies(one.get("if", {}), arguments)), None)
        if rule is None:
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if value is not None)
            raise RowError(Reason.SCREEN, f"CogAgent has no operation for {action.name}({given})", pointer)
        if key := rule.get("press") or rule.get("hold"):
            return self._pressed(
                _listed(arguments.get(key)) * self._times(rule, arguments, pointer), "hold" in rule, pointer
            )
        taken: dict[str, Any] = {}
        if "box" in rule:
            taken["box"] = self._box(rule["box"], action, arguments, step, pointer)
        for name, source in rule.get("take", {}).items():
            value = arguments.get(source)
            if not isinstance(value, int if name == "step_count" else str) or value in ("", 0):
                what = f"expected {source} of {action.name} as a {'number' if name == 'step_count' else 'text'}"
                raise RowError(Reason.SCREEN, f"{what}, found {value!r}", pointer)
            taken[name] = abs(value) if isinstance(value, int) else value
        return Operation(rule["operation"], taken | rule.get("set", {}))

    def _box(self, kind: str, action: Action, arguments: dict[str, Any], step: Recorded, pointer: str) -> Box:
        if kind == "focus":
            if self._focus is None:
                what = (
                    f"expected a click that says where the text of {action.name} goes, in a step before it, found none"
                )
                raise RowError(Reason.SCREEN, what, pointer)
            return self._focus
        x, y = arguments.get("x"), arguments.get("y")
        if kind == "screen" and x is None and y is None:
            return _SCREEN
        width, height = (1, 1) if self.table["points"] == "shares" else step.size or (0, 0)
        for value, side in ((x, width), (y, height)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= side or not side:
                where = (
                    "x and y from 0 to 1" if self.table["points"] == "shares" else f"x and y within {width}x{height}"
                )
                raise RowError(Reason.SCREEN, f"expected {where} in {action.name}, found {x!r} and {y!r}", pointer)
        assert x is not None
        assert y is not None
        across, down = (min(max(round(1000 * value / side), 1), 998) for value, side in ((x, width), (y, height)))
        return across - 1, down - 1, across + 1, down + 1

    def _times(self, rule: dict[str, Any], arguments: dict[str, Any], pointer: str) -> int:
        times = arguments[rule["times"]] if "times" in rule else 1
        if not isinstance(times, int) or not 0 < times <= _MOST_PRESSES:
            raise RowError(
                Reason.SCREEN, f"expected to press a key 1 to {_MOST_PRESSES} times, found {times!r}", pointer
            )
        return times

    def _pressed(self, keys: list[Any], hold: bool, pointer: str) -> Operation:
        """One key, several after another, or several at once."""
        names = [self._key(key, pointer) for key in keys]
        if not names:
            raise RowError(Reason.SCREEN, "expected at least one key, found none", pointer)
        if len(names) == 1:
            return Operation("KEY_PRESS", {"key": names[0]})
        if not hold:
            return Operation("GESTURE", {"actions": [Operation("KEY_PRESS", {"key": name}) for name in names]})
        *held, last = names
        down = [Operation("KEY_DOWN", {"key": name}) for name in held]
        up = [Operation("KEY_UP", {"key": name}) for name in reversed(held)]
        return Operation("GESTURE", {"actions": [*down, Operation("KEY_PRESS", {"key": last}), *up]})

    def _key(self, key: Any, pointer: str) -> str:
        known: dict[str, str] = self.table.get("keys", {}).get(self.platform, {})
        if isinstance(key, str):
            if (name := known.get(key.lower())) is not None:
                return name
            if _PLAIN_KEY.fullmatch(key):
                return key.upper()
        raise RowError(Reason.SCREEN, f"CogAgent has no name for the key {key!r} on {self.platform}", pointer)

    def _focus_after(self, operation: Operation, arguments: dict[str, Any]) -> Box | None:
        """Where a text would go after an operation; None where that is not known."""
        box = operation.arguments.get("box")
        if operation.name in ("CLICK", "DOUBLE_CLICK", "TYPE") and isinstance(box, tuple):
            return box
        if operation.name in ("KEY_PRESS", "GESTURE"):
            keys = [str(key).lower() for key in _listed(arguments.get("keys"))]
            editing = self.table.get("editing_keys", ())
            keeps = all(key in editing for key in keys) or keys in self.table.get("editing_combinations", ())
            return self._focus if keeps else None
        return self._focus if operation.name in ("SCROLL_UP", "SCROLL_DOWN", "SCROLL_LEFT", "SCROLL_RIGHT") else None


def lift_recorded(
    steps: list[Recorded], table: dict[str, Any], task: str, platform: str, at: str
) -> list[Conversation | RowError]:
    """A conversation for each step, as screen_history makes them; `at` points to the task in the row."""
    translator = Translator(table, platform)
    notes, used, written = set[str](), list[Recorded](), list[dict[str, Any]]()
    failed: RowError | None = None
    for k, step in enumerate(steps):
        try:
            operation = translator.operation(step)
        except RowError as error:
            reject, after = error.reject, len(steps) - k - 1
            more = (
                f"; {after} more step{'s' if after > 1 else ''} after it cannot be compiled without it" if after else ""
            )
            failed = RowError(reject.reason, reject.message + more, reject.pointer)
            break
        if operation is None:
            notes.add("screen_waits")
            continue
        used.append(step)
        written.append({**step.texts, "operation": str(operation)})
    made: list[Conversation | RowError] = []
    if written:
        try:
            made += _lifted({"task": task, "platform": platform, "steps": written}, used, at)
        except RowError as error:
            return [error]
    trained = [one for one, step in zip(made, used, strict=True) if step.trained]
    if len(trained) < len(made):
        notes.add("screen_untrained")
    if trained and isinstance(trained[0], Conversation):
        trained[0].notes = sorted(notes)  # counted once for the row
    if failed is not None:
        return [*trained, failed]
    if not trained:
        what = "expected a step that does something and was right, found none"
        return [RowError(Reason.NOTHING_TRAINED, what, at)]
    return trained


def _lifted(row: dict[str, Any], used: list[Recorded], at: str) -> list[Conversation]:
    """The conversations of a row of screen_history; what is refused is refused at its place in the row as recorded."""

    def moved(pointer: str) -> str:
        match = _POINTERS.fullmatch(pointer)
        if match is None or match[2] is None:
            return at
        pointers = used[int(match[2])].pointers
        return pointers.get(match[3] or "", pointers["step"])

    try:
        found = screen_history.lift(row, dict(screen_history.FORMAT.columns), {})
    except RowError as error:
        reject = error.reject
        raise RowError(reject.reason, reject.message, moved(reject.pointer)) from None
    for conversation in found:
        for media in conversation.media():
            media.pointer = moved(media.pointer)
    return found


def _applies(conditions: dict[str, Any], arguments: dict[str, Any]) -> bool:
    return all(_is(arguments.get(name), wanted) for name, wanted in conditions.items())


def _is(value: Any, wanted: Any) -> bool:
    if wanted in ("+", "-"):
        return isinstance(value, int | float) and (value > 0 if wanted == "+" else value < 0)
    return bool(value == wanted)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
