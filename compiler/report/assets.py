"""Templates, styles and scripts of pages. The template engine escapes all that it is given."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from compiler.inspect.marks import visible

HERE = Path(__file__).parent


@cache
def environment() -> Environment:
    """The template engine."""
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["seen"] = visible
    return made


@cache
def asset(*names: str) -> str:
    """These files, one after the other."""
    return "".join((HERE / name).read_text(encoding="utf-8") for name in names)


def policy(style: str, script: str, *more: str) -> str:
    """A Content-Security-Policy: this style and script by their hashes, images in the page, and nothing `more`."""

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = [f"default-src 'none'; script-src {hashed(script)}; style-src {hashed(style)}; img-src data:"]
    return "; ".join([*rules, "base-uri 'none'", *(more or ("form-action 'none'",))])
