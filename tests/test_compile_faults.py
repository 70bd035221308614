"""What a compile does when something is killed, fails or is in its way: one message, and nothing of others is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.faults_kills import workers_of
from compiler.units.processes import Worker
from schemas.errors import InputError
from tests.support.command import outside

CLI = [sys.executable, "-m", "cli"]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of more units than are compiled without workers."""
    file = tmp_path_factory.mktemp("big") / "big.jsonl"
    said = "say it again " * 80
    file.write_text("".join(f'{{"instruction": "{said}{n}", "output": "b"}}\n' for n in range(6000)))
    return file


# -- workers --


@pytest.mark.parametrize(("worker", "after"), [(0, 0.0), (1, 0.0), (0, 0.7)])
def test_a_worker_that_is_killed_ends_the_run_in_one_message(
    big: Path, tmp_path: Path, worker: int, after: float
) -> None:
    command = [*CLI, "compile", big, "--workers", "2", "--cache", tmp_path / "cache", "-o", tmp_path / "out"]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, env=outside()) as process:
        while process.poll() is None and len(workers := workers_of(process.pid)) <= worker:
            time.sleep(0.0005)
        time.sleep(after)
        os.kill(workers[worker], signal.SIGKILL)
        _, stderr = process.communicate(timeout=20)  # 10 on a machine that is not busy
    assert process.returncode == 5
    assert stderr.count("error:") == 1
    assert "error: workers: a worker process was killed, most often for memory\n  Run again with fewer" in stderr
    assert not any(Path(f"/proc/{one}").exists() for one in workers)
    assert not (tmp_path / "out").exists()


def test_an_allocation_that_fails_in_a_worker_is_told_as_one_that_killed_it() -> None:
    worker = Worker()
    with pytest.raises(InputError, match=r"no memory left\n  Run again with fewer --workers"):
        worker.ask(bytearray, 1 << 60)
    assert worker.ask(len, b"abc") == 3  # and it goes on
    with pytest.raises(ZeroDivisionError) as raised:
        worker.ask(divmod, 1, 0)
    assert "In a worker process:" in raised.value.__notes__[0]
    worker.no_more()
    worker.stop(10)
    worker.close()


def test_a_process_without_memory_ends_with_one_message(tmp_path: Path) -> None:
    limited = "import resource, cli; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); cli.main()"
    with (tmp_path / "one.jsonl").open("wb") as file:
        file.write(b'{"instruction": "a", "output": "b"}\n')
        file.truncate(3 << 30)  # its last line is of zeros
    command = [sys.executable, "-c", limited, "compile", "one.jsonl", "--cache", "cache", "-o", "out"]
    root = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        command, cwd=tmp_path, env=outside() | root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 5, done.stderr
    assert "error: memory: the process has none left" in done.stderr
    assert "Traceback" not in done.stderr
