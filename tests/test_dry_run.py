"""`cli compile --dry-run`: what it says is what the compile gives, and nothing is written but the cache."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from schemas import schema
from tests.support.sets import Row, manifest, qa, write

Run = Callable[..., Result]
Dry = Callable[..., Row]

VALIDATOR = jsonschema.Draft202012Validator(schema("dry_run"))


@pytest.fixture
def dry(run: Run) -> Dry:
    """A function that gives what a dry run prints as JSON."""

    def found(*given: object, code: int = 0) -> Row:
        printed: Row = json.loads(run("compile", *given, "--dry-run", "--json", code=code).stdout)
        VALIDATOR.validate(printed)
        assert printed["exit_code"] == code
        return printed

    return found


def plain(numbers: dict[str, Any]) -> dict[str, int]:
    """Estimates that must have no error."""
    assert all(one["error"] == 0 for one in numbers.values())
    return {name: one["estimate"] for name, one in numbers.items()}


def mixed(tmp_path: Path) -> list[Path]:
    rows: list[Row | str] = [qa(f"q{i}", "word " * (i + 1), colour=1) for i in range(60)]
    rows[7], rows[9] = "{broken", {"instruction": "no output"}
    write(tmp_path / "other.jsonl", *(qa(f"p{i % 25}", f"answer {i % 25}") for i in range(30)))
    return [write(tmp_path / "first.jsonl", *rows), tmp_path / "other.jsonl"]


@pytest.mark.parametrize("pack", [(), ("--pack", 256)], ids=["rows", "packs"])
def test_small_inputs_are_read_whole_and_every_number_is_the_manifests(
    run: Run, dry: Dry, tmp_path: Path, pack: tuple[Any, ...]
) -> None:
    out = tmp_path / "out"
    asked = (*mixed(tmp_path), "--mix", "first:2,other:1", "--val-size", 0.1, "--max-rejects", 2, *pack, "-o", out)
    found = dry(*asked)
    assert found["exact"] and found["exit_code_is_sure"] and found["problem"] is None
    assert not out.exists() and not (tmp_path / "out.rejects.jsonl").exists()
    done = run("compile", *asked)
    assert "2 units reused from the cache, none compiled" in done.stdout
    made = manifest(out)
    for one, entry in zip(found["datasets"], made["datasets"], strict=True):
        assert plain(one["realized"]) == entry["realized"]
        assert plain(one["balance"]) == entry["balance"]
        assert {reason: what["estimate"] for reason, what in one["reasons"].items()} == entry["rejected"]
        assert (one["notes"], one["unread"]) == (entry["notes"], entry["unread"])
    for name, split in found["splits"].items():
        assert plain(split).items() <= made["splits"][name].items()
    assert found["datasets"][0]["reasons"]["json"]["examples"][0]["place"].endswith("first.jsonl:8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert 0.5 * size < found["disk"]["set"]["estimate"] < 2 * size


def halves(rows: int = 6000) -> list[Row]:
    """Rows of which the second half is longer, and has rejects."""
    first = [qa(f"question {i}", f"word {i} " * (40 + i * 7 % 60)) for i in range(rows // 2)]
    bad = [qa(f"more {i}", f"other {i} " * (150 + i * 11 % 90)) for i in range(rows // 2)]
    return first + [row if i % 50 else {"instruction": "none"} for i, row in enumerate(bad)]


def written(rows: list[Row], path: Path) -> Path:
    """The rows in a file of the kind that its name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=200)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        data = write(path.with_suffix(""), *rows).read_bytes()
        path.write_bytes(gzip.compress(data, 1))
        path.with_suffix("").unlink()
    return path


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.parquet"])
def test_intervals_of_a_sample_hold_the_numbers_of_the_compile_also_where_the_second_half_is_another(
    run: Run, dry: Dry, tmp_path: Path, name: str
) -> None:
    path = written(halves(), tmp_path / name)
    asked = (path, "--format", "alpaca", "--max-rejects", "5%", "-o", tmp_path / "out")
    found = dry(*asked, "--sample", 6)
    assert not found["exact"] and found["units"]["sampled"] == 6 < found["units"]["all"]
    shutil.rmtree(tmp_path / "cache")
    run("compile", *asked)
    (entry,) = manifest(tmp_path / "out")["datasets"]
    (one,) = found["datasets"]
    true = entry["realized"] | {"read": entry["balance"]["read"], "rejected": entry["balance"]["rejected"]}
    said = one["realized"] | {"read": one["read"], "rejected": one["rejected"]}
    for key, value in true.items():
        assert abs(said[key]["estimate"] - value) <= said[key]["error"], key
    assert said["read"] == {"estimate": 6000, "error": 0}  # lines and elements are counted while files are cut
    assert said["tokens"]["error"] < (0.1 if path.suffix != ".parquet" else 1) * true["tokens"]
    places = [some["place"] for some in one["reasons"]["schema"]["examples"]]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    true_places = {str(reject["line"] or reject["row"]) for reject in rejects}
    assert {place.split(":")[-1].split("#/")[-1].split("/")[0].split("#")[0] for place in places} <= true_places


