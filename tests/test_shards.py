"""What is published: columns, provenance, readers, the same bytes every time, and nothing damaged goes unnoticed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import jsonschema
import polars as pl
import pyarrow as pa
import pytest
from click.testing import Result

import registry
from cli import main
from compiler import pipeline
from compiler.sets.link import BATCH_ROWS
from compiler.sets.verify import find_damage
from schemas import schema
from schemas.errors import IntegrityError
from schemas.reader import CompiledSet
from tests.support.command import runner

Run = Callable[..., Result]
Row = dict[str, Any]

CLI = [sys.executable, "-m", "cli"]

LIST = pa.list_(pa.int32())
MEDIA = pa.list_(
    pa.struct(
        [("uri", pa.string()), ("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
         ("position", pa.int32()), ("num_tokens", pa.int32())]
    )
)  # fmt: skip
COLUMNS = {
    "input_ids": (LIST, False),
    "labels": (LIST, False),
    "loss_weights": (pa.list_(pa.float32()), True),
    "seq_lens": (LIST, False),
    "images": (MEDIA, False),
    "videos": (MEDIA, False),
    "dataset": (pa.string(), False),
    "file": (pa.string(), False),
    "row": (pa.int64(), False),
    "offset": (pa.int64(), True),
    "repeat": (pa.int32(), False),
    "num_trained": (pa.int32(), False),
    "spans": (pa.list_(pa.struct([("role", pa.string()), ("key", pa.string()), ("num_tokens", pa.int32())])), False),
    "part": (pa.int32(), False),
    "repairs": (pa.list_(pa.string()), True),
}
"""name: (type, nullable)"""


def compile_(*arguments: object) -> dict[str, Any]:
    """Run `cli compile` in this process; return its JSON summary."""
    result = runner().invoke(main, ["compile", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def verify(out: Path) -> tuple[int, list[str]]:
    """Run `cli verify`; return its exit code and the problems it names."""
    result = runner().invoke(main, ["verify", str(out), "--json"], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)["problems"] if result.stdout else [result.stderr]


def digest(out: Path) -> str:
    return str(manifest(out)["digest"])


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_bytes())


def rows(out: Path, split: str = "train") -> list[Row]:
    return list(CompiledSet.open(out).rows(split))


def alpaca(path: Path, questions: list[str]) -> Path:
    """Write one row a question."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"instruction": q, "output": f"About {q}."}, ensure_ascii=False) for q in questions)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


class Big(NamedTuple):
    """More units than are compiled in one process, by one worker and by two."""

    file: Path
    cache: Path
    one: Path
    two: Path
    summary: dict[str, Any]


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Big:
    folder = tmp_path_factory.mktemp("big")
    samples = [json.loads(line) for line in (registry.SAMPLES / "bench.jsonl").read_text("utf-8").splitlines()]
    roles = {"system": "system", "user": "user", "assistant": "assistant"}
    file, size, number = folder / "big.jsonl", 0, 0
    with file.open("w", encoding="utf-8") as lines:
        while size < 3_600_000:
            turns = samples[number % len(samples)]["conversations"]
            messages = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]
            messages[-1]["content"] += f" ({number})"
            line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
            lines.write(line)
            size, number = size + len(line.encode()), number + 1
    outs, summaries = [], []
    for workers in (2, 1):
        out = folder / f"out{workers}"
        options = [
            "--mix",
            "big,agent#100",
            "--max-repeats",
            "1",
            "--val-size",
            "40",
            "--workers",
            str(workers),
            "--json",
        ]
        command = [*CLI, "compile", str(file), *options, "--cache", str(folder / f"cache{workers}"), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, check=True)
        outs.append(out)
        summaries.append(json.loads(done.stdout))
    return Big(file, folder / "cache1", outs[1], outs[0], summaries[0])


class Mixed(NamedTuple):
    """A published set with two splits, two batches in train, weights above 1 and repeats, and how it was made."""

    out: Path
    cache: Path
    arguments: list[str]


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    folder = tmp_path_factory.mktemp("mixed")
    arguments = ["--mix", "agent:1,bench:3", "--self-cognition", "400", "--val-size", "60", "--workers", "1"]
    made = Mixed(folder / "out", folder / "cache", arguments)
    compile_(*arguments, "--cache", made.cache, "-o", made.out)
    return made


@pytest.fixture
def copy(mixed: Mixed, tmp_path: Path) -> Path:
    """A copy of the mixed set that may be damaged."""
    return Path(shutil.copytree(mixed.out, tmp_path / "copy"))


# -- columns --


def test_the_columns_are_those_of_the_design_with_their_types_and_nullability(mixed: Mixed) -> None:
    for path in sorted(mixed.out.glob("*/*.arrow")):
        found = pa.ipc.open_file(pa.memory_map(str(path))).schema
        assert {field.name: (field.type, field.nullable) for field in found} == COLUMNS
        assert found.names == list(COLUMNS)


