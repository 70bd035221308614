"""A parser for one operation of CogAgent, by recursive descent; every error has its position.

The rules are those of CogAgent's Action_space_en.md; where it says nothing, its published samples decide:

* Arguments may be in any order (one sample has `step_count` before `element_info`), with spaces between tokens.
* A box is `[[a,b,c,d]]` or `[a,b,c,d]`, padded (`086`, as the document says) or not (as most samples are).
* A box has an area: a < c and b < d. No published box is a line or a point, and a rectangle without area marks nothing
  that can be learned; most likely a point was written twice. Such a row is rejected.
* Text is in single or double quotes. A backslash escapes either quote, itself, `n`, `t` and `r`; before anything else
  it is text. Inner quotes need not be escaped: a quote ends the text only where the operation can continue or end after
  it (`element_info='Don't save'` is one text).
* An operation is one line, because CogAgent's client reads it up to the end of the line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from compiler.formats.screens.action_space import ARGUMENTS, KEYS, OPERATIONS, USES_VARIABLES, Box, Operation, Signature
from compiler.formats.screens.located import GrammarError, found
from schemas.errors import nearest

__all__ = ["GrammarError", "Operation", "parse_operation", "read_operation"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_SPACES = re.compile(" *")
_NUMBER = re.compile(r"[-+]?[0-9][0-9.]*")
_VARIABLE = re.compile(r"__CogName_\w+?__")
_QUOTES = {quote: re.compile(rf"\\.|{quote}") for quote in "'\""}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "'": "'", '"': '"', "\\": "\\"}
_NEXT_ARGUMENT = r" *(?:, *[A-Za-z_][A-Za-z_0-9]* *="
_GOES_ON = re.compile(_NEXT_ARGUMENT + r"|\) *(?:$|\t))")
_GOES_ON_IN_GESTURE = re.compile(_NEXT_ARGUMENT + r"|\) *[,\]])")
_MAY_GO_ON = re.compile(r" *[,)]")


def parse_operation(text: str, variables: Collection[str] | None = None) -> Operation:
    """The operation that a text consists of; GrammarError where it is none.

    `variables` are those set so far: using another one is an error. None = not checked.
    """
    operation, end = read_operation(text, 0, len(text), variables)
    if rest := text[end:].lstrip(" "):
        at = len(text) - len(rest)
        raise GrammarError(at, f"expected nothing after the operation, found {found(text, at)}")
    return operation


def read_operation(text: str, start: int, end: int, variables: Collection[str] | None = None) -> tuple[Operation, int]:
    """The operation that begins at `start` (spaces may precede it), and its end, at most `end`."""
    parser = _Parser(text, start, end, variables)
    operation = parser.operation(OPERATIONS, "an operation")
    return operation, parser.at


class _Parser:
    """The state of parsing one operation: the text, the position reached, and the limit."""

    def __init__(self, text: str, at: int, end: int, variables: Collection[str] | None) -> None:
        line_end = min((i for i in (text.find("\n", at, end), text.find("\r", at, end)) if i >= 0), default=end)
        self.text, self.at, self.end, self.variables = text, at, line_end, variables
        self.goes_on = _GOES_ON

    def operation(self, known: dict[str, Signature], what: str) -> Operation:
        name = self.name(what, known)
        required, optional = known[name]
        self.expect("(", f"after {name}")
        arguments: dict[str, str | int | bool | Box | list[Operation]] = {}
        while not self.accept(")"):
            if arguments:
                self.expect(",", f"or ')' after the argument {next(reversed(arguments))!r}")
            argument = self.name(f"an argument of {name}", (*required, *optional))
            if argument in arguments:
                at = self.at - len(argument)
                raise GrammarError(at, f"expected each argument of {name} once, found {argument!r} twice")
            self.expect("=", f"after {argument}")
            arguments[argument] = self.value(argument)
        missing = next((repr(argument) for argument in required if argument not in arguments), None)
        if name == "LAUNCH" and not arguments:
            missing = "'app' or 'url'"
        if missing:
            given = f"only {', '.join(map(repr, arguments))}" if arguments else "no arguments"
            raise GrammarError(self.at - 1, f"expected {name} to have {missing}, found {given}")
        return Operation(name, arguments)

    def value(self, argument: str) -> str | int | bool | Box | list[Operation]:
        if argument == "box":
            return self.box()
        if argument == "step_count":
            return self.number("the number of steps")
        if argument == "auto_scroll":
            return self.name("True or False", ("True", "False")) == "True"
        if argument == "actions":
            return self.actions()
        return self.quoted(argument)

    def box(self) -> Box:
        self.expect("[", "before the box")
        start, double = self.at, self.accept("[")
        sides = [self.number("a number from 0 to 999", 999)]
        while len(sides) < 4:
            self.expect(",", "between the four numbers of a box")
            sides.append(self.number("a number from 0 to 999", 999))
        for _ in range(2 if double else 1):
            self.expect("]", "after the four numbers of a box")
        left, top, right, bottom = sides
        if left >= right:
            raise GrammarError(start, f"expected a box whose left is less than its right, found {left} and {right}")
        if top >= bottom:
            raise GrammarError(start, f"expected a box whose top is less than its bottom, found {top} and {bottom}")
        return left, top, right, bottom

    def number(self, what: str, limit: int = 999_999) -> int:
        self.spaces()
        match = _NUMBER.match(self.text, self.at, self.end)
        if match is None or not match.group().isdecimal() or len(match.group()) > len(str(limit)):
            shown = repr(match.group()[:24]) if match else self.found()
            raise GrammarError(self.at, f"expected {what}, found {shown}")
        self.at = match.end()
        return int(match.group())

    def actions(self) -> list[Operation]:
        self.goes_on = _GOES_ON_IN_GESTURE  # until the end: a gesture has no other text
        self.expect("[", "before the actions of a gesture")
        actions = [self.operation(KEYS, "an action of a gesture")]
        while not self.accept("]"):
            self.expect(",", "or ']' after an action of a gesture")
            actions.append(self.operation(KEYS, "an action of a gesture"))
        return actions

    def quoted(self, argument: str) -> str:
        self.spaces()
        quote, start = self.text[self.at : min(self.at + 1, self.end)], self.at + 1
        if quote not in _QUOTES:
            raise GrammarError(self.at, f"expected the text of {argument!r} in quotes, found {self.found()}")
        close = self.closing(quote, start)
        if close is None:
            raise GrammarError(start - 1, f"expected a closing quote for the text of {argument!r}, found none")
        raw, self.at = self.text[start:close], close + 1
        if argument == "output":
            if not _VARIABLE.fullmatch(raw):
                raise GrammarError(start, f"expected a variable as __CogName_name__, found {raw[:24]!r}")
        elif argument in USES_VARIABLES:
            self.check_variables(raw, start)
        return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), raw)

    def closing(self, quote: str, start: int) -> int | None:
        """The position of the closing quote of the text that begins at `start`; None where it has none.

        That is the first quote after which the operation certainly goes on, else the first after which it may: then the
        mistake is in what follows.
        """
        perhaps = None
        for match in _QUOTES[quote].finditer(self.text, start, self.end):
            if match.group() != quote:
                continue  # an escape
            if self.goes_on.match(self.text, match.end(), self.end):
                return match.start()
            if self.opens_next(start, match.start()):
                return None
            if perhaps is None and _MAY_GO_ON.match(self.text, match.end(), self.end):
                perhaps = match.start()
        return perhaps

    def opens_next(self, start: int, quote: int) -> bool:
        """Whether this quote opens the text of the next argument: then the text before it was never closed."""
        before = re.search(r", *(\w+) *= *$", self.text[max(start, quote - 40) : quote])
        return before is not None and before[1] in ARGUMENTS

    def check_variables(self, raw: str, start: int) -> None:
        for begin in re.finditer("__CogName_", raw):
            variable = _VARIABLE.match(raw, begin.start())
            at = start + begin.start()
            if variable is None:
                raise GrammarError(at, f"expected a variable as __CogName_name__, found {raw[begin.start() :][:24]!r}")
            if self.variables is not None and variable.group() not in self.variables:
                hint = f"set so far: {', '.join(sorted(self.variables)) or 'none'}"
                raise GrammarError(at, f"expected a variable that is set by now, found {variable.group()}; {hint}")

    def name(self, what: str, known: Iterable[str]) -> str:
        self.spaces()
        match = _NAME.match(self.text, self.at, self.end)
        names = list(known)
        if match is None or match.group() not in names:
            hint = nearest(match.group(), names) if match and names else f"known: {', '.join(sorted(names)) or 'none'}"
            raise GrammarError(self.at, f"expected {what}, found {self.found()}; {hint}")
        self.at = match.end()
        return match.group()

    def accept(self, token: str) -> bool:
        self.spaces()
        if self.at < self.end and self.text[self.at] == token:
            self.at += 1
            return True
        return False

    def expect(self, token: str, where: str) -> None:
        if not self.accept(token):
            raise GrammarError(self.at, f"expected {token!r} {where}, found {self.found()}")

    def spaces(self) -> None:
        match = _SPACES.match(self.text, self.at, self.end)
        assert match is not None
        self.at = match.end()

    def found(self) -> str:
        return found(self.text, self.at, self.end)