def test_the_exit_code_is_that_of_the_compile_also_where_a_number_of_rejects_is_allowed_and_a_sample_has_fewer(
    run: Run, dry: Dry, tmp_path: Path
) -> None:
    rows = [qa(f"q {i}", f"word {i} " * 150) if i % 20 else {"instruction": "none"} for i in range(4000)]
    path = write(tmp_path / "a.jsonl", *rows)  # 200 rejects
    asked = (path, "-o", tmp_path / "out", "--sample", 4)
    assert dry(*asked, "--max-rejects", 400)["exit_code_is_sure"]
    found = dry(*asked, "--max-rejects", 100, code=3)
    assert found["exit_code_is_sure"]
    assert "allows 100" in found["problem"] and "a dry run: nothing was written" in found["problem"]
    assert not dry(*asked, "--max-rejects", found["datasets"][0]["rejected"]["estimate"])["exit_code_is_sure"]
    run("compile", path, "-o", tmp_path / "out", "--max-rejects", 100, code=3)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.jsonl", "cache", "out.rejects.jsonl"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--max-length", 4], 3, "found"),
        (["--template", "nope"], 2, "nope"),
        (["--mix", "a#50"], 2, "it has 20 rows that can be used"),
        (["--unknown-keys", "error"], 2, "colour"),
        (["--only", "0/2"], 2, "a dry run is about the whole set"),
        (["--val-size", 20], 2, "expected at least 1 and not all"),
    ],
)
def test_what_cannot_work_ends_the_dry_run_with_the_code_and_the_message_of_the_compile(
    run: Run, tmp_path: Path, options: list[object], code: int, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", *(qa(f"q{i}", f"answer {i}", colour=1) for i in range(20)))
    asked = ("compile", path, "-o", tmp_path / "out", *options)
    found = run(*asked, "--dry-run", code=code).stderr
    assert message in found
    if "--only" not in options:
        said, made = (
            [line for line in text.splitlines() if line.startswith("error: ")]
            for text in (found, run(*asked, code=code).stderr)
        )
        assert said == made and len(said) == 1
    assert not (tmp_path / "out").exists()


def test_out_is_checked_and_never_touched(run: Run, tmp_path: Path) -> None:
    path, out = write(tmp_path / "a.jsonl", *(qa(f"q{i}") for i in range(9))), tmp_path / "out"
    run("compile", path, "-o", out)
    before = {one: one.stat().st_mtime_ns for one in [out, *out.rglob("*")]}
    printed = run("compile", path, "--no-shuffle", "-o", out, "--dry-run").stdout
    assert "dry run: all 1 unit; the numbers are those of the compile" in printed
    assert "the compile would end with exit code 0" in printed
    assert {one: one.stat().st_mtime_ns for one in [out, *out.rglob("*")]} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "holds no compiled set" in run("compile", path, "-o", tmp_path / "mine", "--dry-run", code=2).stderr
    full = run("compile", path, "-o", "/proc/out", "--dry-run", code=5).stderr  # a file system without space
    assert "/proc/out: cannot be written" in full
    below = path / "out"
    same = [run("compile", path, "-o", below, *more, code=5).stderr for more in ([], ["--dry-run"])]
    assert [str(below) in one and "cannot be written" in one for one in same] == [True, True]


def test_a_recipe_and_a_set_that_remembers_one_can_be_tried_and_options_of_other_runs_are_refused(
    run: Run, dry: Dry, tmp_path: Path
) -> None:
    write(tmp_path / "a.jsonl", *(qa(f"q{i}") for i in range(9)))
    (tmp_path / "r.yaml").write_text("datasets: {a: {path: a.jsonl}}\nout: out\nlimit: 5\n")
    assert plain(dry(tmp_path / "r.yaml")["splits"]["train"])["rows"] == 5
    run("compile", tmp_path / "r.yaml")
    assert plain(dry("--from", tmp_path / "out", "-o", tmp_path / "new")["splits"]["train"])["rows"] == 5
    assert "only used with --dry-run" in run("compile", tmp_path / "a.jsonl", "--sample", 9, code=2).stderr
