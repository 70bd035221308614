"""Which rows are trained when, and that they are the rows that were compiled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import main
from schemas.arrow import MANIFEST
from schemas.errors import InputError, IntegrityError, UsageError
from schemas.order import Ints, Shuffled, hashes
from schemas.steps import BLOCK_STEPS, Order
from tests.support.command import runner
from tests.support.store import BUCKET, Store
from tests.support.trained import small_set, write_manifest
from trainer.data import stream
from trainer.data.collate import Collator
from trainer.data.loader import Loader
from trainer.data.order import micro_batches
from trainer.data.store import CachedShards


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("stream"))


@pytest.fixture
def broken(data: Path, tmp_path: Path) -> Path:
    """A copy of the set to break."""
    return Path(shutil.copytree(data, tmp_path / "broken"))


# -- the order --

cases = st.tuples(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))


def lengths(rows: Ints) -> Ints:
    return (rows * 7919) % 97


@given(cases, st.booleans())
def test_an_epoch_is_every_row_once_whatever_its_last_step(case: tuple[int, int, int], grouped: bool) -> None:
    rows, step_rows, seed = case
    order = Order(rows, step_rows, seed, lengths if grouped else None)
    for epoch in (0, 1):
        first = epoch * order.steps_per_epoch
        steps = [order.step(first + i) for i in range(order.steps_per_epoch)]
        assert sorted(np.concatenate(steps)) == list(range(rows))
        assert {len(step) for step in steps[:-1]} <= {step_rows}
        assert len(steps[-1]) == (rows - 1) % step_rows + 1


@given(cases, st.booleans(), st.integers(0, 100))
def test_a_step_is_a_function_of_its_number(case: tuple[int, int, int], grouped: bool, number: int) -> None:
    """Asked for first or after others: the position is one integer."""
    rows, step_rows, seed = case
    order = Order(rows, step_rows, seed, lengths if grouped else None)
    for other in (0, number + 1, number + order.steps_per_epoch):
        order.step(other)
    fresh = Order(rows, step_rows, seed, lengths if grouped else None)
    assert order.step(number).tolist() == fresh.step(number).tolist()


@given(cases, st.integers(1, 4), st.integers(1, 4))
def test_processes_share_a_step_without_loss_or_repeat(case: tuple[int, int, int], world: int, micro: int) -> None:
    rows, accumulation, seed = case[0], case[1] % 4 + 1, case[2]
    order = Order(rows, world * micro * accumulation, seed)
    for number in (0, order.steps_per_epoch - 1):
        step = order.step(number)
        shares = [micro_batches(step, rank, world, micro, accumulation) for rank in range(world)]
        assert sorted(row for share in shares for part in share for row in part) == sorted(step)
        assert {len(share) for share in shares} == {accumulation}, "all make as many passes"
        assert max(len(part) for share in shares for part in share) <= micro


def test_seeds_and_epochs_give_other_orders() -> None:
    orders = {tuple(Order(50, 50, seed).step(epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_order_is_that_of_splitmix64() -> None:
    """A resumed run must find the order of its first half, also after an update: derived here without numpy."""

    def mixed(row: int) -> int:
        salt = int.from_bytes(hashlib.sha256(b"42:epoch:1").digest()[:8], "little")
        key = ((salt ^ row) + 0x9E3779B97F4A7C15) % 2**64
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
        return key ^ key >> 31

    assert Order(10, 10, 42).step(1).tolist() == sorted(range(10), key=mixed)


@given(st.integers(0, 400), st.integers(1, 90), st.integers(1, 70))
def test_an_order_that_is_made_piece_by_piece_is_the_one_that_is_made_at_once(
    count: int, piece: int, part: int
) -> None:
    whole = np.argsort(hashes(3, "epoch:0", np.arange(count)), kind="stable").tolist()
    shuffled = Shuffled(count, 3, "epoch:0", piece)
    parts = [shuffled.part(start, start + part).tolist() for start in range(0, count, part)]
    assert [row for some in parts for row in some] == whole
    assert Shuffled(count, 3, "epoch:0", piece).part(count // 2, count).tolist() == whole[count // 2 :]


def test_a_hundred_million_rows_are_put_in_order_in_little_memory() -> None:
    tracemalloc.start()
    Order(100_000_000, 16, 42).step(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250e6  # a list of all takes 800 MB


def test_rows_of_similar_length_share_a_step() -> None:
    rows = 8 * BLOCK_STEPS * 2
    grouped, plain = Order(rows, 8, 0, lengths), Order(rows, 8, 0)

    def waste(order: Order) -> float:
        steps = [lengths(order.step(i)) for i in range(order.steps_per_epoch)]
        return 1 - sum(one.sum() for one in steps) / sum(one.max() * len(one) for one in steps)

    assert waste(grouped) < 0.05
    assert waste(plain) > 0.3
    firsts = [int(lengths(grouped.step(i))[0]) for i in range(BLOCK_STEPS)]
    assert firsts != sorted(firsts), "steps are not trained from short to long"


# -- rows --


def test_any_row_is_the_compiled_one(data: Path) -> None:
    split = stream.TrainingSet.open(str(data)).split("train")
    manifest = json.loads((data / MANIFEST).read_text())
    shards = [pa.ipc.open_file(str(data / s["file"])).read_all() for s in manifest["splits"]["train"]["shards"]]
    table = pa.concat_tables(shards).to_pylist()
    assert len(split) == len(table)
    for number in (len(split) - 1, 0, 17):
        row = split.row(number)
        for name in ("input_ids", "labels", "seq_lens"):
            assert row[name].tolist() == table[number][name]
        assert {key: row[key] for key in ("dataset", "file", "row", "images")} == {
            key: table[number][key] for key in ("dataset", "file", "row", "images")
        }
    found = split.lengths(np.arange(len(split)))
    assert found.tolist() == [len(one["input_ids"]) for one in table]
    assert split.longest_example(1 << 20) == max(found)


def test_a_row_is_described_by_its_place(tmp_path: Path) -> None:
    """As `cli inspect --row` takes it: a line, or the number of a row in an array. Of a pack, three examples."""
    row = {"instruction": "a", "output": "b"}
    text = "\n\n".join(json.dumps(row | {"instruction": f"say {n}"}) for n in range(4))
    (tmp_path / "lines.jsonl").write_text(text, "utf-8")
    (tmp_path / "array.json").write_text(json.dumps([row]), "utf-8")
    said = {}
    for name, options in (
        ("lines", ("lines.jsonl",)),
        ("array", ("array.json",)),
        ("packs", ("lines.jsonl", "--pack", "500")),
    ):
        files = [str(tmp_path / options[0]), *options[1:], "--no-shuffle", "-o", str(tmp_path / name)]
        made = runner().invoke(main, ["compile", *files, "--cache", str(tmp_path / "cache")], catch_exceptions=False)
        assert made.exit_code == 0, made.stderr
        rows = stream.TrainingSet.open(tmp_path / name).split("train")
        said[name] = [rows.describe(n).replace(f"{tmp_path}/", "") for n in range(len(rows))]
    assert said["lines"] == [f"row {n} (lines lines.jsonl:{2 * n + 1})" for n in range(4)]
    assert said["array"] == ["row 0 (array array.json#/0)"]
    first = ", ".join(f"lines lines.jsonl:{line}" for line in (1, 3, 5))
    assert said["packs"] == [f"pack 0 ({first}, ... 1 more)"]


def test_every_flipped_byte_of_a_batch_is_seen_before_it_is_used(broken: Path) -> None:
    entry = json.loads((broken / MANIFEST).read_text())["splits"]["train"]["shards"][0]
    path, batch = broken / entry["file"], entry["batches"][0]
    whole = path.read_bytes()
    for place in np.linspace(batch["offset"], batch["offset"] + batch["length"] - 1, 40).astype(int):
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"shard-00000.arrow: batch 0 \(rows 0 to \d+\) is damaged"):
            stream.TrainingSet.open(str(broken)).split("train").row(0)
    for place in (3, len(whole) - 30):  # the file's head and its footer, which are not needed
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        stream.TrainingSet.open(str(broken)).split("train").row(0)


def test_lengths_are_read_without_the_rows_and_no_damaged_row_is_trained(broken: Path) -> None:
    """The first step waits for the lengths of 64 steps: for a few bytes of their batches, not for all."""
    entry = json.loads((broken / MANIFEST).read_text())["splits"]["train"]["shards"][0]
    path, batch = broken / entry["file"], entry["batches"][0]
    known = stream.TrainingSet.open(str(broken)).split("train").lengths(np.arange(5)).tolist()
    data = bytearray(path.read_bytes())
    data[batch["offset"] + batch["length"] // 2] ^= 4
    path.write_bytes(data)
    split = stream.TrainingSet.open(str(broken)).split("train")
    assert split.lengths(np.arange(5)).tolist() == known
    with pytest.raises(IntegrityError, match="is damaged"):
        split.row(0)
    data[batch["offset"] : batch["offset"] + 40] = bytes(40)  # lengths cannot be read either
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged"):
        stream.TrainingSet.open(str(broken)).split("train").lengths(np.arange(5))


def test_a_shard_that_is_short_or_gone_is_named(broken: Path) -> None:
    path = broken / "train" / "shard-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"expected .* bytes, found"):
        stream.TrainingSet.open(str(broken)).split("train").row(0)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"shard-00000\.arrow: No such file"):
        stream.TrainingSet.open(str(broken)).split("train").row(0)


def test_what_is_no_set_is_refused(tmp_path: Path, broken: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        stream.TrainingSet.open(str(tmp_path / "nowhere"))
    (broken / MANIFEST).write_text((broken / MANIFEST).read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(IntegrityError, match="its own digest does not match"):
        stream.TrainingSet.open(str(broken))
    (broken / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"no manifest\.json: the set is not complete"):
        stream.TrainingSet.open(str(broken))


def test_an_empty_split_is_refused(broken: Path) -> None:
    manifest = json.loads((broken / MANIFEST).read_text())
    manifest["splits"]["val"] |= {"rows": 0, "tokens": 0, "trained_tokens": 0, "shards": []}
    write_manifest(broken, manifest)
    with pytest.raises(UsageError, match=r"split val: it is empty\n.*--val-size"):
        stream.TrainingSet.open(str(broken)).split("val")


def test_the_set_and_the_model_must_have_one_tokenizer(data: Path, tmp_path: Path) -> None:
    manifest = stream.TrainingSet.open(str(data)).manifest
    model = Path(shutil.copytree(data / "tokenizer", tmp_path / "model"))
    known = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    stream.check_files(manifest, model, known)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(IntegrityError, match=r"chat_template\.jinja: .*there was none when the set was compiled"):
        stream.check_files(manifest, model, known)
    (model / "chat_template.jinja").unlink()
    config = model / "tokenizer_config.json"
    config.write_text(config.read_text().replace("im_end", "im_stop"))
    with pytest.raises(IntegrityError, match="it differs from the one that the set was compiled with"):
        stream.check_files(manifest, model, known)
    config.unlink()
    with pytest.raises(IntegrityError, match="the model's folder has none"):
        stream.check_files(manifest, model, known)


# -- an object store --


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def uploaded(data: Path, store: Store, cache: Path) -> str:
    """A set that was compiled into a real object store."""
    uri = f"s3://{BUCKET}/{cache.parent.name}/set"
    assert not store.keys(cache.parent.name)
    files = [data.parent / f"{name}.jsonl" for name in ("plain", "other")]
    given = [str(file) for file in files] + ["--val-size", "6", "-o", uri, "--workers", "1"]
    assert runner().invoke(main, ["compile", *given, "--cache", str(cache / "units")]).exit_code == 0
    return uri


def test_a_set_in_an_object_store_has_the_rows_of_one_in_a_folder(data: Path, uploaded: str, cache: Path) -> None:
    local, remote = stream.TrainingSet.open(str(data)).split("train"), stream.TrainingSet.open(uploaded).split("train")
    for number in range(len(local)):
        assert local.row(number)["input_ids"].tolist() == remote.row(number)["input_ids"].tolist()
    kept = [path for path in (cache / "finetune-data-compiler" / "shards").rglob("*") if path.is_file()]
    assert len(kept) == sum(len(shard["batches"]) for shard in local.shards)
    whole = kept[0].read_bytes()
    kept[0].write_bytes(bytes(len(whole)))
    stream.TrainingSet.open(uploaded).split("train").row(0)
    assert kept[0].read_bytes() == whole, "what is damaged in the cache is fetched again"


def test_a_batch_that_is_damaged_in_an_object_store_is_seen(uploaded: str, store: Store) -> None:
    prefix = uploaded.removeprefix(f"s3://{BUCKET}/")
    key = next(key for key in store.keys(prefix) if key.endswith("train/shard-00000.arrow"))
    data = bytearray(store.get(f"{prefix}/{key}"))
    data[len(data) // 2] ^= 1
    store.put(f"{prefix}/{key}", bytes(data))
    with pytest.raises(IntegrityError, match="is damaged"):
        stream.TrainingSet.open(uploaded).split("train").row(0)
    store.client.delete_object(Bucket=BUCKET, Key=f"{prefix}/{key}")
    with pytest.raises(IntegrityError, match=r"shard-00000\.arrow: No such file"):
        stream.TrainingSet.open(uploaded).split("val").row(0)
        stream.TrainingSet.open(uploaded).split("train").row(0)


def test_the_cache_of_an_object_store_is_bounded(uploaded: str) -> None:
    opened = stream.TrainingSet.open(uploaded)
    (train,), (val,) = opened.split("train").shards, opened.split("val").shards
    remote = opened.source
    assert isinstance(remote, CachedShards)
    remote.limit = train["batches"][0]["length"] + 100
    for shard in (train, val, train, val):
        batch = shard["batches"][0]
        assert remote.read(shard, batch["offset"], batch["length"]).size == batch["length"]
        assert sum(path.stat().st_size for path in remote.cache.iterdir()) <= remote.limit


def test_a_batch_that_another_process_removes_from_the_cache_is_fetched_again(
    uploaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = stream.TrainingSet.open(uploaded)
    remote, (shard,) = opened.source, opened.split("train").shards
    assert isinstance(remote, CachedShards)
    batch = shard["batches"][0]
    whole = remote.read(shard, batch["offset"], batch["length"]).to_pybytes()
    kept, utime = remote.cache / f"{shard['sha256']}-{batch['offset']}", os.utime

    def removed(path: Path, *rest: Any) -> None:  # between two looks at the file
        path.unlink(missing_ok=True)
        utime(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", removed)
        assert remote.read(shard, batch["offset"], batch["length"]).to_pybytes() == whole
    assert not kept.exists()
    assert remote.read(shard, batch["offset"], batch["length"]).to_pybytes() == whole
    assert kept.exists()


@pytest.mark.usefixtures("store")
def test_an_object_store_without_the_set_is_named() -> None:
    with pytest.raises(InputError, match="no such"):
        stream.TrainingSet.open(f"s3://{BUCKET}/nowhere")


# -- batches --


def collator(packed: bool) -> Collator:
    return Collator(packed=packed, pad=0)


def test_a_batch_is_its_rows_and_padding(data: Path) -> None:
    split = stream.TrainingSet.open(str(data)).split("train")
    rows = [split.row(i) for i in range(5)]
    batch = collator(False)(rows)
    length = max(len(row["input_ids"]) for row in rows)
    assert batch["num_tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert batch["dataset"] == [row["dataset"] for row in rows]
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        trained = row["labels"] != -100
        weights = trained.astype(float) if row["loss_weights"] is None else row["loss_weights"]
        assert batch["input_ids"][i].tolist() == [*row["input_ids"], *[0] * (length - n)]
        assert batch["labels"][i].tolist() == [*row["labels"], *[-100] * (length - n)]
        assert batch["loss_weights"][i].tolist() == pytest.approx([*weights, *[0] * (length - n)])
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (length - n)
        assert batch["position_ids"][i].tolist() == list(range(length))
    assert any(row["loss_weights"] is not None for row in rows)


def test_a_batch_of_packs_says_where_sequences_begin_and_has_no_mask(tmp_path: Path) -> None:
    split = stream.TrainingSet.open(str(small_set(tmp_path, "--pack", 64))).split("train")
    rows = [split.row(0), split.row(len(split) - 1)]
    batch = collator(True)(rows)
    assert "attention_mask" not in batch
    assert batch["num_tokens"] == sum(row["seq_lens"].sum() for row in rows) < batch["input_ids"].numel()
    for i, row in enumerate(rows):
        starts = np.cumsum([0, *row["seq_lens"]])
        found = (batch["position_ids"][i] == 0).nonzero().flatten().tolist()
        assert found == [start for start in starts.tolist() if start < batch["input_ids"].shape[1]]
    assert [one["dataset"] for number in (0, len(split) - 1) for one in split.sequences(number)] == batch["dataset"]


def test_a_process_without_rows_gets_a_batch_in_which_nothing_is_trained(data: Path) -> None:
    batch = collator(False).nothing(stream.TrainingSet.open(str(data)).split("train").row(0))
    assert batch["num_tokens"] == 0
    assert not batch["loss_weights"].any()
    assert (batch["labels"] == -100).all()


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 3), st.integers(0, 9))
def test_threads_change_nothing(data: Path, threads: int, start: int) -> None:
    split = stream.TrainingSet.open(str(data)).split("train")
    order = Order(len(split), 6, 1, split.lengths)

    def batches(workers: int) -> list[torch.Tensor]:
        loader = Loader(split, order, collator(False), 0, 1, 3, 2, workers)
        return [batch["input_ids"] for step in loader.steps(start, start + 8) for batch in step.batches]

    for one, other in zip(batches(0), batches(threads), strict=True):
        assert torch.equal(one, other)
