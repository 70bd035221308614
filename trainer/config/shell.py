"""A call that trains, taken out of a shell file: `swift sft ...` and the like. Nothing of the file is run.

Understood are words, quotes, `NAME=VALUE` (also with `export` and in front of the call), `$NAME`, `${NAME}`,
`$(expr A / B)`, `$((A / B))`, and lines continued with a backslash. What would need a shell is refused if the call
depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from schemas import yaml
from schemas.errors import InputError, UsageError
from trainer.config import call as calls
from trainer.config.call import ASSIGNED, ToolCall

_NAME = re.compile(r"[A-Za-z_]\w*")
_SUM = re.compile(r"\d+(\s*(/|\\?\*)\s*\d+)*|\d+(\s*[-+]\s*\d+)*")
"""Integers with operators of one rank, which a shell works out from left to right."""
_CALL = re.compile(
    r"(^|\s)((swift|llamafactory-cli)\s+\w+|\S*\b(src/train|(llm_)?(sft|pt|rlhf|finetune(_hf)?))\.py)(\s|$)"
)
_BLOCKS = ("if", "for", "while", "until", "case", "function", "select")
_ENDS = "|&;<>()"


class Asked(NamedTuple):
    """What a call asks a trainer for."""

    raw: dict[str, Any]
    """Its arguments, as a configuration file would have them."""
    tables: tuple[str, ...]
    """The tables in registry/train_configs that it may be for; () for any."""
    defaults: dict[str, Any]
    """What the name of the command says, in our names."""
    remarks: list[str]
    """What of it is not taken over."""


class Found(NamedTuple):
    """The call of a shell file."""

    call: ToolCall
    rest: str
    """What follows it in its line: `2>&1 | tee log`."""
    remarks: list[str]
    """What of the file is not read."""


@dataclass(frozen=True)
class _Unknown:
    """The value of a variable that only a shell could compute."""

    why: str


@dataclass
class _File:
    """What is known while a file is read."""

    path: Path
    line: int = 0
    known: dict[str, str | _Unknown] = field(default_factory=dict)
    filled: int = 0
    """Characters that stand where variables were."""
    dated: bool = False
    """Whether the date stands in a value."""

    def refuse(self, what: str, hint: str = "Write the value itself into the file.") -> UsageError:
        return UsageError(f"{self.path}:{self.line}", what, hint)


def is_shell(path: Path) -> bool:
    """Whether a file is one of a shell: by its name, or by its first line."""
    if path.suffix in (".sh", ".bash"):
        return True
    try:
        with path.open("rb") as opened:
            return opened.read(2) == b"#!"
    except OSError:
        return False  # told when it is read as YAML


def read(path: Path) -> Asked:
    """What the call that trains in a shell file asks for; UsageError if it takes its settings from another file."""
    call, rest, remarks = find(path)
    raw, loose = calls.options(call.words)
    if loose:
        named = f"{call.command} takes its settings from {' '.join(loose)}"
        hint = f"Give the configuration file itself (cli train SET FILE --model MODEL), or run cli follow {path}."
        raise UsageError(str(path), named, hint)
    if call.environment:
        what = "is not taken over: set for cli train what it should see"
        remarks.insert(0, f"the environment of the call ({', '.join(call.environment)}) {what}")
    if len(call.launcher) > 1:
        first = call.launcher[0]
        remarks.insert(0, f"the options of {first} are not taken over: start cli train with {first} in the same way")
    if rest.strip():
        remarks.append(f"what follows the call is not run: {rest.strip()}")
    return Asked(raw, call.tables, call.defaults, remarks)


def find(path: Path) -> Found:
    """Find the call that trains in a shell file; UsageError if there is none, several, or one that needs a shell."""
    try:
        text = yaml.text_of(path)
    except FileNotFoundError:
        raise UsageError(str(path), "no such file", "Give a shell file or a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read: {error}") from error
    file = _File(path)
    found: list[tuple[int, ToolCall, str]] = []
    skipped: list[str] = []
    for number, line in _lines(text):
        file.line = number
        first, assigned = line.split(None, 1)[0], ASSIGNED.fullmatch(line)
        if first.startswith("--"):
            what = f"{first} stands in a line of its own: a comment, or a missing backslash, ends the call before it"
            raise file.refuse(what, "Join it to the call.")
        if first in _BLOCKS or re.match(r"\w+\s*\(\)", line):
            raise file.refuse(f"{first} needs a shell", "Leave one plain call in the file, with its values.")
        if (one := _call(file, line)) is not None:
            found.append((number, *one))
        elif assigned and (value := _assigned(file, assigned[2])) is not None:
            file.known[assigned[1]] = value
        else:
            skipped.append(f"{first} (line {number})")
    if not found:
        what = "no call that trains is in it: swift sft, swift pt, swift rlhf or ChatGLM3's finetune.py"
        raise UsageError(str(path), what, "Give the file that makes the call, or a YAML file.")
    if len(found) > 1:
        what = f"{len(found)} calls train, in lines {', '.join(str(number) for number, _, _ in found)}"
        raise UsageError(str(path), what, "Put each of them into a file of its own.")
    remarks = []
    if skipped:
        remarks.append(
            f"{path.name} is read, not run: {', '.join(skipped)} {'is' if len(skipped) == 1 else 'are'} left out"
        )
    if file.dated:
        remarks.append("the date of the start is the word date here, so that --resume finds the folder")
    return Found(*found[0][1:], remarks)


def _call(file: _File, line: str) -> tuple[ToolCall, str] | None:
    """(the call that trains, what follows it) in a line; None for any other line, whose words may need a shell."""
    if not _CALL.search(line):
        return None
    words, rest = _words(file, line)
    call = calls.parse(words)
    return (call, rest) if call is not None and call.trains else None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a script with their numbers, continued ones as one, without comments and empty ones."""
    whole, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        part = line.strip()
        if not whole:
            first = number
        if part.startswith("#"):
            part = ""  # between the lines of a call it ends the call, for a shell too
        if part.endswith("\\") and not part.endswith("\\\\"):
            whole += part[:-1] + " "
            continue
        whole += part
        if whole.strip():
            yield first, whole.strip()
        whole = ""
    if whole.strip():
        yield first, whole.strip()


