"""`cli doctor` says what is there, missing or broken, and never falls over it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import runner
from trainer.doctor import finding, machine

ROOT = Path(__file__).resolve().parent.parent
EXAMINE = """
import sys
from trainer.doctor import machine
asked = sys.argv[1:] or machine.PACKAGES
machine.PACKAGES = {name: entry for name, entry in machine.PACKAGES.items() if name in asked}
print(machine.as_json(machine.examine()))
"""


def examined(python: Path, *places: Path, only: Iterable[str] = (), cwd: Path = ROOT) -> dict[str, Any]:
    done = subprocess.run(
        [str(python), "-c", EXAMINE, *only], capture_output=True, text=True, timeout=300, check=True, cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*places, ROOT)))},
    )  # fmt: skip
    return json.loads(done.stdout)


def named(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(f for f in report["findings"] if f["name"] == name)


def test_a_machine_without_torch_is_told_what_to_install(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare")
    report = examined(tmp_path / "bare" / "bin" / "python", cwd=tmp_path)
    assert not report["ready"]
    assert named(report, "python")["status"] == "ok"
    for name in ("torch", "transformers", "peft", "deepspeed"):
        assert named(report, name)["status"] == "missing", name
        assert f"pip install -e '{ROOT}[train]'" in named(report, name)["hint"]
    assert named(report, "ray")["status"] == "missing" and not named(report, "ray")["needed"]
    assert "Not needed" in named(report, "ninja")["hint"] and "Not needed" in named(report, "g++")["hint"]
    assert named(report, "disk")["found"].endswith(str(tmp_path))


def test_broken_packages_are_named_and_the_others_still_looked_at(tmp_path: Path) -> None:
    """A torch_npu without CANN fails so; a package that takes its process along must not take the doctor's."""
    broken = {
        "torch_npu": "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')",
        "ray": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "flash_attn": "import missing_part_of_it",
        "bitsandbytes": "print('hello'); __version__ = '0.1'",
    }
    for name, code in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code, encoding="utf-8")
    report = examined(Path(sys.executable), tmp_path, only=[*broken, "sacrebleu"])
    npu = named(report, "npu")
    assert npu["status"] == "broken" and "libhccl.so" in npu["found"]
    assert "Begin with what is missing above" in npu["hint"] and "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in npu["hint"]
    assert named(report, "npu driver")["status"] == named(report, "cann")["status"] == "missing"
    assert not report["ready"]  # an NPU that was meant to be used is not
    assert "ended the process with -11" in named(report, "ray")["found"]
    assert "missing_part_of_it" in named(report, "flash_attn")["found"]
    assert named(report, "bitsandbytes")["found"] == "0.1"
    for name in ("torch", "sacrebleu"):
        assert named(report, name)["status"] == "ok"
        assert named(report, name)["found"].startswith(importlib.metadata.version(name).split("+")[0])


def test_an_import_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "TIMEOUT", 1)
    monkeypatch.setitem(machine.PACKAGES, "slow", ("import time; time.sleep(60)", False, ""))
    slow = machine._package("slow")
    assert slow.status == "note" and "more than 1 seconds" in slow.found


def test_a_line_says_every_few_seconds_that_imports_go_on(tmp_path: Path) -> None:
    """Every 8 seconds by default; here at once, so that the test is short."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("import time; time.sleep(3)", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "import trainer.progress as p; p.EVERY = 0.2\n" + EXAMINE, "ray"],
        capture_output=True, text=True, timeout=300, check=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    assert re.search(r"^importing packages: \d of 3 packages, .*0:0\d", done.stderr, re.MULTILINE), done.stderr
    assert named(json.loads(done.stdout), "ray")["found"]


def test_the_terminal_gets_a_line_each_and_a_verdict() -> None:
    found = [
        finding.MachineFinding("torch", "ok", "2.13.0", needed=True),
        finding.MachineFinding("peft", "missing", "not installed", "pip install it", needed=True),
        finding.MachineFinding("ray", "missing", "not installed"),
    ]
    lines = list(machine.lines(found))
    assert lines[0].split() == ["ok", "torch", "2.13.0"]
    assert lines[2].strip() == "pip install it"
    assert lines[-1] == "This machine cannot train yet: peft is missing."
    assert list(machine.lines(found[::2]))[-1] == "This machine can train."


def test_the_command_prints_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:

    from cli import main

    monkeypatch.setattr(machine, "examine", lambda: [finding.MachineFinding("torch", "ok", "2", needed=True)])
    printed = runner().invoke(main, ["doctor", "--json"], catch_exceptions=False)
    assert printed.exit_code == 0
    assert json.loads(printed.stdout)["ready"] is True
    assert "This machine can train." in runner().invoke(main, ["doctor"]).stdout
