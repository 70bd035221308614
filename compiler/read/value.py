"""One JSON value from its bytes, or the reason why there is none.

`parse` is fast for ordinary rows (orjson) and careful for all others (the json module, which is slower and
reports more). Only the careful way decides why a row is rejected, in this order: not UTF-8, too deep,
not JSON, a lone surrogate, a repeated key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from compiler.read.elements import BRACKETS, STRING
from compiler.read.model import MAX_DEPTH
from schemas.errors import Reason, Reject

_ZERO_IF_DIGIT = bytes(48 if 48 <= byte <= 57 else 0 for byte in range(256))
_BACKSLASH = ord("\\")
BEFORE_NUMBER = b" \t\r\n,:[+-.eE"
"""What may stand before the digits of a number in JSON; after anything else, digits are in a string."""
_NINETEEN_DIGITS = re.compile(rb"(?:\A|[" + re.escape(BEFORE_NUMBER) + rb"])[0-9]{19}")


def parse(raw: bytes, whole: str = "row") -> tuple[Any, Reject | None]:
    """The value and None, or None and the reject; `raw` has no space around it, `whole` is what it is.

    orjson refuses everything that is not JSON, and lone surrogates, but it keeps the last of two equal keys,
    turns integers beyond 64 bits into floats, and allows 1024 levels. So what it accepts is taken only if:

    * `orjson.dumps` accepts it: that stops at 254 levels, fewer than MAX_DEPTH.
    * The value, written again, has as many colons as `raw`, and `raw` has no colon written as an escape.
      Then no key was dropped. Proof: the colons of `raw` are one for each of its K members, and those inside
      its strings, S. The colons written are one for each of the V members kept, and those inside the strings
      kept, T. Every string kept comes from a string of `raw` of its own, and (no escaped colon) has the
      same colons there, so T <= S; and V <= K. From V + T = K + S follows V = K.
      This never fails for a row without repeated keys and without an escaped colon: then V = K and T = S.
    * It has no run of 19 digits but within a string: 18 always fit into 64 bits.

    Or if the value, written again, is `raw` itself, as in most files without a space after commas.
    """
    try:
        value = orjson.loads(raw)
        written = orjson.dumps(value)
    except (ValueError, TypeError):
        return _parse_carefully(raw, whole)
    if written == raw or (
        written.count(b":") == raw.count(b":") and not _has_escaped_colon(raw) and not _has_long_number(raw)
    ):
        return value, None
    return _parse_carefully(raw, whole)


def parse_row(raw: bytes) -> tuple[Any, Reject | None, dict[str, Reject] | None]:
    """As `parse`; but NaN and Infinity within a key of an object make the key null, and a reject for whoever reads it.

    pandas and numpy write them where nothing is known, mostly in columns that nobody trains on.
    """
    value, reject = parse(raw)
    if reject is None or (b"NaN" not in raw and b"Infinity" not in raw):
        return value, reject, None
    value, other = _parse_carefully(raw, "row", constant=_NotANumber)
    if other is not None or not isinstance(value, dict):
        return None, reject, None
    not_json: dict[str, Reject] = {}
    for key, inner in value.items():
        found = next(((at, node) for at, node in _walk(inner) if isinstance(node, _NotANumber)), None)
        if found is not None:
            what = f"{found[1].token} is not JSON (write null, or leave the key out)"
            not_json[key] = Reject(Reason.JSON, what, f"/{escape(key)}{found[0]}")
    return value | dict.fromkeys(not_json), None, not_json


def not_utf8(raw: bytes, error: UnicodeDecodeError) -> Reject:
    """The reject for a row whose bytes are not UTF-8."""
    what = f"byte 0x{raw[error.start]:02x} is not UTF-8 at byte {error.start} of the row"
    return Reject(Reason.NOT_UTF8, f"{what}, near {excerpt(raw, error.start)}; convert the file to UTF-8")


def excerpt(raw: bytes, at: int) -> str:
    """A few characters around a byte, quoted so that each of them can be seen."""
    begin, end = max(0, at - 20), at + 20
    text = raw[begin:end].decode("utf-8", "replace")
    return f"{'...' if begin else ''}{text!r}{'...' if end < len(raw) else ''}"


def _has_escaped_colon(raw: bytes) -> bool:
    """Whether a colon is written as an escape; rfind is twice as fast as find here, and one byte much faster."""
    return _BACKSLASH in raw and raw.rfind(b"\\u003") >= 0 and (b"\\u003a" in raw or b"\\u003A" in raw)


def _has_long_number(raw: bytes) -> bool:
    """Whether there are 19 digits in a row that may be those of a number.

    Any 19 neighbouring bytes contain at least three whose position is divisible by 6, so every sixth byte is
    looked at first: thirty times as fast as the plain search on text.
    """
    return raw[::6].translate(_ZERO_IF_DIGIT).find(b"000") >= 0 and _NINETEEN_DIGITS.search(raw) is not None


class _NotJsonError(Exception):
    """A token that the json module accepts and JSON does not have, with a message about it."""

    def __init__(self, token: str, what: str) -> None:
        super().__init__(what)
        self.token, self.what = token, what


@dataclass(frozen=True)
class _NotANumber:
    """NaN or Infinity in place of a value."""

    token: str


def _constant(token: str) -> NoReturn:
    raise _NotJsonError(token, f"{token} is not JSON (write null, or leave the key out)")


def _parse_carefully(raw: bytes, whole: str, constant: Callable[[str], Any] = _constant) -> tuple[Any, Reject | None]:
    """The slow way of `parse`, for every case."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return None, not_utf8(raw, error)
    if (at := _too_deep_at(raw)) is not None:  # before the json module, whose recursion has a limit too
        what = f"nested deeper than {MAX_DEPTH} levels at byte {at} of the {whole}"
        return None, Reject(Reason.TOO_DEEP, what)
    repeated: list[tuple[dict[str, Any], str]] = []
    try:
        value = _loads(text, repeated, constant)
    except json.JSONDecodeError as error:
        position, what = _explained(text, error)
        at = len(text[:position].encode())
        return None, _not_json(raw, at, what, whole)
    except _NotJsonError as error:
        return None, _not_json(raw, _position(raw, error.token), error.what, whole)
    reject = _lone_surrogate(value) or _repeated_key(value, repeated)
    return (None, reject) if reject else (value, None)