def _assigned(file: _File, text: str) -> str | _Unknown | None:
    """The value of `NAME=VALUE`; None if more than a value follows."""
    try:
        words, rest = _words(file, text)
    except UsageError as error:
        return _Unknown(error.what)
    return None if len(words) > 1 or rest else "".join(words)


def _words(file: _File, line: str) -> tuple[list[str], str]:
    """(the words of a line up to the first operator, the rest from there)."""
    words: list[str] = []
    word: str | None = None
    place = 0
    while place < len(line):
        sign = line[place]
        if sign.isspace():
            words += [] if word is None else [word]
            word, place = None, place + 1
        elif sign == "#" and word is None:
            break
        elif sign in _ENDS:
            if sign in "<>" and word is not None and word.isdigit():  # 2>&1
                return words, f"{word}{line[place:]}"
            return [*words, *([] if word is None else [word])], line[place:]
        elif sign in "'\"":
            text, place = _quoted(file, line, place)
            word = (word or "") + text
        elif sign == "\\":
            word, place = (word or "") + line[place + 1 : place + 2], place + 2
        elif sign in "$`":
            text, place = _expanded(file, line, place)
            parts = text.split() or [""]  # an unquoted value with spaces is several words
            words += [(word or "") + parts[0], *parts[1:-1]] if len(parts) > 1 else []
            word = parts[-1] if len(parts) > 1 else (word or "") + parts[0]
        else:
            word, place = (word or "") + sign, place + 1
    return [*words, *([] if word is None else [word])], ""


def _quoted(file: _File, line: str, start: int) -> tuple[str, int]:
    """(text, place after it) of what is in quotes."""
    sign, place, text = line[start], start + 1, ""
    while place < len(line) and line[place] != sign:
        if sign == '"' and line[place] == "\\" and line[place + 1 : place + 2] in ('"', "\\", "$", "`"):
            text, place = text + line[place + 1], place + 2
        elif sign == '"' and line[place] in "$`":
            part, place = _expanded(file, line, place)
            text += part
        else:
            text, place = text + line[place], place + 1
    if place == len(line):
        raise file.refuse(f"a quote ({sign}) is not closed in its line", "Close it in the same line.")
    return text, place + 1


def _expanded(file: _File, line: str, start: int) -> tuple[str, int]:
    """(text, place after it) of `$NAME`, `${NAME}`, `$(COMMAND)`, `$((SUM))` or a command in backquotes."""
    if line[start] == "`":
        end = line.find("`", start + 1)
        return _computed(file, line[start + 1 : end], line[start : end + 1]), end + 1
    for opening, closing in (("$((", "))"), ("$(", ")"), ("${", "}")):
        if line.startswith(opening, start):
            end = line.find(closing, start)
            inner, whole = line[start + len(opening) : end], line[start : end + len(closing)]
            if end < 0:
                raise file.refuse(f"{line[start:]} is not closed")
            if opening != "${":
                return _computed(file, inner, whole), end + len(closing)
            if not _NAME.fullmatch(inner):
                raise file.refuse(f"{whole} needs a shell")
            return _variable(file, inner), end + 1
    name = _NAME.match(line, start + 1)
    if name is None:
        if line[start + 1 : start + 2].strip():
            raise file.refuse(f"{line[start : start + 2]} needs a shell")
        return "$", start + 1
    return _variable(file, name[0]), name.end()


def _variable(file: _File, name: str) -> str:
    value = file.known.get(name)
    if value is None:
        raise file.refuse(f"${name} is not set in the file", f"Add a line {name}=VALUE in front of the call.")
    if isinstance(value, _Unknown):
        raise file.refuse(f"${name} needs a shell: {value.why}")
    file.filled += len(value)
    if file.filled > yaml.LARGEST:
        raise file.refuse(f"the values of variables make more than {yaml.LARGEST:,} characters")
    return value


def _computed(file: _File, inner: str, whole: str) -> str:
    """What a command gives: the sums of expr and of `$((...))`, and the date, as a word."""
    if inner.split()[:1] == ["date"]:
        file.dated = True
        return "date"
    named = r"\$?\{?\b([A-Za-z_]\w*)\}?" if whole.startswith("$((") else r"\$\{?([A-Za-z_]\w*)\}?"
    inner = inner if whole.startswith("$((") else inner.strip().removeprefix("expr ")
    found = _SUM.fullmatch(re.sub(named, lambda one: _variable(file, one[1]), inner).strip())
    if found is None or len(found[0]) > 200:
        raise file.refuse(f"{whole[:200]} needs a shell")
    parts = re.findall(r"\d+|[-+*/]", found[0])
    result = int(parts[0])
    for sign, other in zip(parts[1::2], map(int, parts[2::2]), strict=True):
        if sign == "/" and other == 0:
            raise file.refuse(f"{whole} divides by 0")
        result = {"+": result + other, "-": result - other, "*": result * other}.get(sign, result // (other or 1))
    return str(result)
