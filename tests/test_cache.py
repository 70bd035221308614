"""`cli cache`: what is in the cache, whether it is whole, and that pruning never takes what a compile uses."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

import cli
from compiler.cache import prune, records
from compiler.commands.cache_report import parse_age, parse_size
from schemas.errors import UsageError
from tests.support.command import runner

ROOT = Path(__file__).resolve().parent.parent
DAY = 86400.0


def run(*arguments: object, code: int = 0) -> Result:
    result = runner().invoke(cli.main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, f"exit {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def said(*arguments: object, code: int = 0) -> dict[str, Any]:
    return json.loads(run("cache", *arguments, "--json", code=code).stdout)


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, count: int = 5) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'{{"instruction": "{name} {n}?", "output": "{n}."}}\n' for n in range(count)))
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def compile_(folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Compile files and return the summary."""

    def compile_files(*files: Path) -> dict[str, Any]:
        result = run("compile", *files, "--cache", folder, "-o", tmp_path / "out", "--workers", "1", "--json")
        return json.loads(result.stdout)

    return compile_files


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted((folder / "objects").rglob("*")) if path.is_file()}


def age(folder: Path, key: str, days: float) -> None:
    """Make an entry look as if it had been used so many days ago."""
    path = next((folder / "objects").rglob(f"{key}.json"))
    os.utime(path, (time.time() - days * DAY,) * 2)


# -- list --


def test_list_counts_what_is_on_the_disk(folder: Path, compile_: Any, rows: Any) -> None:
    compile_(rows("a", 5), rows("b", 7))
    found = said("list", "--cache", folder)
    files = files_of(folder)
    objects_ = [path for path in files if path.suffix == ".arrow"]
    assert (found["objects"], found["records"]) == (len(objects_), len(files) - 2 * len(objects_))
    assert found["bytes"] == sum(map(len, files.values()))
    assert [(entry["name"], entry["rows"], entry["objects"]) for entry in found["datasets"]] == [
        ("a", 5, 1),
        ("b", 7, 1),
    ]
    assert [entry["usable"] for entry in found["versions"]] == [True]
    assert found["versions"][0]["made_by"]["pyarrow"] == pa.__version__
    text = run("cache", "list", "--cache", folder).stdout
    assert "2 objects" in text
    assert "this version" in text
    assert "just now" in text


