"""Errors that a user can fix, and the reasons for which a row can be rejected.

    Problem
    ├── UsageError      exit 2   the command line or a configuration file
    ├── TooManyRejects  exit 3   more rows were rejected than --max-rejects allows
    ├── IntegrityError  exit 4   something on disk is not what its manifest says
    ├── InputError      exit 5   a file cannot be read or written
    ├── LockedError     exit 6   another process is writing the same output, or using the cache
    └── Terminated      exit 143 SIGTERM came, and what was done is saved

A `Problem` is one message: where it is, what was expected and found, and what to do. The command line
prints it and exits with its code. Any other exception that reaches the command line is a bug (exit 1).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

EXIT_CODES = (
    "Exit codes: 0 ok, 1 bug, 2 usage, 3 too many rejects, 4 integrity, 5 input/output, 6 locked, 130 interrupted, "
    "141 broken pipe, 143 terminated."
)
"""What every command's help ends with."""
INTERRUPTED = 130
"""As in shells: 128 + the number of SIGINT."""
BROKEN_PIPE = 141
"""The same for SIGPIPE: what read our output, such as `head`, ended first."""


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys instead of showing them; not the line break and the tab."""
_CREDENTIALS = re.compile(r"(\w://)[^/\s@]*@")


def shown(text: str) -> str:
    """A text that a terminal shows as it is: control characters as escapes, and `***` for a URL's credentials."""
    text = _CREDENTIALS.sub(r"\1***@", text)
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class Problem(Exception):
    """A message for the user: `WHERE: WHAT`, and on the next line what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        self.where, self.what, self.hint = where, what, hint
        super().__init__(shown(f"{where}: {what}" + (f"\n  {hint}" if hint else "")))

    def __reduce__(self) -> tuple[type[Problem], tuple[str, str, str]]:
        # Problems cross process boundaries; by default only the message of an exception is pickled.
        return type(self), (self.where, self.what, self.hint)


class UsageError(Problem):
    """The command line or a configuration asks for something that does not exist or cannot be."""

    exit_code = 2


class TooManyRejects(Problem):
    """More rows were rejected than allowed; nothing was published."""

    exit_code = 3


class IntegrityError(Problem):
    """Bytes on disk are not what they must be, or a law of the product does not hold."""

    exit_code = 4


class InputError(Problem):
    """A file cannot be read (or written) as what it claims to be."""

    exit_code = 5


class LockedError(Problem):
    """Another process holds the output, or the cache."""

    exit_code = 6


class Terminated(Problem):
    """SIGTERM ended the work, after it was saved. The code is 128 + the number of the signal, as in shells."""

    exit_code = 143


class Reason(StrEnum):
    """Why a row was not compiled, as `rejects.jsonl` and the manifest call it."""

    NOT_UTF8 = "not_utf8"
    """The bytes of the row are not UTF-8."""
    JSON = "json"
    """The row is not one JSON value (NaN, a raw control character, half a line...)."""
    DUPLICATE_KEY = "duplicate_key"
    """An object of the row has a key twice: parsers disagree on which one counts."""
    LONE_SURROGATE = "lone_surrogate"
    """Half of a surrogate pair, such as \\ud800, without the other half: no text can contain it."""
    TOO_DEEP = "too_deep"
    """Nested deeper than `compiler.read.MAX_DEPTH`."""
    CSV = "csv"
    """A record has more or fewer fields than the header."""
    SCHEMA = "schema"
    """The row does not match its format's JSON Schema."""
    UNREAD_KEY = "unread_key"
    """The row has a key that its format does not read, and that is known to change what is trained."""
    TURN_ORDER = "turn_order"
    """The turns are no conversation: a reply first, no reply at all, a turn without its reply."""
    TOOLS = "tools"
    """The `tools` text is not a JSON list of tools."""
    TOOL_ARGUMENTS = "tool_arguments"
    """The arguments of a tool call are not a JSON object."""
    SCREEN = "screen"
    """A screen agent's prompt, history, operation or reply does not follow its grammar."""
    CLEANED = "cleaned"
    """A clean-up rule of the dataset's card removes such rows."""
    CONTAMINATED = "contaminated"
    """Its text is in a benchmark that --decontaminate names."""
    TEMPLATE_REFUSED = "template_refused"
    """The chat template itself raised an error for this conversation."""
    TEMPLATE_UNSTABLE = "template_unstable"
    """The chat template renders earlier turns differently once later ones follow."""
    SPECIAL_TEXT = "special_text"
    """A text contains the spelling of a control token, and --special-text reject was given."""
    REACT = "react"
    """A ReAct reply is inconsistent, and --strict was given."""
    PLACEHOLDER = "placeholder"
    """A self-cognition placeholder has no value."""
    MEDIA = "media"
    """An image or video of the row cannot be used: missing, not allowed, broken, or none that the model takes."""
    TOO_LONG = "too_long"
    """It does not fit into --max-length under the --overlength policy."""
    EMPTY_REPLY = "empty_reply"
    """A reply has nothing in it, so that only its stop would be trained."""
    NOTHING_TRAINED = "nothing_trained"
    """No token of the example would be trained: its loss would be NaN."""


DROPPED = (Reason.CLEANED, Reason.CONTAMINATED)
"""Reasons that are no mistakes: such rows are listed with the rejects, and counted by themselves."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was not compiled: `pointer` is a JSON pointer into the raw row ("" = the whole row)."""

    reason: Reason
    message: str
    pointer: str = ""


class RowError(Exception):
    """Raised while a row is compiled. It becomes a `Reject`, and the run goes on."""

    def __init__(self, reason: Reason, message: str, pointer: str = "") -> None:
        super().__init__(message)
        self.reject = Reject(reason, message, pointer)

    def __reduce__(self) -> tuple[type[RowError], tuple[Reason, str, str]]:
        return type(self), (self.reject.reason, self.reject.message, self.reject.pointer)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a name that is not valid: "did you mean 'x'? known: x, y, z"."""
    choices = sorted(valid)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]!r}? " if close else ""
    shown = ", ".join(choices[:30]) + (f", ... {len(choices) - 30} more" if len(choices) > 30 else "")
    return f"{guess}known: {shown or 'none'}"
