"""What `--json` prints: one JSON object a line, each with the version of its form (output.schema.json).

Commands whose form is larger than some keys have a schema of their own: conversion, diff, report, stats, why.
"""

from __future__ import annotations

import json
from typing import Any

VERSION = 1
"""Raised when a key of any command goes or means something else. New keys may come without."""


def json_line(value: dict[str, Any]) -> str:
    """The line that says this."""
    return json.dumps({"version": VERSION, **value}, ensure_ascii=False)
