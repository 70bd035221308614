"""`python -m benchmarks.train`, at its smallest scale, and the parts of the script for a device that a CPU can run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.train_device import Measuring
from tests.support.command import outside

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: object) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT, env=outside() | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_trainers_that_are_compared_have_the_same_losses() -> None:
    """On packs, where a loss differs at once if sequences see each other or are divided by another count."""
    pytest.importorskip("trl", reason="TRL is not installed")
    printed = run("benchmarks.train", "--tiny", "--layout", "packed")
    table = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    apart = {cells[0]: float(cells[-1]) for cells in table if len(cells) > 2 and cells[0] != "tokens/s"}
    assert set(apart) == {"`cli train`", "plain torch loop", "transformers' Trainer", "TRL's SFTTrainer"}, printed
    assert max(apart.values()) < 1e-5, printed


@pytest.mark.slow
def test_a_configuration_of_the_script_for_a_device_is_measured() -> None:
    task = {
        "model": "tiny", "attention": "sdpa", "checkpointing": True, "device": "cpu", "length": 64, "seconds": 0.1,
    }  # fmt: skip
    found = json.loads(run("benchmarks.train_one", json.dumps(task)))
    assert found["tokens_per_second"] > 0
    assert 0 < found["apart"] < 1e-2, "what bf16 rounds"


def test_a_configuration_that_takes_too_long_is_stopped() -> None:
    assert Measuring("cpu", minutes=1).process("http.server", 0, limit=1) == ([], "stopped after 1 s")
    assert Measuring("cpu", minutes=0).process("http.server", 0, limit=1) == ([], "left out: the minutes are over")
