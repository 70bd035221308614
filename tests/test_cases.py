"""Inputs as people have them (../shared/cases), each with what must come of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.shared import shared


@pytest.mark.slow
def test_every_input_is_read_or_refused_as_it_should_be() -> None:
    check, cli = shared("cases", "check"), Path(sys.executable).parent / "cli"
    done = subprocess.run([sys.executable, str(check), "--cli", str(cli)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
