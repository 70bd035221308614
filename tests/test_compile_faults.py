"""What a compile does when something is killed, fails or is in its way: one message, and nothing of others is lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.faults_kills import workers_of
from cli import main
from compiler.cache import halves
from compiler.read import cut, open_source, read
from compiler.units.processes import Worker
from schemas import lease
from schemas.errors import InputError
from tests.support.command import outside, runner

CLI = [sys.executable, "-m", "cli"]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of more units than are compiled without workers."""
    file = tmp_path_factory.mktemp("big") / "big.jsonl"
    said = "say it again " * 80
    file.write_text("".join(f'{{"instruction": "{said}{n}", "output": "b"}}\n' for n in range(6000)))
    return file


# -- workers --


@pytest.mark.parametrize("start", ["copies", "fresh"])
@pytest.mark.parametrize(("worker", "after"), [(0, 0.0), (1, 0.0), (3, 0.0), (0, 0.7)])
def test_a_worker_that_is_killed_ends_the_run_in_one_message(
    big: Path, tmp_path: Path, worker: int, after: float, start: str
) -> None:
    """The original that makes the others, the checker, or a worker; each is a fresh process where none is copied."""
    main = f"from compiler.units import processes; processes.CAN_FORK = {start == 'copies'}; import cli; cli.main()"
    given = [big, "--workers", "3", "--cache", tmp_path / "cache", "-o", tmp_path / "out"]
    command = [sys.executable, "-c", main, "compile", *map(str, given)]
    root = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=outside() | root) as process:
        while process.poll() is None and len(workers := workers_of(process.pid)) <= worker:
            time.sleep(0.0005)
        time.sleep(after)
        os.kill(workers[worker], signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)  # 3 on a machine that is not busy
    assert process.returncode == 5
    assert stderr.count("error:") == 1
    assert "error: workers: a worker process was killed, most often for memory\n  Run again with fewer" in stderr
    assert not any(Path(f"/proc/{one}").exists() for one in workers)
    assert not (tmp_path / "out").exists()


def test_an_allocation_that_fails_in_a_worker_is_told_as_one_that_killed_it() -> None:
    worker = Worker.fresh()
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
    (tmp_path / "one.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "t").mkdir()
    with (tmp_path / "t" / "tokenizer.json").open("wb") as file:
        file.truncate(3 << 30)
    command = [sys.executable, "-c", limited, "compile", "one.jsonl", "--tokenizer", "t", "--cache", "cache", "-o", "o"]
    root = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        command, cwd=tmp_path, env=outside() | root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 5, done.stderr
    assert "error: memory: the process has none left" in done.stderr
    assert "Traceback" not in done.stderr


# -- the cache --


def test_half_written_files_of_a_killed_run_are_removed_by_the_next_and_those_of_others_are_not(tmp_path: Path) -> None:
    row, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    row.write_text('{"instruction": "a", "output": "b"}\n')
    (cache / "objects" / halves.HALVES).mkdir(parents=True)
    for folder in ("objects/00", "media/ab", "outgoing/mine", "stdin"):
        (cache / folder).mkdir(parents=True, exist_ok=True)
    others = ["objects/tmp/mine", "objects/00/mine.arrow", "media/ab/photo.png", "outgoing/mine/x", "stdin/mine.txt"]
    others.append(f"objects/tmp/{'0' * 8}-{'1' * 40}.json-abcd1234")  # of another machine, which may be writing it
    ours = f"objects/tmp/{halves.machine()}-{'1' * 40}.arrow-abcd1234"
    for name in (*others, ours):
        (cache / name).touch()
    compiled = runner().invoke(main, ["compile", str(row), "--cache", str(cache), "-o", str(tmp_path / "out")])
    assert compiled.exit_code == 0
    assert not (cache / ours).exists()
    with (cache / ".lock").open() as lock:  # a run is at it
        fcntl.flock(lock, fcntl.LOCK_SH)
        (cache / ours).touch()
        again = runner().invoke(main, ["compile", str(row), "--cache", str(cache), "-o", str(tmp_path / "out")])
        assert again.exit_code == 0
        assert (cache / ours).exists()
    assert runner().invoke(main, ["cache", "prune", "--cache", str(cache), "--keep", "0"]).exit_code == 0
    assert all((cache / name).exists() for name in others[:-1])
    assert not (cache / ours).exists()


# -- file systems without flock --


def no_locks(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_file_system_without_locks_gets_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, out, cache = tmp_path / "a.jsonl", tmp_path / "out", tmp_path / "cache"
    row.write_text('{"instruction": "a", "output": "b"}\n')
    monkeypatch.setattr(fcntl, "flock", no_locks)
    command = ["compile", str(row), "--cache", str(cache), "-o", str(out)]
    done = runner().invoke(main, command)
    assert done.exit_code == 0
    assert (
        f"{out}: its file system has no locks (No locks available); a lease, .lease, takes their place" in done.stderr
    )
    assert not [*out.glob(".*"), *cache.glob(".lease*")]

    with subprocess.Popen([sys.executable, "-c", "input()"], stderr=subprocess.DEVNULL, stdin=subprocess.PIPE) as other:
        held = lease.holder() | {"pid": other.pid, "start": lease._start(other.pid)}
        for folder, arguments in ((out, command), (cache, command), (cache, ["cache", "prune", "--cache", str(cache)])):
            (folder / ".lease").write_text(json.dumps(held))
            refused = runner().invoke(main, arguments)
            assert refused.exit_code == 6
            assert f"it is in use by process {other.pid} on {held['host']}" in refused.stderr
            assert f"remove {folder}/.lease" in refused.stderr
            (folder / ".lease").unlink()
        assert not [*out.glob(".lease*"), *cache.glob(".lease*")]
        for gone, taken in (({"host": "another"}, False), ({"boot": "before"}, True), ({"start": "1"}, True)):
            (out / ".lease").write_text(json.dumps(held | gone))
            done = runner().invoke(main, command)
            assert done.exit_code == (0 if taken else 6), done.stderr
            assert ("its holder is gone, and the lease is taken over" in done.stderr) == taken
            (out / ".lease").unlink(missing_ok=True)
        (out / ".lease").write_text(json.dumps(held))
        other.kill()
        other.wait()
        assert runner().invoke(main, command).exit_code == 0
    assert not [*out.glob(".*"), *cache.glob(".lease*")]


# -- sources that change while they are read --


@pytest.mark.parametrize("limited", [False, True])
def test_a_table_that_changes_while_its_rows_are_read_is_told_before_anything_is_kept(
    tmp_path: Path, limited: bool
) -> None:
    path = tmp_path / "a.parquet"

    def write(text: str) -> None:
        pq.write_table(pa.table({"instruction": [f"{text} {n}" for n in range(3000)]}), path)

    write("old")
    (unit,) = cut(open_source(path))
    rows = read(replace(unit, rows=2000) if limited else unit)
    assert next(rows).value == {"instruction": "old 0"}
    write("new")
    with pytest.raises(InputError, match="changed since it was cut"):
        list(rows)


def test_a_stream_of_a_table_that_changes_while_it_is_cut_is_told(tmp_path: Path) -> None:
    path, table = tmp_path / "a.arrow", pa.table({"instruction": ["a"] * 4000})

    def write() -> None:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)

    write()
    units = cut(open_source(path))
    next(units)
    write()
    with pytest.raises(InputError, match="changed since it was cut"):
        list(units)
