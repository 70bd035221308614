"""What workers do, and that nothing depends on how many there are and how they were started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

import registry
from benchmarks.corpus import write
from compiler.encode.batch import Batch, trained_runs
from compiler.read import cut, named, open_source, read
from compiler.read import lines as lines_of_files
from compiler.sets.link import with_labels
from compiler.units import processes
from compiler.units.processes import Original, Worker
from schemas.errors import InputError
from tests.support.command import outside
from tests.support.encoders import long_files
from tests.support.sets import manifest

Run = Callable[..., Result]
_CUT = "from tests.support.workers import shorter; shorter()"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three formats; more units than one process compiles by itself."""
    return write(tmp_path_factory.mktemp("corpus"), 3000)


def compiled(files: list[Path], out: Path, *arguments: object, copies: bool = True) -> dict[str, Any]:
    """Compile with an empty cache of its own; return the summary."""
    main = f"from compiler.units import processes; processes.CAN_FORK = {copies}; import cli; {_CUT}; cli.main()"
    given = [*files, "--cache", f"{out}-cache", "-o", out, "--val-size", "0.1", *arguments, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", main, "compile", *map(str, given)], cwd=files[0].parent,
        env=outside() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


# -- the same set --


@pytest.mark.slow
def test_a_set_does_not_depend_on_the_number_of_workers_and_how_they_were_started(
    files: list[Path], tmp_path: Path
) -> None:
    one = compiled(files, tmp_path / "1", "--workers", 1, "--pack", 4096)
    for workers, copies in ((2, True), (3, True), (8, True), (2, False), (3, False)):
        out = tmp_path / f"{workers}-{copies}"
        other = compiled(files, out, "--workers", workers, "--pack", 4096, copies=copies)
        assert other["digest"] == one["digest"]
        assert other["units_compiled"] == one["units_compiled"] > 4
        for path in sorted((tmp_path / "1").glob("*/*.arrow")):
            assert (out / path.relative_to(tmp_path / "1")).read_bytes() == path.read_bytes()


def test_workers_find_in_the_cache_what_this_process_did_not_look_up(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """It looks up the first ones alone, so that a large set that is linked again is read by all workers."""
    monkeypatch.setattr("compiler.units.plan.LOOKED_UP", 1)
    made, again = (
        json.loads(run("compile", *files, "--workers", "2", "-o", tmp_path / out, "--json").stdout) for out in "ab"
    )
    assert (again["units_compiled"], again["units_cached"]) == (0, made["units_compiled"])
    assert again["digest"] == made["digest"] and made["units_compiled"] > 4


def test_a_file_that_is_named_twice_is_compiled_once(run: Run, tmp_path: Path) -> None:
    first = long_files(tmp_path, 4000)[0]
    second = Path(tmp_path / "again.jsonl")
    second.write_bytes(first.read_bytes())
    given = ["compile", first, second, "--workers", "2", "-o", tmp_path / "out", "--json"]
    summary = json.loads(run(*given).stdout)
    units = summary["units_compiled"]
    assert units > 4
    assert summary["balance"]["in_shards"] == 8000
    mine, its = (one["files"][0] for one in manifest(tmp_path / "out")["datasets"])
    assert mine["digest"] == its["digest"]
    alone = json.loads(run("compile", first, "-o", tmp_path / "one", "--json").stdout)
    assert (alone["units_compiled"], alone["units_cached"]) == (0, units)


# -- units of lines --


def lines_of(data: bytes) -> list[tuple[int, int]]:
    """The ranges of the lines."""
    ends = [at + 1 for at, byte in enumerate(data) if byte == 10]
    if not data.endswith(b"\n"):
        ends.append(len(data))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def by_the_rule(data: bytes, target: int) -> list[tuple[int, int]]:
    """The ranges of the units: every line is looked at, and asked whether a unit ends with it."""
    units, begin = [], 0
    for start, end in lines_of(data):
        chance = (end - start) * (1 << 33) // target
        chosen = (end - begin) * 4 >= target and zlib.crc32(data[max(start, end - 64) : end], end - start) < chance
        if chosen or end - begin >= 2 * target:
            units.append((begin, end))
            begin = end
    if begin < len(data):
        units.append((begin, len(data)))
    return [(a, b) for a, b in units if not data[a:b].isspace()]


class Elsewhere:
    """Calls a function when its result is asked for."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.result = partial(function, *args)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.one_of(st.just(b""), st.binary(max_size=12).map(lambda some: some.replace(b"\n", b"."))), min_size=1),
    st.integers(1, 40),
    st.booleans(),
)
def test_files_of_lines_are_cut_by_the_rule(lines: list[bytes], target: int, ended: bool) -> None:
    data = b"x\n" + b"\n".join(lines) + b"\n" * ended
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"cut-{os.getpid()}.txt"
    path.write_bytes(data)
    try:
        found = list(cut(open_source(path), target))
        later = list(cut(open_source(path), target, digests=lambda: False))
        assert [(unit.offset, unit.offset + unit.length) for unit in found] == by_the_rule(data, target)
        assert [unit.line for unit in found] == [data.count(b"\n", 0, unit.offset) + 1 for unit in found]
        assert [replace(named(unit), data=None) for unit in later] == found
        assert {unit.digest for unit in later} == {""}
        with patch.object(lines_of_files, "STRETCH", 2):
            assert list(cut(open_source(path), target, digests=lambda: False, ask=lambda: Elsewhere)) == later
        for mine, its in zip(found, later, strict=True):
            assert list(read(mine)) == list(read(named(its)))
    finally:
        path.unlink()


def test_a_file_that_changes_while_others_cut_it_is_cut_to_its_end_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    lines = [b"%d\n" % number for number in range(4000)]
    path.write_bytes(b"".join(lines))
    with patch.object(lines_of_files, "STRETCH", 2):
        units = cut(open_source(path), 100, digests=lambda: False, ask=lambda: Elsewhere)
        first = next(units)
        path.write_bytes(b"".join([*lines, *lines]))
        ranges = [(one.offset, one.offset + one.length) for one in (first, *units)]
        assert ranges == by_the_rule(path.read_bytes(), 100)
        units = cut(open_source(path), 100, digests=lambda: False, ask=lambda: Elsewhere)
        next(units)
        path.write_bytes(b"".join(lines))
        with pytest.raises(InputError, match="changed since it was cut into units"):
            list(units)


def test_a_row_without_an_end_is_one_message_wherever_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_of_files, "MAX_ROW", 1 << 17)
    monkeypatch.setattr(lines_of_files, "STRETCH", 2)
    path = tmp_path / "a.txt"
    path.write_bytes(b"x\n" * 5000 + b"y" * (1 << 20))
    told = []
    for ask in (lambda: None, lambda: Elsewhere):
        with pytest.raises(InputError, match="more than 0 MiB") as error:
            list(cut(open_source(path), 1000, digests=lambda: False, ask=ask))
        told.append(str(error.value))
    assert told[0].split("byte")[0] == told[1].split("byte")[0]


def test_workers_cut_large_files(tmp_path: Path) -> None:
    files = write(tmp_path / "corpus", 9000)
    small = compiled(files, tmp_path / "small", "--workers", "2")
    with patch.dict(os.environ, {"STRETCH": "1", "CUT": str(tmp_path / "cut")}):
        mine = compiled(files, tmp_path / "mine", "--workers", "2")
    assert (tmp_path / "cut").read_text().count("\n") >= 4
    assert mine["content_digest"] == small["content_digest"]
    assert mine["units_compiled"] == small["units_compiled"]


def test_a_unit_that_changed_after_it_was_cut_is_noticed_by_whoever_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    [unit] = cut(open_source(path), digests=lambda: False)
    path.write_text('{"a": 1}\n{"a": 3}\n')
    with pytest.raises(InputError, match="changed since it was cut into units"):
        named(unit)


# -- processes --


@pytest.fixture
def original() -> Any:
    if not processes.CAN_FORK:
        pytest.skip("processes are not copied here")
    original = Original.fresh()
    yield original
    original.no_more()
    original.stop(5)
    original.close()


def _has_loaded(name: str) -> bool:
    return name in sys.modules


def test_a_copy_has_what_its_original_loaded_and_neither_ends_with_the_other(original: Original) -> None:
    assert original.ask(_has_loaded, "wave") is False
    original.ask(exec, "import colorsys")
    first, second = original.copy(), original.copy()
    assert first.ask(_has_loaded, "colorsys") and second.ask(_has_loaded, "colorsys")
    assert len({one.ask(os.getpid) for one in (original, first, second)}) == 3
    gone = first.ask(os.getpid)
    os.kill(gone, signal.SIGKILL)
    with pytest.raises(InputError, match="a worker process was killed"):
        first.receive()
    assert second.ask(len, "abc") == original.ask(len, "abc") == 3
    end = time.monotonic() + 10
    while Path(f"/proc/{gone}").exists() and time.monotonic() < end:  # nobody need wait for it
        time.sleep(0.01)
    assert not Path(f"/proc/{gone}").exists()
    for one in (first, second):
        one.no_more()
        one.stop(5)
        one.close()


def test_neither_side_waits_for_the_other_where_both_send_more_than_a_socket_holds() -> None:
    worker = Worker.fresh()
    much = b"x" * (4 << 20)
    for _ in range(8):
        worker.send(bytes, much)
    assert [len(worker.receive()) for _ in range(8)] == [len(much)] * 8
    worker.no_more()
    worker.stop(5)
    worker.close()


def test_what_is_wrong_with_a_template_is_said_before_what_is_wrong_with_a_file(run: Run, tmp_path: Path) -> None:
    """Units are compiled while the template is being proven."""
    tokenizer = Path(shutil.copytree(registry.DEMO_TOKENIZER, tmp_path / "tokenizer"))
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m.content[::-1] }}{% endfor %}"
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))
    for extra in tokenizer.glob("*.jinja"):
        extra.unlink()
    given = ["compile", *long_files(tmp_path, 1000), "--tokenizer", tokenizer, "--workers", "2"]
    errors = {run(*given, "-o", tmp_path / "out", code=4).stderr.split("error: ")[-1] for _ in range(2)}
    assert [error.splitlines()[0] for error in errors] == [
        "chat template: the reply of message 2 ends without a stop token"
    ]


# -- what an object holds in place of labels --


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), max_size=6))
def test_the_labels_of_a_shard_are_those_that_an_object_holds_as_run_lengths(rows: list[list[bool]]) -> None:
    trained = np.array([one for row in rows for one in row], np.bool_)
    edges = np.cumsum([0, *map(len, rows)])
    ids = np.arange(100, 100 + len(trained), dtype=np.int32)
    runs, counts = trained_runs(trained, edges)
    lists = with_labels(
        {"input_ids": (edges, ids), "trained": (np.concatenate([[0], np.cumsum(counts)]), runs), "spans": (edges, ids)}
    )
    assert list(lists) == ["input_ids", "labels", "spans"]
    offsets, labels = lists["labels"]
    assert offsets.tolist() == edges.tolist()
    assert labels.tolist() == [int(token) if one else -100 for token, one in zip(ids, trained, strict=True)]
    assert all(len(runs[a:b]) and (runs[a + 1 : b] > 0).all() for a, b in zip(*_pairs(counts), strict=True))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.booleans(), max_size=9), max_size=6))
def test_the_trained_tokens_of_each_sequence_are_counted_of_empty_ones_too(rows: list[list[bool]]) -> None:
    weights = np.array([one for row in rows for one in row], np.float32)
    none = np.empty(0, np.int64)
    edges = np.cumsum([0, *map(len, rows)])
    batch = Batch(weights.astype(np.int32), weights, edges, [], none, none, np.zeros(len(rows) + 1, np.int64))
    assert batch.num_trained == list(map(sum, rows))
    assert batch.trained_runs[1].sum() == len(batch.trained_runs[0])


def _pairs(counts: Any) -> tuple[list[int], list[int]]:
    ends = np.cumsum(counts).tolist()
    return [0, *ends][: len(ends)], ends
