"""A line of the report, and a Python of its own to ask: a package that crashes or hangs there does no harm here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

TIMEOUT = 120
"""Seconds an import may take; DeepSpeed's first one on a slow disk is the longest."""


@dataclass(frozen=True)
class MachineFinding:
    """One line of the report. `status`: ok, missing, broken, or note (good to know); `needed` to train at all."""

    name: str
    status: str
    found: str
    hint: str = ""
    needed: bool = False


def ask(code: str, *, facts: bool = False) -> tuple[Any, str]:
    """Run code in a Python of its own; return the last printed line and "", or None and the last line of the error.

    `facts`: parse that line as JSON.
    """
    # Otherwise torch imports torch_npu by itself, and fails if CANN is missing.
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, errors="replace", timeout=TIMEOUT, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"importing it took more than {TIMEOUT} seconds"
    printed, failed = done.stdout.strip().splitlines(), done.stderr.strip().splitlines()
    if done.returncode or not printed:
        return None, failed[-1] if failed else f"importing it ended the process with {done.returncode}"
    return (json.loads(printed[-1]) if facts else printed[-1]), ""


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / (1 << 30):,.1f} GiB"