def test_an_empty_cache_and_a_missing_one(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    assert said("list", "--cache", folder)["objects"] == 0
    assert "no such folder" in run("cache", "list", "--cache", tmp_path / "none", code=5).stderr


def test_using_an_object_is_remembered_and_looking_at_it_is_not_using_it(
    folder: Path, compile_: Any, rows: Any
) -> None:
    compile_(rows("a"), rows("b"))
    for entry in prune.entries(folder):
        age(folder, entry.key, 10)
    run("cache", "list", "--cache", folder)
    run("cache", "verify", "--cache", folder)
    assert compile_(rows("a"))["units_cached"] == 1
    old = {entry.dataset for entry in prune.entries(folder) if time.time() - entry.used > 9 * DAY}
    assert "b" in old
    assert "a" not in old


def test_what_made_a_record_reaches_no_manifest(compile_: Any, rows: Any) -> None:
    first = compile_(rows("a"))
    assert first["units_compiled"] == 1
    again = compile_(rows("a"))
    assert again["units_cached"] == 1
    assert again["digest"] == first["digest"]


def test_objects_of_another_version_are_told_apart_and_pruned_alone(
    folder: Path, compile_: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_(rows("a"))
    ours = files_of(folder)
    with monkeypatch.context() as other_version:
        other_version.setattr(records, "code_digest", lambda: "0" * 64)
        other_version.setattr(records, "maker", records.maker.__wrapped__)
        assert compile_(rows("a"), rows("b"))["units_compiled"] == 2
    versions = said("list", "--cache", folder)["versions"]
    assert [(entry["usable"], entry["objects"]) for entry in versions] == [(True, 1), (False, 2)]
    assert "not usable" in run("cache", "list", "--cache", folder).stdout
    assert said("prune", "--cache", folder, "--other-versions")["objects"] == 2
    assert files_of(folder) == ours
    assert compile_(rows("a"))["units_cached"] == 1


def test_a_change_of_the_source_makes_objects_stale_only_where_it_can_decide_bytes(tmp_path: Path, rows: Any) -> None:
    file, code = rows("a"), tmp_path / "code"
    for name in ("compiler", "registry", "schemas", "trainer"):
        shutil.copytree(ROOT / name, code / name)
    shutil.copy(ROOT / "cli.py", code)

    def units_compiled() -> int:
        command = [sys.executable, "-m", "cli", "compile", file, "--cache", tmp_path / "cache", "-o", tmp_path / "out"]
        done = subprocess.run([*command, "--json"], cwd=code, check=True, capture_output=True)
        return int(json.loads(done.stdout)["units_compiled"])

    assert units_compiled() == 1
    for room in ("inspect", "commands", "sets", "datasets"):
        for path in (code / "compiler" / room).glob("*.py"):
            path.write_text(path.read_text("utf-8") + "# another version\n", "utf-8")
    assert units_compiled() == 0
    with (code / "compiler" / "encode" / "weigh.py").open("a") as weigh:
        weigh.write("# another version\n")
    assert units_compiled() == 1


# -- verify --


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["rows", "record", "rows gone", "record of another"])
def test_verify_names_what_is_damaged_and_removes_it_when_asked(
    folder: Path, compile_: Any, rows: Any, what: str
) -> None:
    files = rows("a"), rows("b")
    digest = compile_(*files)["digest"]
    assert "everything is whole" in run("cache", "verify", "--cache", folder).stdout
    one, other = sorted((folder / "objects").rglob("*.arrow"))
    damaged = one if what.startswith("rows") else one.with_suffix(".json")
    if what == "rows gone":
        one.unlink()
    elif what == "record of another":
        damaged.write_bytes(other.with_suffix(".json").read_bytes())
    else:
        flip(damaged)
    found = said("verify", "--cache", folder, code=4)
    assert list(found["damaged"]) == [str(damaged)]
    assert found["ok"] is False
    assert str(damaged) in run("cache", "verify", "--cache", folder, code=4).stderr
    assert said("verify", "--cache", folder, "--remove")["removed"] is True
    assert "everything is whole" in run("cache", "verify", "--cache", folder).stdout
    assert not one.exists()
    assert other.exists()
    again = compile_(*files)
    assert (again["digest"], again["units_compiled"], again["units_cached"]) == (digest, 1, 1)


# -- prune --


def test_prune_removes_what_was_unused_for_so_long(folder: Path, compile_: Any, rows: Any) -> None:
    compile_(rows("a"), rows("b"))
    keys = {entry.dataset: entry.key for entry in prune.entries(folder)}
    age(folder, keys["a"], 31)
    age(folder, keys["b"], 29)
    before = files_of(folder)
    would = said("prune", "--cache", folder, "--unused-for", "30d", "--dry-run")
    assert files_of(folder) == before
    done = said("prune", "--cache", folder, "--unused-for", "30d")
    assert done == would | {"dry_run": False}
    assert done["keys"] == [keys["a"]]
    assert sum(map(len, before.values())) - sum(map(len, files_of(folder).values())) == done["bytes"]


def test_prune_keeps_the_most_recently_used(folder: Path, compile_: Any, rows: Any) -> None:
    compile_(rows("a"), rows("b"), rows("c"))
    for days, name in enumerate("cab"):  # c is the most recent
        age(folder, {entry.dataset: entry.key for entry in prune.entries(folder)}[name], days + 1)
    bound = sum(entry.bytes for entry in prune.entries(folder) if entry.dataset != "b")
    run("cache", "prune", "--cache", folder, "--keep", bound)
    assert {entry.dataset for entry in prune.entries(folder)} == {"a", "c", None}
    run("cache", "prune", "--cache", folder, "--keep", "0")
    assert files_of(folder) == {}


entry_strategy = st.builds(
    prune.Entry,
    key=st.uuids().map(str),
    kind=st.sampled_from(["object", "record", "damaged"]),
    bytes=st.integers(0, 1000),
    used=st.floats(0, 1e9),
    usable=st.booleans(),
    made_by=st.just({}),
    dataset=st.none(),
    rows=st.just(0),
)


@given(st.lists(entry_strategy, unique_by=lambda entry: entry.key, max_size=30), st.integers(0, 5000))
def test_what_is_kept_fits_and_was_used_after_what_was_removed_for_room(found: list[prune.Entry], keep: int) -> None:
    found.sort(key=lambda entry: entry.used)
    chosen = prune.choose(found, keep=keep)
    kept = [entry for entry in found if entry not in chosen]
    assert sum(entry.bytes for entry in kept) <= keep
    assert all(entry.kind != "damaged" for entry in kept)
    for_room = [entry for entry in chosen if entry.kind != "damaged"]
    assert all(removed.used <= left.used for removed in for_room for left in kept)
    if for_room:  # and no more was removed than had to be
        assert sum(entry.bytes for entry in kept) + for_room[-1].bytes > keep


def test_prune_takes_what_killed_runs_left_and_nothing_else(folder: Path, compile_: Any, rows: Any) -> None:
    compile_(rows("a"))
    before = files_of(folder)
    one = next((folder / "objects").rglob("*.arrow"))
    (one.parent / f".{one.name}.x1y2").write_bytes(b"half")
    (one.parent / f"{'0' * 40}.arrow").write_bytes(b"rows without a record")
    (folder / "outgoing" / ("5" * 16) / ".partial").mkdir(parents=True)
    (folder / "outgoing" / ("5" * 16) / ".partial" / "shard").write_bytes(b"x" * 100)
    assert said("list", "--cache", folder)["left_over"] == {"files": 3, "bytes": 4 + 21 + 100}
    assert "belong to killed runs" in run("cache", "list", "--cache", folder).stdout
    assert said("prune", "--cache", folder)["left_over"] == 3
    assert files_of(folder) == before
    assert said("list", "--cache", folder)["left_over"] == {"files": 0, "bytes": 0}


def test_nothing_is_pruned_while_a_compile_runs(folder: Path, rows: Any, tmp_path: Path, compile_: Any) -> None:
    """A real compile, stopped in the middle by the operating system, with its first objects made."""
    compile_(rows("a"))
    source = rows("many", 30_000)
    command = [sys.executable, "-m", "cli", "compile", source, rows("a"), "-o", tmp_path / "big", "--workers", "1"]
    with subprocess.Popen([*map(str, command), "--cache", str(folder)], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not any(entry.dataset == "many" for entry in prune.entries(folder)):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGSTOP)
            before = files_of(folder)
            for options in (["--keep", "0"], ["--unused-for", "0m"], []):
                assert (
                    "a compile is using the cache" in run("cache", "prune", "--cache", folder, *options, code=6).stderr
                )
            run("cache", "verify", "--cache", folder, "--remove", code=6)
            run("cache", "prune", "--cache", folder, "--keep", "0", "--dry-run")
            assert files_of(folder) == before
            process.send_signal(signal.SIGCONT)
            assert process.wait(120) == 0
        finally:
            process.kill()
    run("verify", tmp_path / "big")
    run("cache", "prune", "--cache", folder, "--keep", "0")
    assert files_of(folder) == {}


def test_a_compile_waits_for_a_prune_and_says_so(folder: Path, rows: Any, tmp_path: Path) -> None:
    folder.mkdir()
    command = [sys.executable, "-m", "cli", "compile", rows("a"), "-o", tmp_path / "out", "--cache", folder]
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            assert any(f"waiting until {folder} is pruned" in line for line in lines)
            assert process.poll() is None
            fcntl.flock(lock, fcntl.LOCK_UN)
            process.stderr.read()
            assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("10", 10), ("10GB", 10**10), ("500 MB", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("2tb", 2 * 10**12)],
)
def test_sizes_are_written_as_people_write_them(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("30d", 30 * DAY), ("12h", DAY / 2), ("45m", 2700), ("2w", 14 * DAY)])
def test_ages_are_written_as_people_write_them(text: str, expected: float) -> None:
    assert parse_age(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "10 apples", "1e9", "30d"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "30y", "1d2h"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a time"):
        parse_age(text)


@pytest.mark.parametrize("name", ["list", "verify", "prune"])
def test_every_command_has_help_with_examples_and_exit_codes(name: str) -> None:
    text = run("cache", name, "--help").stdout
    assert f"cli cache {name}" in text.partition("Examples")[2]
    assert "Exit codes:" in text
