"""Several processes: killed at any moment and resumed, the losses are those of the run that was not.

Two gloo processes under torchrun, packs, per-token weights, LoRA. Each run takes seconds to start, so the tests share
them: a run that is killed has written the losses of steps that the resumed one does again.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xxhash

from schemas import checkpoint
from tests.support.trained import (
    config,
    kill_after,
    losses,
    outside,
    records,
    run_to_end,
    save_model,
    small_set,
    train,
)  # fmt: skip
from trainer.commands import libraries

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
STEPS = 10


@dataclass
class Runs:
    data: Path
    model: Path
    whole: Path
    """A run that nothing stopped."""
    killed: Path
    """A run of ZeRO-2, killed twice."""
    before: list[dict[int, float]]
    """The losses that each killed run had logged."""
    stage3: Path
    before3: dict[int, float]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("processes")
    model = save_model(folder / "model")
    data = small_set(folder, "--pack", 64)

    def settings(name: str, stage: int) -> Path:
        every = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 2, "zero_stage": stage}
        return config(folder / f"{name}.json", model, per_device_train_batch_size=1, **every)

    whole, killed, stage3 = settings("whole", 2), settings("killed", 2), settings("stage3", 3)
    run_to_end(2, data, whole)
    kill_after(3, 2, data, killed, output=killed.with_suffix(""))
    before = [losses(killed)]
    kill_after(7, 2, data, killed, "--resume", "yes", output=killed.with_suffix(""))
    before.append(losses(killed))
    run_to_end(2, data, killed, "--resume", "yes")
    kill_after(5, 2, data, stage3, output=stage3.with_suffix(""))
    before3 = losses(stage3)
    run_to_end(2, data, stage3, "--resume", "2")
    return Runs(data, model, whole, killed, before, stage3, before3)


def test_a_run_killed_twice_has_the_losses_of_one_that_was_not(runs: Runs) -> None:
    assert records(runs.killed) == records(runs.whole)
    assert [record["step"] for record in records(runs.killed)] == list(range(1, STEPS + 1))


def test_what_a_killed_run_had_logged_comes_out_again(runs: Runs) -> None:
    for before, after in (*((one, losses(runs.killed)) for one in runs.before), (runs.before3, losses(runs.stage3))):
        assert len(before) >= 3
        assert before.items() <= after.items()


def test_zero_3_trains_as_zero_2_does(runs: Runs) -> None:
    assert losses(runs.stage3) == pytest.approx(losses(runs.whole), abs=2e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_one_process_goes_on_where_two_were_stopped(runs: Runs, tmp_path: Path, stage: int) -> None:
    came_from = runs.whole if stage == 2 else runs.stage3
    moved = config(
        tmp_path / "moved.json", runs.model, max_steps=STEPS, per_device_train_batch_size=1, zero_stage=stage
    )
    shutil.copytree(came_from.with_suffix("") / "checkpoint-4", moved.with_suffix("") / "checkpoint-4")
    said = train(runs.data, moved, "--resume", "4").stderr
    assert "gradient_accumulation_steps is 2" in said
    after = losses(moved)
    assert sorted(after) == list(range(5, STEPS + 1))
    assert after == pytest.approx({step: losses(runs.whole)[step] for step in after}, abs=2e-5)


def test_the_files_of_every_process_are_checked_and_a_resume_falls_back(runs: Runs, tmp_path: Path) -> None:
    """ZeRO-3: each process has its own files, and each reads a part of all when the run is resumed."""
    every = {"max_steps": STEPS, "per_device_train_batch_size": 1, "zero_stage": 3}
    run = config(tmp_path / "run.json", runs.model, **every)
    output = run.with_suffix("")
    for step in (8, 10):
        shutil.copytree(runs.stage3.with_suffix("") / f"checkpoint-{step}", output / f"checkpoint-{step}")
    last = output / "checkpoint-10"
    states = [name for name in checkpoint.files(last) if name.endswith(".pt")]
    assert {"_rank_0_" in name for name in states} == {"_rank_1_" in name for name in states} == {True, False}
    listed = json.loads((last / checkpoint.COMPLETE).read_text())["files"]
    assert {name: tuple(entry) for name, entry in listed.items()} == {
        name: ((last / name).stat().st_size, xxhash.xxh3_128_hexdigest((last / name).read_bytes()))
        for name in checkpoint.files(last)
    }
    name = next(name for name in states if "_rank_1_" in name and "optim" in name)
    data = bytearray((last / name).read_bytes())
    data[len(data) // 2] ^= 16
    (last / name).write_bytes(data)
    said = run_to_end(2, runs.data, run, "--resume", "yes")
    note = f"note: {last}: {name}: is damaged or was edited; the run goes on from {output / 'checkpoint-8'}"
    assert said.count(note) == 1
    assert losses(run) == {step: losses(runs.stage3)[step] for step in (9, 10)}
    assert checkpoint.damage(last) == []


def test_the_number_of_processes_changes_nothing(runs: Runs, tmp_path: Path) -> None:
    alone = config(tmp_path / "alone.json", runs.model, max_steps=STEPS, per_device_train_batch_size=2)
    train(runs.data, alone)
    assert losses(alone) == pytest.approx(losses(runs.whole), abs=2e-5)


def test_a_cli_py_in_the_current_folder_is_not_run(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "cli.py").write_text("import pathlib; pathlib.Path('ran').touch(); raise SystemExit(3)")
    short = config(
        tmp_path / "short.json", runs.model, max_steps=1, per_device_train_batch_size=1, report_to=["tensorboard"]
    )
    printed = run_to_end(2, runs.data, short, cwd=tmp_path)
    assert "trained 1 step," in printed and losses(short) == {1: losses(runs.whole)[1]}
    assert not (tmp_path / "ran").exists()
    assert len(list((short.with_suffix("") / "tensorboard").iterdir())) == 1, "only the first process reports"


@pytest.mark.slow
def test_libraries_say_nothing_of_cpus_and_their_own_future(tmp_path: Path) -> None:
    """Read whole: a run with weights of 8 bits and an evaluation, its dry run, and its export."""
    pytest.importorskip("bitsandbytes")
    data, model = small_set(tmp_path / "data"), save_model(tmp_path / "model")
    more: dict[str, Any] = {"quantization_bit": 8, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    file = config(tmp_path / "run.json", model, save_strategy="steps", **more)
    said = []
    for arguments in (
        ["train", data, file, "--dry-run"], ["train", data, file],
        ["export", tmp_path / "run" / "checkpoint-1", tmp_path / "out", "--json"],
    ):  # fmt: skip
        command = [sys.executable, "-m", "cli", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=outside())
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    assert json.loads(done.stdout)["step"] == 1
    for text in ("Warning", "WARNING", "MatMul8bitLt", "accelerator", "gemm_4bit"):
        assert text not in "".join(said)
    assert "Model Card for" not in (tmp_path / "run" / "checkpoint-1" / "README.md").read_text(encoding="utf-8")
    libraries.need("train")
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)  # of a missing kernel


def test_a_message_that_concerns_all_processes_is_printed_once(runs: Runs, tmp_path: Path) -> None:
    typo = config(tmp_path / "typo.json", runs.model, learning_rat=1.0)
    printed = run_to_end(2, runs.data, typo, code=1)  # torchrun's own code
    assert printed.count("did you mean 'learning_rate'?") == 1
