"""Packs: every example once, none cut, next to no padding; what a pack holds is what the unpacked set holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.sets import link
from compiler.sets.pack import pack
from compiler.sets.rows import CompiledRows
from compiler.sets.shard import ShardWriter
from compiler.sets.words import SpilledRows
from schemas.arrow import OF_SEQUENCES, shard_schema
from schemas.reader import CompiledSet
from tests.support.shared import shared

Run = Callable[..., Result]

EXAMPLES = st.integers(1, 3000).flatmap(
    lambda length: st.tuples(st.just(length), st.lists(st.integers(1, length), max_size=60))
)


def best_fit(lengths: list[int], length: int) -> Counter[tuple[int, ...]]:
    """The definition, word for word: longest first, each into the fullest pack that has room for it."""
    packs: list[list[int]] = []
    for size in sorted(lengths, reverse=True):
        fitting = [one for one in packs if sum(one) + size <= length]
        if fitting:
            max(fitting, key=sum).append(size)
        else:
            packs.append([size])
    return Counter(sum(one) for one in packs)


@settings(deadline=None, derandomize=True, database=None)
@given(EXAMPLES)
def test_packing_is_best_fit_decreasing_and_loses_and_repeats_nothing(case: tuple[int, list[int]]) -> None:
    length, lengths = case
    order, packs = pack(np.array(lengths, np.int64), length)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    parts = [order[a:b].tolist() for a, b in zip(packs.edges, packs.edges[1:], strict=False)]
    sums = [sum(lengths[i] for i in part) for part in parts]
    assert all(0 < total <= length for total in sums)
    assert Counter(sums) == best_fit(lengths, length)
    assert all(part == sorted(part) for part in parts)
    assert [part[0] for part in parts] == sorted(part[0] for part in parts)


def test_an_example_longer_than_a_pack_is_never_packed() -> None:
    with pytest.raises(ValueError, match="5 tokens in packs of 4"):
        pack(np.array([3, 5]), 4)


def sequences(out: Path, split: str = "train") -> list[dict[str, Any]]:
    """Return the examples of a set, packed or not, taken apart here and not by the code under test."""
    found = []
    for row in CompiledSet.open(out).rows(split):
        many = isinstance(row["dataset"], list)
        at = 0
        for i, length in enumerate(row["seq_lens"]):
            end = at + length
            weights = row["loss_weights"][at:end] if row["loss_weights"] else None
            if weights and set(weights) <= {0.0, 1.0}:
                weights = None
            one = {name: row[name][i] if many else row[name] for name in OF_SEQUENCES}
            one |= {"ids": row["input_ids"][at:end], "labels": row["labels"][at:end], "weights": weights}
            for kind in ("images", "videos"):
                media = [m for m in row[kind] if at <= m["position"] < end]
                one[kind] = [m | {"position": m["position"] - at} for m in media]
            found.append(one)
            at = end
        assert at == len(row["input_ids"]) == len(row["labels"]) == sum(span["num_tokens"] for span in row["spans"])
        assert row["num_trained"] == sum(label != -100 for label in row["labels"])
    return found


def by_place(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(examples, key=lambda one: (one["dataset"], one["file"], one["row"], one["part"], one["repeat"]))


MIX = ("--mix", "agent:1,bench:2", "--self-cognition", "1500", "--max-length", "1024", "--overlength", "cut")


def test_packs_hold_the_examples_of_the_unpacked_set_and_are_nearly_full(tmp_path: Path, run: Run) -> None:
    run("compile", *MIX, "-o", tmp_path / "plain", "--val-size", "0.1")
    said = run("compile", *MIX, "-o", tmp_path / "packs", "--val-size", "0.1", "--pack", "1024", "--json")
    assert json.loads(said.stdout)["units_compiled"] == 0
    manifest = CompiledSet.open(tmp_path / "packs").manifest
    for split in ("train", "val"):
        assert by_place(sequences(tmp_path / "packs", split)) == by_place(sequences(tmp_path / "plain", split))
        assert max(sum(row["seq_lens"]) for row in CompiledSet.open(tmp_path / "packs").rows(split)) <= 1024
    assert manifest["packing"]["efficiency"] >= 0.97
    assert manifest["packing"]["sequences"] == manifest["balance"]["in_shards"]
    assert manifest["packing"]["packs"] == sum(split["rows"] for split in manifest["splits"].values())
    assert "100.0%" in said.stderr + said.stdout or any("full" in line for line in json.loads(said.stdout)["remarks"])
    run("verify", tmp_path / "packs")


def test_inspect_shows_the_examples_of_packs_one_by_one(tmp_path: Path, run: Run) -> None:
    chosen = ("--mix", "agent:1", "--no-shuffle", "--max-length", "4096")
    run("compile", *chosen, "-o", tmp_path / "plain")
    run("compile", *chosen, "-o", tmp_path / "packs", "--pack", "4096")
    shown = {}
    for name in ("plain", "packs"):
        lines = run("inspect", tmp_path / name, "--dataset", "agent", "--limit", 1000, "--json").stdout.splitlines()
        shown[name] = {one.pop("source_row"): one for one in map(json.loads, lines)}
        for one in shown[name].values():
            del one["row"]  # its number in the split
    assert shown["packs"] == shown["plain"] != {}
    run("inspect", tmp_path / "packs", "--assert", "user:0")


def test_images_keep_their_place_in_a_pack(tmp_path: Path, run: Run) -> None:
    data = shared("data", "llamafactory", "mllm_demo.json")
    options = ("--tokenizer", shared("tokenizers", "glm4"), "--template", "cogagent", "--max-length", "8000")
    run("compile", data, *options, "-o", tmp_path / "plain", "--max-rejects", "100%")
    run("compile", data, *options, "-o", tmp_path / "packs", "--max-rejects", "100%", "--pack", "8000")
    plain, packs = by_place(sequences(tmp_path / "plain")), by_place(sequences(tmp_path / "packs"))
    assert packs == plain
    assert any(one["images"] for one in packs)


@pytest.mark.parametrize("kind", ["preference", "kto"])
def test_sets_that_judge_whole_replies_are_not_packed(tmp_path: Path, run: Run, kind: str) -> None:
    row: dict[str, Any] = {"instruction": "Hi", "output": "Hello"}
    row |= {"chosen": "Hello", "rejected": "No"} if kind == "preference" else {"kto_tag": True}
    if kind == "preference":
        del row["output"]
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    result = run("compile", tmp_path / "a.jsonl", "--pack", "512", "-o", tmp_path / "out", code=2)
    assert f"--pack 512: a {kind} set is trained on whole replies" in result.stderr


def test_a_pack_must_hold_the_longest_example(tmp_path: Path, run: Run) -> None:
    result = run("compile", *MIX, "--pack", "512", "-o", tmp_path / "out", code=2)
    assert "--max-length 1024: an example of that length does not fit into a pack of 512" in result.stderr


def test_the_length_of_a_pack_is_the_longest_example_where_nothing_else_is_said(tmp_path: Path, run: Run) -> None:
    run("compile", "--mix", "agent:1", "--pack", "700", "-o", tmp_path / "out", "--max-rejects", "100%")
    assert CompiledSet.open(tmp_path / "out").manifest["options"]["max_length"] == 700


@pytest.mark.parametrize("packing", [(), ("--pack", "1024")], ids=["rows", "packs"])
def test_a_set_larger_than_memory_has_the_same_bytes(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, packing: tuple[str, ...]
) -> None:
    monkeypatch.setattr(link, "SHARD_TOKENS", 20_000)
    run("compile", *MIX, *packing, "-o", tmp_path / "at-once")
    monkeypatch.setattr(link, "_memory", lambda: 300_000)  # no process runs in so little
    groups: list[SpilledRows] = []
    really = CompiledRows.spill
    monkeypatch.setattr(CompiledRows, "spill", lambda *given: groups.extend(really(*given)) or list(groups))
    run("compile", *MIX, *packing, "-o", tmp_path / "sorted")
    first, second = (CompiledSet.open(tmp_path / name).manifest for name in ("at-once", "sorted"))
    assert len(first["splits"]["train"]["shards"]) > 10
    assert len(groups) > 2
    assert first["digest"] == second["digest"]
    assert {path.name for path in (tmp_path / "sorted").iterdir()} == {
        path.name for path in (tmp_path / "at-once").iterdir()
    }


@pytest.mark.parametrize("packing", [(), ("--pack", "1024")], ids=["rows", "packs"])
def test_the_bytes_of_a_shard_do_not_depend_on_how_many_rows_are_gathered_at_once(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, packing: tuple[str, ...]
) -> None:
    monkeypatch.setattr(link, "BATCH_ROWS", 64)
    run("compile", *MIX, *packing, "-o", tmp_path / "at-once")
    monkeypatch.setattr(link, "BLOCK_TOKENS", 1)
    run("compile", *MIX, *packing, "-o", tmp_path / "in-blocks")
    at_once, in_blocks = (CompiledSet.open(tmp_path / name).manifest for name in ("at-once", "in-blocks"))
    assert len(at_once["splits"]["train"]["shards"][0]["batches"]) > 3
    assert in_blocks["digest"] == at_once["digest"]


@pytest.mark.parametrize("packing", [(), ("--pack", "1024")], ids=["rows", "packs"])
def test_the_bytes_of_a_batch_depend_on_its_rows_alone(tmp_path: Path, run: Run, packing: tuple[str, ...]) -> None:
    """Written anew from Python values, each batch has the bytes that it has in the shard: no padding but zeros."""
    run("compile", *MIX, *packing, "-o", tmp_path / "out")
    opened = CompiledSet.open(tmp_path / "out")
    schema = shard_schema("sft", packed=bool(packing))
    for shard in opened.shards("train"):
        data = (tmp_path / "out" / shard["file"]).read_bytes()
        for entry in shard["batches"]:
            found = data[entry["offset"] : entry["offset"] + entry["length"]]
            rows = pa.ipc.read_record_batch(pa.py_buffer(found), schema).to_pylist()
            assert pa.RecordBatch.from_pylist(rows, schema).serialize().to_pybytes() == found


def test_an_error_while_the_last_block_is_written_publishes_nothing(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the shard goes well: a write that failed must not be forgotten."""
    really = ShardWriter.write

    def full(self: ShardWriter, table: pa.Table) -> None:
        really(self, table)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardWriter, "write", full)
    result = run("compile", "--mix", "agent:1", "-o", tmp_path / "out", code=5)
    assert "No space left on device" in result.stderr
    assert not (tmp_path / "out").exists()
