"""The command line, run in this process."""

from __future__ import annotations

import inspect
import os

from click.testing import CliRunner

GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a process group of the trainer leaves in the environment of its process."""


def runner() -> CliRunner:
    """A runner whose results keep stderr apart from stdout. Click 8.2 and later do so by themselves."""
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart)


def outside() -> dict[str, str]:
    """The environment of a process that does not belong to this one's process group."""
    return {name: value for name, value in os.environ.items() if name not in GROUP}
