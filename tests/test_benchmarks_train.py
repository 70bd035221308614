"""`python -m benchmarks.train`, at its smallest scale."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.trained import outside

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: object) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, env=outside(), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_trainers_that_are_compared_train_the_same_packs() -> None:
    printed = run("benchmarks.train", "--tiny", "--layout", "packed")
    apart = dict(re.findall(r"^\| (.+?) \|.* (\S+) \|$", printed, re.MULTILINE))
    assert {"`cli train`", "plain torch loop", "transformers' Trainer", "TRL's SFTTrainer"} <= set(apart)
    assert all(float(apart[name]) < 1e-5 for name in apart if "loss" not in name)
