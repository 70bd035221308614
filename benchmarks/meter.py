"""The time that a command takes, and the memory of all its processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVERY = 0.2
"""Seconds between two readings of the memory."""


@dataclass(frozen=True)
class Measured:
    """Seconds from start to finish, and the most bytes at once: each shared page counts once (PSS).

    `main` are the seconds of a processor that the process itself took, without those that it started.
    """

    seconds: float
    peak: int
    main: float = 0.0
    marks: tuple[tuple[float, float], ...] = ()
    """When each line of a file was there: seconds since the start, and those of a processor that it had taken."""


def run(*arguments: object, lines_of: Path | None = None, root: Path = ROOT) -> Measured:
    """Run `python -m ...` in the project's folder; CalledProcessError with its messages if it fails.

    `lines_of` is a file that the process writes line by line. `root` is the folder, of another version for example.
    """
    command = [sys.executable, "-m", *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        peak, spent = [0], [0.0]
        marks: list[tuple[float, float]] = []
        watcher = threading.Thread(target=_watch, args=(process, peak, spent, marks, lines_of))
        watcher.start()
        _, stderr = process.communicate()
        seconds = time.perf_counter() - start
        watcher.join()
    if process.returncode:
        raise subprocess.CalledProcessError(
            process.returncode, command, stderr=stderr.decode("utf-8", "replace")[-2000:]
        )
    return Measured(seconds, peak[0], spent[0], tuple(marks))


def _watch(
    process: subprocess.Popen[bytes],
    peak: list[int],
    spent: list[float],
    marks: list[tuple[float, float]],
    lines_of: Path | None,
) -> None:
    looked, start = 0.0, time.perf_counter()
    while process.poll() is None:
        with suppress(OSError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            spent[0] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if lines_of:
            with suppress(OSError):
                new = lines_of.read_bytes().count(b"\n") - len(marks)
                marks += [(time.perf_counter() - start, spent[0])] * new
        if time.monotonic() - looked > EVERY:
            looked = time.monotonic()
            peak[0] = max(peak[0], sum(map(_bytes_of, _family(process.pid))))
        time.sleep(EVERY / 10)


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in _family(int(child)))]


def _bytes_of(pid: int) -> int:
    """The memory of a process; 0 if it is gone, or if /proc does not tell."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
