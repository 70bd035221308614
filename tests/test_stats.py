"""`cli stats`: figures of sets agree with manifest and shards, estimates of files with what compiling gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pytest
from click.testing import Result

from schemas import schema
from schemas.reader import CompiledSet
from tests.support.sets import Row, chat, entry, manifest, one_message, qa, write

Run = Callable[..., Result]

VALIDATOR = jsonschema.Draft202012Validator(schema("stats"))


@pytest.fixture
def stats(run: Run, tmp_path: Path) -> Callable[..., Row]:
    """A function that gives the figures of a set or of files."""

    def figures(*given: object) -> Row:
        cache = ("--cache", tmp_path / "cache")
        found: Row = json.loads(run("stats", *given, "--json", *cache).stdout)
        VALIDATOR.validate(found)
        return found

    return figures


def talk(i: int) -> Row:
    """A conversation of i % 3 + 1 turns, each with a call and its result."""
    rounds = [("u", f"question {i} {n} " * (i + 1)) for n in range(i % 3 + 1)]
    call = json.dumps({"name": "look", "arguments": {"n": i}})
    turns: list[Any] = []
    for one in rounds:
        turns += [one, ("c", call), ("o", '{"seen": 1}'), ("a", f"answer {i} " * 20)]
    return chat(*turns)


def sources(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / "talks.jsonl", *(talk(i) for i in range(20))),
        write(tmp_path / "short.jsonl", *(qa(f"q{i}", "word " * (i * 9 + 1)) for i in range(40))),
    ]


@pytest.mark.parametrize("pack", [(), ("--pack", 4096)], ids=["rows", "packs"])
def test_figures_of_a_set_are_those_of_its_manifest_and_of_its_shards(
    run: Run, stats: Callable[..., Row], tmp_path: Path, pack: tuple[Any, ...]
) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    files = sources(tmp_path)
    run("compile", *files, "--val-size", 5, "-o", plain)
    run("compile", *files, "--val-size", 5, "-o", out, *pack)
    found = stats(out)
    says = manifest(out)
    for dataset in says["datasets"]:
        for key in ("rows", "tokens", "trained_tokens"):
            assert found["datasets"][dataset["name"]][key] == dataset["realized"][key]
    assert found["total"]["tokens"] == sum(split["tokens"] for split in says["splits"].values())
    assert found["packs"] == (says["packing"]["packs"] if pack else None)
    opened = CompiledSet.open(plain)
    shards = pl.concat([pl.DataFrame(pl.from_arrow(opened.table(split))) for split in ("train", "val")])
    rows = shards.select("dataset", length=pl.col("input_ids").list.len(), trained=pl.col("num_trained"))
    for name in ("short", "talks"):
        mine = rows.filter(pl.col("dataset") == name)
        assert found["datasets"][name]["length"]["p50"] == mine["length"].quantile(0.5, "lower")
        assert found["datasets"][name]["length"]["max"] == mine["length"].max()
        share = (mine["trained"] / mine["length"]).min()
        assert found["datasets"][name]["trained_share"]["min"] == pytest.approx(share, abs=1e-6)
    turns = sum(i % 3 + 1 for i in range(20))
    assert found["datasets"]["talks"]["tool_results"] == turns
    assert found["datasets"]["talks"]["turns"] == 2 * turns  # each round has a call and an answer
    assert (found["datasets"]["short"]["turns"], found["datasets"]["short"]["tool_results"]) == (40, 0)
    assert [one["max_length"] for one in found["max_length"]][:2] == [512, 1024]
    for one in found["max_length"]:
        fits = rows.filter(pl.col("length") <= one["max_length"])
        assert (one["rows"], one["trained_tokens"]) == (len(fits), fits["trained"].sum())
    assert found["max_length"][0]["rows_share"] < found["max_length"][-1]["rows_share"] == 1


def test_a_maximum_length_of_pairs_keeps_the_rows_that_a_compile_with_it_keeps(
    run: Run, stats: Callable[..., Row], tmp_path: Path
) -> None:
    lengths = [(100, 420), (700, 700), (300, 30), (900, 5)]
    pairs = [{"instruction": "q", "chosen": "yes " * a, "rejected": "no " * b} for a, b in lengths]
    file = write(tmp_path / "p.jsonl", *pairs)
    run("compile", file, "-o", tmp_path / "out")
    found = stats(tmp_path / "out")
    assert found["total"]["tokens"] == entry(tmp_path / "out")["realized"]["tokens"]
    kept = {one["max_length"]: one["rows"] for one in found["max_length"]}
    assert set(kept.values()) >= {2, 4}
    for length, rows in kept.items():
        out = tmp_path / str(length)
        run("compile", file, "--max-length", length, "--overlength", "reject", "--max-rejects", 4, "-o", out)
        assert entry(out)["realized"]["rows"] == rows


def test_files_are_counted_in_full_and_tokens_estimated_within_the_interval(
    run: Run, stats: Callable[..., Row], tmp_path: Path
) -> None:
    some = [qa(f"q{i} 你好", "word " * (i * 37 % 50 + 1), **({"note": ["ab", {"c": "d"}]} if i % 4 == 0 else {}))
            for i in range(400)]  # fmt: skip
    file = write(tmp_path / "x.jsonl", *some, "broken", {"instruction": 5})
    (found,) = stats(file, "--sample", 100)["datasets"]
    assert (found["rows"], found["unreadable"], found["format"]) == (402, 1, "alpaca")
    characters = sum(len(row["instruction"]) + len(row["output"]) + 3 * ("note" in row) for row in some)
    assert found["characters"] == characters
    keys = {one["key"]: one for one in found["keys"]}
    assert {key: one["rows"] for key, one in keys.items()} == {"instruction": 401, "output": 400, "note": 100}
    assert keys["note"]["characters"] == 300
    run("compile", file, "--max-rejects", 2, "-o", tmp_path / "out")
    true = entry(tmp_path / "out")["realized"]
    for key in ("tokens", "trained_tokens"):
        error = found["tokens"][f"{key}_error"]
        assert 0 < abs(found["tokens"][key] - true[key]) <= error < true[key] / 5
    (exact,) = stats(file, "--exact")["datasets"]
    assert {key: exact["tokens"][key] for key in ("exact", "tokens", "trained_tokens", "rejected", "tokens_error")} == {
        "exact": True, "tokens": true["tokens"], "trained_tokens": true["trained_tokens"], "rejected": 2,
        "tokens_error": 0,
    }  # fmt: skip
    assert stats(file, "--sample", 100) == stats(file, "--sample", 100)
    assert stats(file, "--sample", 100, "--seed", 1)["datasets"][0]["tokens"] != found["tokens"]


def test_nearly_all_intervals_hold_the_true_number(stats: Callable[..., Row], tmp_path: Path) -> None:
    """Of 20, 19 should on average; fewer than 16 would be a chance of three in a thousand."""
    file = write(tmp_path / "x.jsonl", *(qa(f"q{i}", "word " * (i * 37 % 50 + 1) + "x" * (i % 7)) for i in range(300)))
    true = stats(file, "--exact")["datasets"][0]["tokens"]["tokens"]
    hold = 0
    for seed in range(20):
        found = stats(file, "--sample", 60, "--seed", seed)["datasets"][0]["tokens"]
        hold += abs(found["tokens"] - true) <= found["tokens_error"]
    assert hold >= 16


def test_rows_of_no_known_format_are_counted_too_and_the_reason_is_said(
    stats: Callable[..., Row], tmp_path: Path
) -> None:
    (found,) = stats(write(tmp_path / "x.jsonl", *({"a": "xyz", "b": i} for i in range(5))))["datasets"]
    assert (found["format"], found["tokens"], found["rows"], found["characters"]) == (None, None, 5, 15)
    assert "match no known format" in found["note"]


def test_what_cannot_be_counted_is_one_message(run: Run, tmp_path: Path) -> None:
    file, out = write(tmp_path / "x.jsonl", *(qa(f"q{i}") for i in range(9))), tmp_path / "out"
    run("compile", file, "-o", out)
    assert "a set is counted by itself" in one_message(run("stats", out, file, code=2).stderr)
    assert "--sample is for files" in one_message(run("stats", out, "--sample", 3, code=2).stderr)
    assert "counts none" in one_message(run("stats", file, "--sample", 0, "--seed", 1, code=2).stderr)
    assert "no such file" in one_message(run("stats", tmp_path / "none.jsonl", code=5).stderr)
    shard = out / "train" / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[manifest(out)["splits"]["train"]["shards"][0]["batches"][0]["offset"] + 700] ^= 1
    shard.write_bytes(data)
    assert "shard-00000.arrow: batch 0" in one_message(run("stats", out, code=4).stderr)
    (out / "manifest.json").unlink()
    assert "no manifest.json" in one_message(run("stats", out, code=5).stderr)


def test_the_demo_tokenizer_is_said_to_be_no_models(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", qa("q"))
    assert "is no model's" in run("stats", file, "--cache", tmp_path / "c").stderr
    assert "is no model's" not in run("stats", file, "--sample", 0, "--cache", tmp_path / "c").stderr