def test_labels_are_the_ids_where_the_weight_is_above_zero(mixed: Mixed) -> None:
    emphasised = 0
    for row in rows(mixed.out) + rows(mixed.out, "val"):
        weights = row["loss_weights"] or [float(label != -100) for label in row["labels"]]
        assert row["labels"] == [i if w > 0 else -100 for i, w in zip(row["input_ids"], weights, strict=True)]
        assert row["num_trained"] == sum(w > 0 for w in weights) > 0
        assert row["seq_lens"] == [len(row["input_ids"])]
        assert sum(span["num_tokens"] for span in row["spans"]) == len(row["input_ids"])
        assert (row["images"], row["videos"]) == ([], [])
        emphasised += row["loss_weights"] is not None
    assert emphasised > 50  # the agent rows


@pytest.mark.parametrize(
    ("flags", "null"),
    [
        ({}, True),
        ({"loss": True}, True),
        ({"loss_scale": 1.0}, True),
        ({"loss_scale": 2.0}, False),
        ({"loss_scale": 0.5}, False),
        ({"loss": False}, True),  # what is left of the row is trained evenly
    ],
)
def test_loss_weights_are_null_exactly_when_every_trained_weight_is_1(
    run: Run, tmp_path: Path, flags: dict[str, Any], null: bool
) -> None:
    turns = [
        {"from": "human", "value": "a"}, {"from": "gpt", "value": "first reply"} | flags,
        {"from": "human", "value": "b"}, {"from": "gpt", "value": "second reply"},
    ]  # fmt: skip
    (tmp_path / "x.jsonl").write_text(json.dumps({"conversations": turns}))
    run("compile", tmp_path / "x.jsonl", "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert (row["loss_weights"] is None) == null
    if not null:
        assert set(row["loss_weights"]) == {0.0, flags["loss_scale"], 1.0}


def test_file_row_and_offset_lead_to_the_line_a_row_came_from(big: Big) -> None:
    data = big.file.read_bytes()
    lines = data.splitlines()
    seen = set()
    for row in rows(big.one) + rows(big.one, "val"):
        if row["dataset"] == "big":
            assert row["file"] == str(big.file)
            line = lines[row["row"]]
            assert data[row["offset"] : row["offset"] + len(line)] == line
            seen.add(row["row"])
    assert seen == set(range(len(lines)))


def test_a_repeat_is_numbered_and_otherwise_the_same_row(mixed: Mixed) -> None:
    found: dict[int, dict[int, list[int]]] = {}
    for row in rows(mixed.out) + rows(mixed.out, "val"):
        if row["dataset"] == "self-cognition":
            found.setdefault(row["row"], {})[row["repeat"]] = row["input_ids"]
    assert {len(uses) for uses in found.values()} == {3, 4}  # 400 rows from 128
    for uses in found.values():
        assert set(uses) == set(range(len(uses)))
        assert len({tuple(ids) for ids in uses.values()}) == 1


def test_blank_lines_are_not_rows(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        '\n{"instruction": "a", "output": "b"}\n\n \n{"instruction": "c", "output": "d"}\n'
    )
    run("compile", tmp_path / "x.jsonl", "--no-shuffle", "-o", tmp_path / "out")
    assert [(row["row"], row["offset"]) for row in rows(tmp_path / "out")] == [(0, 1), (1, 40)]


# -- manifest --


def test_the_manifest_matches_its_schema(mixed: Mixed, big: Big) -> None:
    for out in (mixed.out, big.one):
        jsonschema.Draft202012Validator(schema("manifest")).validate(manifest(out))


def test_the_manifest_counts_what_is_in_the_shards(mixed: Mixed) -> None:
    found = manifest(mixed.out)
    for split in ("train", "val"):
        entry = found["splits"][split]
        table = CompiledSet.open(mixed.out).table(split)
        tokens = sum(len(ids) for ids in table.column("input_ids").to_pylist())
        trained = sum(table.column("num_trained").to_pylist())
        assert (entry["rows"], entry["tokens"], entry["trained_tokens"]) == (table.num_rows, tokens, trained)
        for shard in entry["shards"]:
            data = (mixed.out / shard["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == shard["sha256"]
            assert len(data) == shard["bytes"]
            assert sum(batch["rows"] for batch in shard["batches"]) == shard["rows"]
            assert max(batch["rows"] for batch in shard["batches"]) <= BATCH_ROWS
    counted = Counter(row["dataset"] for split in ("train", "val") for row in rows(mixed.out, split))
    assert {entry["name"]: entry["realized"]["rows"] for entry in found["datasets"]} == counted
    assert counted == {"agent": 72, "bench": 216, "self-cognition": 400}


def test_the_manifest_holds_no_path_of_the_machine_and_no_time(mixed: Mixed) -> None:
    text = (mixed.out / "manifest.json").read_text("utf-8")
    assert str(mixed.out.parent) not in text
    assert str(registry.ROOT) not in text
    assert time.strftime("%Y-") not in text


def test_the_balance_holds_in_every_dataset_and_in_total(mixed: Mixed, big: Big) -> None:
    for out in (mixed.out, big.one):
        found = manifest(out)
        for b in [entry["balance"] for entry in found["datasets"]] + [found["balance"]]:
            assert b["read"] + b["repeats"] == b["in_shards"] + b["rejected"] + b["sampled_out"] + b["duplicates"]
        assert found["balance"]["in_shards"] == sum(found["splits"][split]["rows"] for split in ("train", "val"))


def test_the_card_names_the_splits_for_the_datasets_library(mixed: Mixed) -> None:
    text = (mixed.out / "README.md").read_text("utf-8")
    assert text.startswith("---\n")
    assert "- split: train\n    path: train/*.arrow\n" in text
    assert "- split: validation\n    path: val/*.arrow\n" in text


# -- readers --


@pytest.fixture(scope="session")
def expected(mixed: Mixed) -> list[Row]:
    return CompiledSet.open(mixed.out).table("train").to_pylist()


def test_pyarrow_reads_the_shards_memory_mapped_without_copying(mixed: Mixed, expected: list[Row]) -> None:
    (path,) = sorted((mixed.out / "train").glob("*.arrow"))
    before = pa.total_allocated_bytes()
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        assert pa.total_allocated_bytes() - before < 100_000  # the ids alone are more than that
        assert table.column("input_ids").nbytes > 100_000
        assert table.to_pylist() == expected


def test_polars_reads_the_shards(mixed: Mixed, expected: list[Row]) -> None:
    (path,) = sorted((mixed.out / "train").glob("*.arrow"))
    assert pl.read_ipc(path).to_dicts() == expected
    lazy = pl.scan_ipc(path).select(pl.col("num_trained").sum(), pl.col("input_ids").list.len().sum()).collect()
    assert lazy.row(0) == (sum(r["num_trained"] for r in expected), sum(len(r["input_ids"]) for r in expected))


def test_duckdb_reads_the_shards(mixed: Mixed, expected: list[Row]) -> None:
    (path,) = sorted((mixed.out / "train").glob("*.arrow"))
    with pa.memory_map(str(path)) as source, duckdb.connect() as connection:
        connection.register("shard", pa.ipc.open_file(source).read_all())
        found = connection.execute("select input_ids, labels, loss_weights, dataset, row from shard").fetchall()
        assert found == [
            tuple(r[c] for c in ("input_ids", "labels", "loss_weights", "dataset", "row")) for r in expected
        ]
        counts = connection.execute("select dataset, count(*) from shard group by all order by all").fetchall()
    assert dict(counts) == Counter(row["dataset"] for row in expected)


def test_datasets_reads_the_shards(
    mixed: Mixed, expected: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own making
        import datasets

        datasets.disable_progress_bars()
        files = {"train": str(mixed.out / "train" / "*.arrow"), "validation": str(mixed.out / "val" / "*.arrow")}
        loaded = datasets.load_dataset("arrow", data_files=files, cache_dir=str(tmp_path / "cache"))
        assert loaded["train"].column_names == list(COLUMNS)
        assert loaded["train"].to_list() == expected
        assert loaded["validation"].num_rows == 60


# -- the same bytes --


def test_one_worker_and_two_make_the_same_set(big: Big) -> None:
    assert big.summary["units_compiled"] > 3  # more than are compiled without workers
    assert digest(big.one) == digest(big.two)
    assert verify(big.two) == (0, [])


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with data, and the digest of what this process makes of it."""
    folder = tmp_path_factory.mktemp("reference")
    data = alpaca(folder / "data" / "问题.jsonl", [f"第{i}题 {'x' * (i % 7)}" for i in range(40)])
    before = Path.cwd()
    os.chdir(folder)
    try:
        made = compile_(data.relative_to(folder), *REFERENCE, "--cache", "cache", "-o", "out")
    finally:
        os.chdir(before)
    return folder, made["digest"]


REFERENCE = ["--mix", "问题:1,agent:1,bench:1", "--self-cognition", "50", "--val-size", "0.1", "--workers", "1"]


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "0", "TZ": "Asia/Kathmandu"},
        {"PYTHONHASHSEED": "1", "TZ": "America/St_Johns"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "2"},
        {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
    ],
    ids=lambda environment: " ".join(f"{key}={value}" for key, value in environment.items()),
)
def test_hash_seed_time_zone_and_locale_change_nothing(
    reference: tuple[Path, str], tmp_path: Path, environment: dict[str, str]
) -> None:
    folder, expected = reference
    # Another folder, too: only what the command line calls the files counts.
    shutil.copytree(folder / "data", tmp_path / "data")
    done = subprocess.run(
        [*CLI, "compile", "data/问题.jsonl", *REFERENCE, "--cache", "c", "-o", "elsewhere/out"],
        cwd=tmp_path, env=os.environ | environment, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert digest(tmp_path / "elsewhere" / "out") == expected


# -- the cache --


def test_another_mix_seed_or_split_encodes_nothing_again(mixed: Mixed, tmp_path: Path) -> None:
    for change in (
        ["--mix", "bench:1,agent:1", "--self-cognition", "7"],
        ["--mix", "agent:1,bench:2", "--seed", "7", "--total", "50"],
        ["--mix", "agent,bench", "--val-size", "0.2", "--no-shuffle", "--dedup", "exact"],
        ["--mix", "agent:1,bench:1", "--mix-unit", "trained_tokens", "--max-repeats", "2"],
    ):
        summary = compile_(*change, "--workers", "1", "--cache", mixed.cache, "-o", tmp_path / "out")
        assert summary["units_compiled"] == 0
        assert summary["units_cached"] >= 2
    result = runner().invoke(
        main, ["compile", *mixed.arguments, "--cache", str(mixed.cache), "-o", str(tmp_path / "out")]
    )
    assert "4 units reused from the cache, none compiled" in result.stdout
    assert digest(tmp_path / "out") == digest(mixed.out)


def test_what_decides_the_ids_is_encoded_again(mixed: Mixed, tmp_path: Path) -> None:
    for change in (
        ["--weights", "none"],
        ["--max-length", "2000"],
        ["--special-text", "reject", "--max-rejects", "100%"],
    ):
        summary = compile_("--mix", "agent", *change, "--workers", "1", "--cache", mixed.cache, "-o", tmp_path / "out")
        assert summary["units_compiled"] == 1, change


@pytest.mark.parametrize(
    "edit",
    [b" [3]", b" [3] with a few words more", b" [3] with a story" * 500],
    ids=["as long", "longer", "much longer"],
)
def test_editing_one_row_compiles_only_its_unit_again(big: Big, tmp_path: Path, edit: bytes) -> None:
    file = tmp_path / "big.jsonl"
    lines = big.file.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b" (3)", edit, 1)
    file.write_bytes(b"".join(lines))
    summary = compile_(
        file,
        "--mix",
        "big,agent#100",
        "--max-repeats",
        "1",
        "--cache",
        big.cache,
        "--workers",
        "1",
        "-o",
        tmp_path / "out",
    )
    assert summary["units_compiled"] == 1
    assert summary["units_cached"] == big.summary["units_compiled"] - 1
    data = file.read_bytes()
    for row in rows(tmp_path / "out"):
        if row["dataset"] == "big":
            assert data[row["offset"] :].startswith(lines[row["row"]].rstrip(b"\n"))


@pytest.mark.parametrize(
    ("first", "second", "offsets"),
    [
        ("a.jsonl", b"\xef\xbb\xbf%b", [3, 40, 77]),
        ("a.json", b"[\n\n\n  %b]", [6, 43, 80]),
    ],
    ids=["a byte order mark", "white space before the first element"],
)
def test_rows_that_only_moved_keep_their_object_and_get_their_new_offsets(
    run: Run, tmp_path: Path, first: str, second: bytes, offsets: list[int]
) -> None:
    lines = [b'{"instruction": "a%d", "output": "b"}' % i for i in range(2)] + [b'{"instruction": "a2"}']
    body = (b"\n" if first.endswith("l") else b",").join(lines)
    (tmp_path / first).write_bytes(body if first.endswith("l") else b"[" + body + b"]")
    (tmp_path / "b" / first).parent.mkdir()
    (tmp_path / "b" / first).write_bytes(second % body)
    for file in (tmp_path / first, tmp_path / "b" / first):
        run("compile", file, "--no-shuffle", "--max-rejects", "1", "-o", tmp_path / "out")
    assert [row["offset"] for row in rows(tmp_path / "out")] == offsets[:2]
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert (reject["offset"], reject["length"]) == (offsets[2], 21)


def test_a_damaged_cache_is_never_used(tmp_path: Path) -> None:
    file = alpaca(tmp_path / "x.jsonl", [f"q{i}" for i in range(30)])
    arguments = [file, "--workers", "1", "--cache", tmp_path / "cache", "-o", tmp_path / "out"]
    expected = compile_(*arguments)["digest"]
    chance = random.Random(1)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)

    damages: list[Callable[[Path], object]] = [flip] * 12 + [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"{}"),
        lambda path: path.unlink(),
    ]
    for kind in (".arrow", ".json"):
        for damage in damages:
            paths = sorted(path for path in (tmp_path / "cache").rglob(f"*{kind}"))
            assert paths
            for path in paths:
                damage(path)
            assert compile_(*arguments)["digest"] == expected
    assert compile_(*arguments)["units_compiled"] == 0  # and it was mended


@pytest.mark.parametrize("left", [None, 0.0, 0.15, 0.3, 0.45, 0.6])
def test_an_object_that_is_lost_while_the_set_is_written_ends_the_run_and_leaves_the_old_set(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: float | None
) -> None:
    asked = alpaca(tmp_path / "a.jsonl", ["one", "two"])
    system = tmp_path / "b.jsonl"  # its speakers have other numbers
    said = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    system.write_text(json.dumps({"messages": said}) + "\n")
    run("compile", asked, system, "-o", tmp_path / "out")
    before = digest(tmp_path / "out")

    def lose(*given: Any) -> Any:
        for path in (tmp_path / "cache").rglob("*.arrow"):
            if left is None:
                path.unlink()
            else:
                os.truncate(path, int(left * path.stat().st_size) // 4 * 4 + 1)
        return link(*given)

    link = pipeline.link
    monkeypatch.setattr(pipeline, "link", lose)
    result = run("compile", asked, system, "--seed", "1", "-o", tmp_path / "out", code=4)
    assert "this object of the cache was removed or damaged during the run" in result.stderr
    monkeypatch.undo()
    assert digest(tmp_path / "out") == before
    assert verify(tmp_path / "out") == (0, [])
    run("compile", asked, system, "-o", tmp_path / "out")
    assert digest(tmp_path / "out") == before


@pytest.mark.parametrize("same", [True, False])
def test_an_object_that_is_compiled_again_while_the_set_is_written_must_have_the_same_bytes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    file = alpaca(tmp_path / "a.jsonl", ["one", "two"])
    run("compile", file, "-o", tmp_path / "out")
    before = digest(tmp_path / "out")

    def replace(*given: Any) -> Any:
        (path,) = (tmp_path / "cache").rglob("*.arrow")
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= not same
        (tmp_path / "other").write_bytes(data)
        (tmp_path / "other").rename(path)
        return link(*given)

    link = pipeline.link
    monkeypatch.setattr(pipeline, "link", replace)
    result = run("compile", file, "-o", tmp_path / "out", code=0 if same else 4)
    assert same or "this object of the cache was removed or damaged during the run" in result.stderr
    assert digest(tmp_path / "out") == before


def test_an_object_under_another_objects_name_is_never_used(tmp_path: Path) -> None:
    made: dict[str, str] = {}
    caches = [tmp_path / "cache-a", tmp_path / "cache-b"]
    for name, cache in zip("ab", caches, strict=True):
        file = alpaca(tmp_path / f"{name}.jsonl", [f"{name} asks"])
        made[name] = compile_(file, "--workers", "1", "--cache", cache, "-o", tmp_path / "out")["digest"]
    records = [sorted(cache.rglob("*.json")) for cache in caches]
    arrows = [sorted(cache.rglob("*.arrow")) for cache in caches]
    shared = {path.name for path in records[0]} & {path.name for path in records[1]}  # the template's certificate
    (own,), (other,) = ([path for path in found if path.name not in shared] for found in records)
    certificate = next(path for path in records[0] if path.name in shared)
    file = tmp_path / "b.jsonl"
    for source in (own, certificate):
        shutil.copy(source, other)
        shutil.copy(arrows[0][0], arrows[1][0])
        summary = compile_(file, "--workers", "1", "--cache", caches[1], "-o", tmp_path / "out")
        assert summary["digest"] == made["b"]
        assert summary["units_compiled"] == 1


# -- verify --


def test_a_whole_set_verifies(mixed: Mixed) -> None:
    result = runner().invoke(main, ["verify", str(mixed.out)])
    assert result.exit_code == 0
    assert result.stdout == f"{mixed.out}: 2 shards and 5 files are whole\n"


def flipped(path: Path, positions: Iterator[int]) -> Iterator[int]:
    """Flip one bit at each position in turn, and put it back."""
    whole = path.read_bytes()
    chance = random.Random(2)
    for position in positions:
        data = bytearray(whole)
        data[position] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        yield position
    path.write_bytes(whole)


def test_every_flipped_bit_in_a_shard_is_found_and_its_batch_named(copy: Path) -> None:
    for split in ("train", "val"):
        (entry,) = manifest(copy)["splits"][split]["shards"]
        size, name = entry["bytes"], entry["file"]
        places = random.Random(3).sample(range(size), 150)
        places += [*range(12), *range(size - 12, size)]
        first_rows = [sum(batch["rows"] for batch in entry["batches"][:n]) for n in range(len(entry["batches"]))]
        for place in flipped(copy / name, iter(places)):
            batch = next(
                (n for n, b in enumerate(entry["batches"]) if b["offset"] <= place < b["offset"] + b["length"]), None
            )
            message = f"{name}: the file's header or footer is damaged"
            if batch is not None:
                last = first_rows[batch] + entry["batches"][batch]["rows"] - 1
                message = f"{name}: batch {batch} (rows {first_rows[batch]} to {last}) is damaged"
            assert find_damage(CompiledSet.open(copy)) == [message]
    assert len(manifest(copy)["splits"]["train"]["shards"][0]["batches"]) == 2
    assert verify(copy) == (0, [])


def test_no_reader_of_a_set_takes_a_damaged_batch(copy: Path) -> None:
    """Rows, tables and batches are checked while they are read; the batches before the damaged one are read."""
    (entry,) = manifest(copy)["splits"]["train"]["shards"]
    path, batch = copy / entry["file"], entry["batches"][1]
    data = bytearray(path.read_bytes())
    data[batch["offset"] + batch["length"] // 2] ^= 1
    path.write_bytes(data)
    first = entry["batches"][0]["rows"]
    what = re.escape(f"{entry['file']}: batch 1 (rows {first} to {first + batch['rows'] - 1}) is damaged")
    opened = CompiledSet.open(copy)
    read: list[Row] = []
    with pytest.raises(IntegrityError, match=what):
        read.extend(opened.rows("train"))
    assert len(read) == first
    with pytest.raises(IntegrityError, match=what):
        opened.table("train")
    assert opened.split("train").batch(0).num_rows == first


def test_every_flipped_bit_in_another_file_is_found(copy: Path) -> None:
    names = manifest(copy)["files"]
    assert {name for name in names if "/" not in name} == {"README.md", "rejects.jsonl", "lines.jsonl"}
    assert {name for name in names if "/" in name} == {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    for name in names:
        size = (copy / name).stat().st_size
        for _ in flipped(copy / name, iter(random.Random(4).sample(range(size), min(size, 10)))):
            assert verify(copy) == (4, [f"{name}: is damaged or was edited"])


def test_every_flipped_bit_in_the_manifest_is_found(copy: Path) -> None:
    """But for what a run says of itself (`run`): it depends on the cache, and the digest does not cover it."""
    text = (copy / "manifest.json").read_bytes()
    start = text.index(b'\n "run": {')
    covered = [*range(start), *range(text.index(b"\n },", start), len(text))]
    for place in flipped(copy / "manifest.json", iter(random.Random(5).sample(covered, 60))):
        code, _ = verify(copy)
        assert code == 4, f"byte {place}"


def test_an_edited_count_in_the_manifest_is_found(copy: Path) -> None:
    path = copy / "manifest.json"
    text = path.read_text("utf-8")
    assert '"rows": 216' in text
    path.write_text(text.replace('"rows": 216', '"rows": 217'), "utf-8")
    assert verify(copy)[0] == 4


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (
            lambda out: (out / "train/shard-00000.arrow").unlink(),
            ["train/shard-00000.arrow: No such file or directory"],
        ),
        (lambda out: shutil.rmtree(out / "val"), ["val/shard-00000.arrow: No such file or directory"]),
        (
            lambda out: shutil.copy(out / "val/shard-00000.arrow", out / "val/shard-00001.arrow"),
            ["val/shard-00001.arrow: not in the manifest"],
        ),
        (lambda out: (out / "train/.hidden").write_text("x"), ["train/.hidden: not in the manifest"]),
        (
            lambda out: (out / "rejects.jsonl").write_text('{"reason": "none"}\n'),
            ["rejects.jsonl: is damaged or was edited"],
        ),
        (lambda out: (out / "README.md").unlink(), ["README.md: No such file or directory"]),
    ],
    ids=["a missing shard", "a missing split", "an extra shard", "an extra file", "edited rejects", "no card"],
)
def test_what_is_missing_edited_or_too_much_is_named(
    copy: Path, damage: Callable[[Path], object], problems: list[str]
) -> None:
    damage(copy)
    assert verify(copy) == (4, problems)
    result = runner().invoke(main, ["verify", str(copy)])
    assert (result.exit_code, result.stdout, result.stderr.splitlines()) == (4, "", problems)


@pytest.mark.parametrize("size", [0, 1, -1, -1000])
def test_a_truncated_shard_is_named_with_both_sizes(copy: Path, size: int) -> None:
    path = copy / "train/shard-00000.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert verify(copy) == (
        4, [f"train/shard-00000.arrow: expected {len(whole)} bytes, found {len(whole[:size])}"]
    )  # fmt: skip


def test_all_damage_is_named_at_once(copy: Path) -> None:
    (copy / "README.md").write_text("mine")
    (copy / "train/shard-00000.arrow").write_bytes(b"")
    (copy / "val/extra").touch()
    assert [problem.split(":")[0] for problem in verify(copy)[1]] == [
        "train/shard-00000.arrow",
        "README.md",
        "val/extra",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a manifest: "),
        ("[]", "expected format version 2 or 3, found None"),
        ('{"format_version": 1}', "expected format version 2 or 3, found 1"),
        ('{"format_version": 2}', "not a manifest: "),
    ],
)
def test_a_manifest_that_is_none_is_an_integrity_error(copy: Path, content: str, message: str) -> None:
    (copy / "manifest.json").write_text(content)
    with pytest.raises(IntegrityError) as error:
        CompiledSet.open(copy)
    assert str(error.value).startswith(f"{copy}/manifest.json: {message}")
    assert verify(copy)[0] == 4


def test_a_folder_without_a_manifest_is_not_a_set(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").unlink()
    for folder, what in (
        (copy, "no manifest.json: the set is not complete, or not one"),
        (tmp_path / "no", "no such folder"),
    ):
        result = runner().invoke(main, ["verify", str(folder)])
        assert result.exit_code == 5
        assert result.stderr == f"error: {folder}: {what}\n  Compile it with cli compile ... -o DIR.\n"


# -- publishing --

KILLER = """
import json, os, signal, sys, time
import cli, compiler.pipeline, compiler.commands.report, compiler.commands.terminal
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        try:
            cli.main(order["arguments"])
        finally:
            os._exit(0)
    end = time.monotonic() + order.get("after", 20)
    path, there = order.get("until", ("/", False))
    while time.monotonic() < end and os.path.exists(path) != there:
        if os.waitpid(child, os.WNOHANG)[0]:
            child = 0
            break
    if child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print("done", flush=True)
"""
"""Forks a compile and kills it after some time or when a file appears (or is gone): importing once makes it fast."""


def test_a_killed_run_leaves_the_old_set_or_the_new_one_and_the_next_one_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = alpaca(tmp_path / "x.jsonl", [f"question {i}" for i in range(300)])

    def arguments(seed: int) -> list[str]:
        options = ["--val-size", "0.1", "--workers", "1", "--cache", str(tmp_path / "cache")]
        return [str(file), "--seed", str(seed), *options, "-o", str(out)]

    clean = {}
    for seed in (0, 1):
        compile_(*arguments(seed))
        clean[seed] = digest(out)
    compile_(*arguments(0))
    chance = random.Random(6)
    orders: list[dict[str, Any]] = [{"after": chance.uniform(0.0, 0.25)} for _ in range(9)]
    partial = out / ".partial"
    states = [
        (partial, True),
        (partial / "train", True),
        (partial / "manifest.json", True),
        (out / "manifest.json", False),
        (out / "train", False),
    ]
    orders += [{"until": [str(path), there]} for path, there in states]
    orders += [{"until": [str(out / "manifest.json"), False]} for _ in range(3)]
    ends: Counter[str] = Counter()
    with subprocess.Popen(
        [sys.executable, "-c", KILLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killer:
        assert killer.stdin and killer.stdout
        for order in orders:
            killer.stdin.write(json.dumps(order | {"arguments": ["compile", *arguments(1)]}) + "\n")
            killer.stdin.flush()
            assert killer.stdout.readline() == "done\n"
            assert verify(out) == (0, [])
            ends["old" if digest(out) == clean[0] else "new"] += 1
            assert digest(out) in clean.values()
            compile_(*arguments(1))
            assert digest(out) == clean[1]
            assert verify(out) == (0, [])
            assert not {path.name for path in out.iterdir()} & {".partial", ".lock"}
            compile_(*arguments(0))
            assert digest(out) == clean[0]
        killer.stdin.close()
    assert ends["old"] > 3, ends


def wait_for(path: Path, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, "it ended before it was seen"
        assert time.monotonic() < end
        time.sleep(0.001)


def test_two_compiles_into_one_folder_are_one_compile_and_one_locked(tmp_path: Path) -> None:
    file = alpaca(tmp_path / "x.jsonl", [f"question {i}" for i in range(3000)])
    out = tmp_path / "out"
    command = [*CLI, "compile", str(file), "--workers", "1", "--cache", str(tmp_path / "cache"), "-o", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        wait_for(out / ".partial", first)
        first.send_signal(signal.SIGSTOP)  # so that it is certainly still at it
        try:
            second = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            first.send_signal(signal.SIGCONT)
        assert second.returncode == 6
        assert second.stderr.splitlines()[-2:] == [
            f"error: {out}: another compile is writing it", "  Wait for it, or choose another -o folder."
        ]  # fmt: skip
        assert "Traceback" not in second.stderr
        assert first.wait() == 0
    assert verify(out) == (0, [])
    assert manifest(out)["splits"]["train"]["rows"] == 3000


def test_two_compiles_may_share_a_cache(tmp_path: Path) -> None:
    file = alpaca(tmp_path / "x.jsonl", [f"question {i}" for i in range(500)])
    command = [*CLI, "compile", str(file), "--workers", "1", "--cache", str(tmp_path / "cache"), "-o"]
    running = [subprocess.Popen([*command, str(tmp_path / out)], stdout=subprocess.DEVNULL) for out in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert verify(tmp_path / "a") == verify(tmp_path / "b") == (0, [])


def children(process: int | str) -> list[str]:
    """Return the processes that a process has started, and those that these have."""
    found = []
    with contextlib.suppress(OSError):  # it ended
        for path in Path(f"/proc/{process}/task").glob("*/children"):
            found += path.read_text().split()
    return [*found, *(other for child in found for other in children(child))]


def test_an_interrupt_leaves_the_old_set_and_no_traceback(big: Big, tmp_path: Path) -> None:
    out = Path(shutil.copytree(big.one, tmp_path / "out"))
    command = [*CLI, "compile", str(big.file), "--workers", "2", "--cache", str(tmp_path / "cache"), "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for(out / ".partial", process)
        end = time.monotonic() + 60
        while not children(process.pid) and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.05)  # the worker is importing
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"error: interrupted\n  What was compiled is in the cache: run the same command again.\n" in stderr
    assert b"Traceback" not in stderr
    assert verify(out) == (0, [])
    assert digest(out) == digest(big.one)
    assert {path.name for path in out.iterdir()} == {path.name for path in big.one.iterdir()}


def test_workers_end_when_their_parent_is_killed(big: Big, tmp_path: Path) -> None:
    command = [*CLI, "compile", str(big.file), "--workers", "2", "--cache", str(tmp_path / "cache"), "-o"]
    with subprocess.Popen([*command, str(tmp_path / "out")], stderr=subprocess.DEVNULL) as process:
        wait_for(tmp_path / "out" / ".partial", process)
        end = time.monotonic() + 60
        while len(workers := children(process.pid)) < 4 and time.monotonic() < end:  # with their original and a checker
            time.sleep(0.01)
        process.kill()
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(workers) == 4
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


@pytest.mark.parametrize("full", ["cache", "output"])
def test_a_full_disk_is_an_input_output_error_and_leaves_the_old_set(tmp_path: Path, full: str) -> None:
    file = alpaca(tmp_path / "x.jsonl", [f"question {i}" for i in range(400)])
    arguments = [str(file), "--workers", "1", "--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "out")]
    compile_(*arguments)
    before = digest(tmp_path / "out")
    if full == "cache":
        shutil.rmtree(tmp_path / "cache")
    limit = 20_000  # bytes a file may have: less than the object, less than the shard
    done = subprocess.run(
        [*CLI, "compile", *arguments, "--seed", "1"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == 5
    assert str(tmp_path / {"cache": "cache", "output": "out"}[full]) in done.stderr
    assert digest(tmp_path / "out") == before
    assert verify(tmp_path / "out") == (0, [])
    assert ".partial" not in {path.name for path in (tmp_path / "out").iterdir()}
    compile_(*arguments, "--seed", "1")  # nothing half-written is in the way
    assert digest(tmp_path / "out") != before


FOREIGN: dict[str, dict[str, str]] = {
    "a file": {"notes.txt": "mine"},
    "names like ours": {"train/a.txt": "mine", "README.md": "mine"},
    "a manifest of something else": {
        "manifest.json": '{"name": "my extension"}',
        "README.md": "mine",
        "train/a": "mine",
    },
    "a broken manifest": {"manifest.json": "{", "tokenizer/vocab": "mine"},
    "a hidden file": {".git/config": "mine"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_folder_is_refused_and_left_as_it_is(run: Run, tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(text)
    result = run("compile", alpaca(tmp_path / "x.jsonl", ["a"]), "-o", tmp_path / "out", code=2)
    assert "the folder is not empty and holds no compiled set" in result.stderr
    assert "Choose a new folder; nothing in this one was touched." in result.stderr
    found = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert found == files


def test_publishing_replaces_its_own_files_and_nothing_else(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("compile", alpaca(tmp_path / "x.jsonl", list("abcdef")), "--val-size", 2, "-o", out)
    (out / "notes.txt").write_text("mine")
    run("compile", tmp_path / "x.jsonl", "-o", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "encoders.json", "lines.jsonl", "manifest.json", "notes.txt", "rejects.jsonl", "tokenizer", "train"
    ]  # fmt: skip
    assert verify(out) == (0, [])


def test_an_empty_folder_is_used(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run("compile", alpaca(tmp_path / "x.jsonl", ["a"]), "-o", tmp_path / "out")
    assert verify(tmp_path / "out") == (0, [])


def test_a_failed_run_leaves_no_folder_behind(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"instruction": "a"}\n{"instruction": "a", "output": "b"}\n')
    run("compile", tmp_path / "x.jsonl", "--format", "alpaca", "-o", tmp_path / "out", code=3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_an_output_that_cannot_be_written_is_an_input_output_error(run: Run, tmp_path: Path, place: str) -> None:
    file = alpaca(tmp_path / "x.jsonl", ["a"])
    out = file if place == "a file" else file / "out"
    result = run("compile", file, "-o", out, code=2 if place == "a file" else 5)
    assert f"{out}" in result.stderr
    assert result.stderr.count("error:") == 1
    assert file.read_text() == '{"instruction": "a", "output": "About a."}\n'


AS_NOBODY = """
import os, sys
import cli
from tests.support.command import runner
arguments = ["compile", sys.argv[1] + "/x.jsonl", "--workers", "1"]
# Everything that is imported late is imported now: nobody may not read root's Python.
warm = runner().invoke(cli.main, [*arguments, "--cache", sys.argv[1] + "/root", "-o", sys.argv[1] + "/warm"])
assert warm.exit_code == 0, warm.output
os.mkdir(sys.argv[1] + "/cache")
os.chmod(sys.argv[1] + "/cache", 0o777)
os.setegid(65534)
os.seteuid(65534)  # root may write anywhere; nobody may not
cli.main([*arguments, "--cache", sys.argv[1] + "/cache", *sys.argv[2:]])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody who may not write")
@pytest.mark.parametrize("place", ["private", "private/out", "readonly", "readonly/out"])
def test_an_output_one_may_not_write_is_an_input_output_error(tmp_path: Path, place: str) -> None:
    above = takewhile(lambda parent: parent != Path(tempfile.gettempdir()).resolve(), tmp_path.resolve().parents)
    for folder in (tmp_path, *above):
        folder.chmod(0o755)
    alpaca(tmp_path / "x.jsonl", ["a"])
    for name, mode in (("private", 0o700), ("readonly", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(tmp_path), "-o", str(tmp_path / place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert f"{tmp_path / place}" in done.stderr
    assert "ermission denied" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any((tmp_path / "private").iterdir())
