"""ReAct text taken apart: the parts of a reply, the input of an action, the APIs of a system prompt.

The same state machine as in the weights policy `react`: a keyword at the start of a line begins a part, which lasts
until the next keyword; elsewhere the same words are text. Values are parsed, never executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from compiler.read.elements import BRACKETS
from compiler.read.literal import parse_text
from compiler.read.value import parse

THOUGHT = "Thought"
ACTION = "Action"
ACTION_INPUT = "Action Input"
OBSERVATION = "Observation"
FINAL_ANSWER = "Final Answer"
KEYWORDS = (THOUGHT, ACTION, ACTION_INPUT, OBSERVATION, FINAL_ANSWER)

KEYWORD_LINE = re.compile(f"^({'|'.join(KEYWORDS)}):", re.MULTILINE)
"""A keyword with its colon at the start of a line; to Python, as to the weights policy, only "\\n" ends a line."""
_AFTER_A_LINE = re.compile(f"\n({'|'.join(KEYWORDS)}):")
"""The same with the end of the line before it: a pattern that begins with a character is found much faster."""

MAX_LITERAL = 100_000
"""The most characters of an input that is tried as a Python literal: its syntax tree takes hundreds of bytes each.

JSON needs no such limit, and both parsers bound the nesting.
"""


class ReplyPart(NamedTuple):
    """A keyword and the text after it, not stripped: `reply[start:end]` is the keyword, a colon and `text`."""

    keyword: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Api:
    """An API of a system prompt; `required` names its required parameters, None where the prompt does not say."""

    name: str
    required: tuple[str, ...] | None


def split_reply(text: str) -> list[str]:
    """What stands before the first keyword, then each keyword and the text after it, without the newline at its end.

    A newline is put before the first text: it stands for the end of a line. Plain chat is that text alone.
    """
    return _AFTER_A_LINE.split("\n" + text)


def parse_reply(text: str) -> list[ReplyPart]:
    """The parts of a reply, in order. Text before the first keyword is not a part, so plain chat has none."""
    pieces = split_reply(text)
    parts: list[ReplyPart] = []
    start = len(pieces[0])
    for k in range(1, len(pieces), 2):
        keyword, said = pieces[k], pieces[k + 1]
        end = start + len(keyword) + 1 + len(said) + 1
        if end > len(text):  # the last one: no newline and keyword follow
            end = len(text)
        parts.append(ReplyPart(keyword, text[start + len(keyword) + 1 : end], start, end))
        start = end
    return parts


def parse_inputs(texts: Sequence[str]) -> list[Any]:
    """The values of Action Inputs; where one has none, its ValueError stands in its place."""
    found: list[Any] = []
    for text in texts:
        try:
            found.append(parse_input(text))
        except ValueError as error:
            found.append(error)
    return found


def parse_input(text: str) -> Any:
    """The value of an Action Input: JSON, else a Python literal; an empty text is {}, no arguments.

    Where it is neither, the message of the ValueError completes the sentence "the input is ...".
    """
    text = text.strip() or "{}"
    if len(text) <= MAX_LITERAL:
        return parse_text(text)
    value, reject = parse(text.encode(), "text")
    if reject is None:
        return value
    raise ValueError(f"neither JSON nor, with {len(text):,} characters, a Python literal: {reject.message}")


_NUMBERED = r"[0-9]+[.、)]\s*"
_NAME = r"(?P<{}>[^\s:：]+)[:：]"
_ENTRY = re.compile(
    rf"^(?:(?:{_NUMBERED})?{_NAME.format('called')}\s*(?:Call this tool to interact with|调用此工具)"
    rf"|{_NUMBERED}{_NAME.format('listed')}.*(?:Parameters|参数)[:：]\s*[\[{{])",
    re.MULTILINE,
)
_PARAMETERS = re.compile(r"(?:Parameters|参数)[:：]\s*(?=[\[{])")
_NAMES = re.compile(
    r"should be one of (?:the above tools)?\s*\[([^\]\n]*)\]|[是为从]\s*\[([^\]\n]*)\]\s*(?:中的一个|之一)"
)


@lru_cache(maxsize=512)
def parse_apis(system: str) -> dict[str, Api] | None:
    """The APIs that a system prompt lists, by name (shared: do not change them); None where it lists none.

    An API is an entry `1. name: Call this tool ... Parameters: [...]` (a list of parameters, or a JSON Schema; the
    number may be missing), or one of the names in `should be one of the above tools[a, b]`.
    """
    apis: dict[str, Api] = {}
    entries = list(_ENTRY.finditer(system))
    ends = [*(entry.start() for entry in entries[1:]), len(system)]
    for entry, end in zip(entries, ends, strict=False):
        name = entry["called"] or entry["listed"]
        apis[name] = Api(name, _required(system[entry.start() : end]))
    for found in _NAMES.finditer(system):
        names = (name.strip() for name in re.split("[,，、]", found[1] or found[2] or ""))
        apis |= {name: Api(name, None) for name in names if name and name not in apis}
    return apis or None


@lru_cache(maxsize=1024)
def _required(entry: str) -> tuple[str, ...] | None:
    """The required parameters of an entry; None where its parameters cannot be read."""
    for value in _parameters(entry):
        if isinstance(value, dict):
            names = value.get("required")
            return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
        items = [item for item in value if isinstance(item, dict) and isinstance(item.get("name"), str)]
        if len(items) == len(value):
            return tuple(item["name"] for item in items if str(item.get("required")).lower() == "true")
    return None


def _parameters(entry: str) -> Iterator[dict[str, Any] | list[Any]]:
    """Yield the values that follow the first few "Parameters:"; a description may contain that word without one."""
    for found in islice(_PARAMETERS.finditer(entry), 8):
        raw = entry[found.end() :].encode()
        (value,) = parse_inputs([raw[: _end_of_value(raw)].decode()])
        if isinstance(value, dict | list):
            yield value


def _end_of_value(raw: bytes) -> int:
    """The end of the value whose bracket opens at the first byte; the end of the text if it is never closed."""
    depth = 0
    for bracket in BRACKETS.finditer(raw):
        byte = raw[bracket.start()]
        depth += 1 if byte in b"[{" else -1 if byte in b"]}" else 0
        if depth == 0:
            return bracket.end()
    return len(raw)