def _explained(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    """Where the mistake is and what it is, in the words of who made it rather than of the parser."""
    before = text[: error.pos].rstrip()
    if error.msg == "Expecting ',' delimiter" and before.endswith('"') and text[error.pos :].strip():
        what = f'{error.msg}: the text ends at this quote; a quote within a text is written \\"'
        return len(before) - 1, what
    if before.endswith(",") and text[error.pos : error.pos + 1] in ("]", "}"):
        return error.pos, f"a comma with nothing after it, before {text[error.pos]!r},"
    return error.pos, "text follows the value" if error.msg == "Extra data" else error.msg.removesuffix(" at")


def _loads(text: str, repeated: list[tuple[dict[str, Any], str]], constant: Callable[[str], Any]) -> Any:
    """The value with exact integers; objects with a key twice are added to `repeated`."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.append((found, _first_repeated(pairs)))
        return found

    return json.loads(
        text,
        object_pairs_hook=object_of,
        parse_constant=constant,
        parse_float=_float,
        parse_int=_integer,
    )


def _first_repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("called only when a key is repeated")


def _float(token: str) -> float:
    number = float(token)
    if math.isinf(number):
        raise _NotJsonError(token, f"the number {token[:40]} is too large for a 64-bit float")
    return number


def _integer(token: str) -> int:
    try:
        return int(token)
    except ValueError:  # sys.get_int_max_str_digits(): Python's guard against quadratic time
        raise _NotJsonError(token, f"the integer has {len(token)} digits, too many to be read") from None


def _not_json(raw: bytes, at: int, what: str, whole: str) -> Reject:
    half = " (is it half a row?)" if whole == "row" else ""
    end = f", where the {whole} ends{half}" if at >= len(raw) else ""
    before = raw.count(b"\n", 0, at)
    line = f" (its line {before + 1})" if b"\n" in raw else ""
    message = f"{what} at byte {at} of the {whole}{line}{end}, near {excerpt(raw, at)}"
    return Reject(Reason.JSON, message)


def _position(raw: bytes, token: str) -> int:
    """The position of a token outside of strings."""
    tokens = re.compile(STRING + b"|(" + re.escape(token.encode()) + b")", re.DOTALL)
    return next((match.start() for match in tokens.finditer(raw) if match.group(1)), 0)


def _too_deep_at(raw: bytes) -> int | None:
    """The byte of the first bracket beyond MAX_DEPTH, valid JSON or not."""
    depth = 0
    for match in BRACKETS.finditer(raw):
        byte = raw[match.start()]
        if byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return match.start()
        elif byte in b"]}":
            depth -= 1
    return None


def _lone_surrogate(value: Any) -> Reject | None:
    """The reject for the first text with a lone surrogate; for a key, the pointer is its object."""
    for pointer, node in _walk(value):
        for text in (node,) if isinstance(node, str) else node if isinstance(node, dict) else ():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(text[error.start]):04x} without its partner, half a character,"
                near = ascii(text[max(0, error.start - 20) : error.start + 20])
                where = "text" if text is node else "key"
                return Reject(Reason.LONE_SURROGATE, f"{half} in the {where} {near}", pointer)
    return None


def _repeated_key(value: Any, repeated: list[tuple[dict[str, Any], str]]) -> Reject | None:
    """The reject for the first object that has a key twice.

    An object of `repeated` may itself have been dropped with an outer repeated key, but then that outer
    object is in `repeated`, and the outermost one is always still there.
    """
    keys = {id(found): key for found, key in repeated}
    for pointer, node in _walk(value) if keys else ():
        if (key := keys.get(id(node))) is not None:
            what = f"the key {key!r} occurs more than once in one object"
            return Reject(Reason.DUPLICATE_KEY, what, pointer)
    return None


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (JSON pointer, node) for the value and everything in it, in the order of the text."""
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        pointer, node = todo.pop()
        yield pointer, node
        if isinstance(node, dict):
            inner = [(f"{pointer}/{escape(key)}", child) for key, child in node.items()]
        elif isinstance(node, list):
            inner = [(f"{pointer}/{number}", child) for number, child in enumerate(node)]
        else:
            continue
        todo.extend(reversed(inner))


def escape(key: str) -> str:
    """A key as one part of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def json_type(value: Any) -> str:
    """The type of a JSON value, in the words of JSON Schema."""
    return _TYPES.get(type(value), type(value).__name__)
