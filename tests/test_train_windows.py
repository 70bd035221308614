"""Rows that are shuffled within windows of some shards: each once, whoever trains them, and few bytes at a time."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainer
from schemas.arrow import MANIFEST
from schemas.errors import UsageError
from schemas.order import Ints
from schemas.reader import CompiledSet
from schemas.steps import Order, Together
from tests.support.store import BUCKET, Store, wire_to
from tests.support.trained import (
    compile_set,
    config,
    in_shards,
    losses,
    rows,
    run_to_end,
    save_model,
    small_set,
    train,
    write,
)
from trainer import device
from trainer.config import load as configs
from trainer.data.collate import Collator
from trainer.data.loader import Loader
from trainer.data.order import micro_batches, places_of
from trainer.run import checks, plan, shuffle
from trainer.run.checkpoints import Checkpoint

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_process")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("windows")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_model(folder / "model")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    return in_shards(small_set(folder / "data"), 6)


# -- the order --


def lengths(found: Ints) -> Ints:
    return (found * 7919) % 97


shards = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(shards, st.integers(1, 24), st.integers(1, 13), st.booleans())
def test_an_epoch_is_every_row_once(sizes: list[int], step_rows: int, together: int, grouped: bool) -> None:
    order = Order.of(sizes, step_rows, 3, lengths if grouped else None, together)
    for epoch in (0, 1):
        first = epoch * order.steps_per_epoch
        steps = [order.step(first + i) for i in range(order.steps_per_epoch)]
        assert sorted(np.concatenate(steps)) == list(range(sum(sizes)))
        assert {len(step) for step in steps[:-1]} <= {step_rows}
        assert len(steps[-1]) == (sum(sizes) - 1) % step_rows + 1


@given(shards, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 60))
def test_a_process_knows_its_rows_without_the_lengths_of_others(
    sizes: list[int], world: int, micro: int, accumulation: int, number: int
) -> None:
    """As a process that begins there: the step is one integer. With pairs it knows the row after its last, too."""
    step_rows = world * micro * accumulation
    whole = Order.of(sizes, step_rows, 3, lengths, 5).step(number)
    shares = []
    for rank in range(world):
        mine = Order.of(sizes, step_rows, 3, lengths, 5).step(number, places_of(rank, world, step_rows, pairs=True))
        parts = micro_batches(mine, rank, world, micro, accumulation, lanes=True)
        assert len(parts) == accumulation and max(map(len, parts)) <= micro
        shares += [row for part in parts for row in part]
        assert len(mine) == len(whole)
        after = (rank + 1) * world * micro * accumulation // world % step_rows
        assert after >= len(whole) or mine[after] == whole[after]
    assert shares == whole.tolist()


def test_the_order_is_that_of_the_hashes_of_shards_and_rows() -> None:
    """A resumed run must find the order of its first half, also after an update: derived here without numpy."""

    def sorted_by(what: str, numbers: range | list[int]) -> list[int]:
        def mixed(number: int) -> int:
            salt = int.from_bytes(hashlib.sha256(f"42:{what}".encode()).digest()[:8], "little")
            key = ((salt ^ number) + 0x9E3779B97F4A7C15) % 2**64
            key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
            return key ^ key >> 31

        return sorted(numbers, key=mixed)

    sizes, step_rows, together = [4, 9, 3, 8, 6, 2], 6, 2  # 32 rows: 2 lanes of 15, 3 of a step each, and 2 rows left
    starts = [sum(sizes[:n]) for n in range(6)]
    epoch = [starts[n] + i for n in sorted_by("shards:1", range(6)) for i in range(sizes[n])]
    window = 32 * together // 6 // 2
    lanes = []
    for lane, first in ((epoch[:15], window // 2), (epoch[15:30], window)):
        edges = [0, *range(first, 15, window), 15]
        lanes.append([row for a, b in itertools.pairwise(edges) for row in sorted_by("epoch:1", lane[a:b])])
    steps = [lanes[0][3 * n : 3 * n + 3] + lanes[1][3 * n : 3 * n + 3] for n in range(5)]
    order = Order.of(sizes, step_rows, 42, None, together)
    assert [order.step(6 + n).tolist() for n in range(6)] == [*steps, epoch[30:]]


def test_rows_of_similar_length_share_a_step_in_windows_too() -> None:
    grouped, plain = (Order.of([500] * 20, 32, 0, by, 8) for by in (lengths, None))

    def waste(order: Order) -> float:
        passes = [lengths(part) for i in range(order.steps_per_epoch - 1) for part in order.step(i).reshape(-1, 4)]
        return 1 - sum(one.sum() for one in passes) / sum(one.max() * len(one) for one in passes)

    assert waste(grouped) < 0.05
    assert waste(plain) > 0.3


def test_two_machines_fetch_a_set_once_between_them_with_caches_of_a_tenth() -> None:
    """An LRU cache for each machine, batches of 10 rows; the same with all rows together fetches several times that."""

    def fetched(together: Together) -> float:
        order, total = Order.of([200] * 100, 32, 1, None, together), 0
        for machine in range(2):
            kept: OrderedDict[int, None] = OrderedDict()
            for number in range(order.steps_per_epoch):
                for part in micro_batches(order.step(number), machine, 2, 4, 4, lanes=order.windows is not None):
                    for batch in (part // 10).tolist():
                        total += batch not in kept
                        kept[batch] = None
                        kept.move_to_end(batch)
                        if len(kept) > 200:
                            kept.popitem(last=False)
        return total / 2000

    assert fetched("all") > 5
    assert fetched(2) < 1.15
    assert fetched(4) < 1.15


# -- runs --


def test_a_run_says_its_windows_and_a_resumed_one_goes_on_with_them(data: Path, model: Path, tmp_path: Path) -> None:
    asked = {"shuffle_shards": 2, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    asked |= {"max_steps": 24}  # more than an epoch
    whole, parts = config(tmp_path / "whole.json", model, **asked), config(tmp_path / "parts.json", model, **asked)
    said = train(data, whole).stderr
    assert "order: shards in a seeded order, and the rows of 2 of the 6 shuffled together, 11 at a time" in said
    train(data, parts, "--set", "max_steps=9")
    about = json.loads((tmp_path / "parts" / "checkpoint-9" / "run.json").read_text())
    assert about["shuffle_shards"] == 2
    refused = train(data, parts, "--resume", "yes", "--set", "shuffle_shards=3", code=2).stderr
    assert "made by another run" in refused and "shuffle_shards: 2, now 3" in refused
    train(data, parts, "--resume", "yes", "--set", "shuffle_shards=auto")
    assert losses(parts) == losses(whole)
    assert len(losses(whole)) == 24


@pytest.mark.parametrize("kind", ["packed", "kto", "preference"])
def test_two_processes_train_what_one_does(tmp_path: Path, kind: str) -> None:
    """Each row of an epoch once, of packs and pairs too, and each process reads its own shards."""
    chats = [{"instruction": f"say {n}", "output": f"{n} it is"} for n in range(120)]
    made = {
        "packed": (chats, ("--pack", 64)),
        "kto": ([row | {"kto_tag": n % 3 > 0} for n, row in enumerate(chats)], ()),
        "preference": ([{"instruction": f"say {n}", "chosen": f"{n}", "rejected": "no"} for n in range(120)], ()),
    }
    lines, options = made[kind]
    out = in_shards(compile_set(tmp_path / "set", write(tmp_path / "rows.jsonl", lines), *options), 8)
    found: dict[int, list[int]] = {}
    for rank, threads in enumerate((0, 3)):
        one = trainer.dataset(out, rank=rank, world=2, batch_size=2, accumulation=2, threads=threads, shuffle_shards=2)
        found[rank] = [int(row) for step in one.steps() for part in step.mine for row in part]
    total = len(one.rows)
    assert sorted(found[0] + found[1]) == list(range(total))
    edges = np.cumsum([shard["rows"] for shard in one.rows.shards])
    read = [set(np.searchsorted(edges, some, side="right").tolist()) for some in found.values()]
    assert len(read[0] & read[1]) <= 2  # where lanes meet, and in the last step
    alone = trainer.dataset(out, batch_size=4, accumulation=2, shuffle_shards=2)
    whole = [[int(row) for part in step.mine for row in part] for step in alone.steps()]
    assert [row for step in whole for row in step][: total // 8 * 8] == [
        row for n in range(total // 8) for some in found.values() for row in some[4 * n : 4 * n + 4]
    ]


@pytest.mark.slow
def test_processes_of_a_run_train_the_losses_of_one(data: Path, model: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"shuffle_shards": 2, "max_steps": 6, "per_device_train_batch_size": 1}
    one, two = (config(tmp_path / f"{name}.json", model, **asked) for name in ("one", "two"))
    train(data, one, "--set", "gradient_accumulation_steps=4")
    run_to_end(2, data, two, "--set", "gradient_accumulation_steps=2")
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_a_key_without_effect_is_refused_or_said(data: Path, model: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run.json", model)
    said = train(data, run, "--dry-run", "--set", "shuffle_shards=6").stdout
    assert "shuffle_shards: 6 is the same as all: the split has 6" in said
    assert "order      all 34 rows shuffled together (shuffle_shards: all)" in said
    facts = json.loads(train(data, run, "--dry-run", "--json", "--set", "shuffle_shards=2").stdout)
    assert facts["shuffle_shards"] == 2
    refused = train(data, run, "--dry-run", "--set", "store_cache_gib=8", code=2).stderr
    assert "#/store_cache_gib: it has no effect: the set is in a folder" in refused
    with pytest.raises(UsageError, match=r"shuffle_shards=0.*expected auto, all, or a number above 0"):
        trainer.dataset(data, shuffle_shards=0)


# -- an object store --


@pytest.fixture(scope="module")
def stored(folder: Path, store: Store) -> tuple[str, int]:
    """A set of 20 shards in a real object store, and the bytes of its batches."""
    long = [{"messages": [{**m, "content": m["content"] * 20} for m in row["messages"]]} for row in rows(800, 1)]
    out = in_shards(compile_set(folder / "stored", write(folder / "long.jsonl", long)), 20, batch_rows=10)
    manifest = json.loads((out / MANIFEST).read_text())
    for path in out.rglob("*"):
        if path.is_file():
            store.put(f"windows/{path.relative_to(out)}", path.read_bytes())
    shards = manifest["splits"]["train"]["shards"]
    return f"s3://{BUCKET}/windows", sum(batch["length"] for shard in shards for batch in shard["batches"])


@pytest.mark.parametrize("grouped", [True, False])
def test_an_epoch_fetches_a_set_once_with_a_cache_of_a_tenth(
    stored: tuple[str, int], store: Store, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grouped: bool
) -> None:
    """What `cli train` reads in an epoch, in bytes that a real store sends, headers included."""
    uri, size = stored
    asked = {"store_cache_gib": size / 10 / 2**30, "group_by_length": grouped, "per_device_train_batch_size": 8}
    found = {}
    for together in ("auto", "all"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache" / together))
        run = config(tmp_path / f"{together}.json", model, **asked, shuffle_shards=together)
        with wire_to(store) as wire:
            made = plan.make(uri + wire.query, configs.load(run), None, device.find(use_cpu=True))
            collate = Collator(False, 0, made.objective.sides)
            loader = Loader(made.train, made.order, collate, 0, 1, made.micro, made.accumulation, threads=2)
            steps = made.order.steps_per_epoch if together == "auto" else 20
            read = [row for step in loader.steps(0, steps) for row in step.rows.tolist()]
            found[together] = wire.received
        assert sorted(read) == list(range(800)) if together == "auto" else len(read) == 160
        kept = [path for path in (tmp_path / "cache" / together).rglob("*") if path.is_file()]
        assert 0 < sum(path.stat().st_size for path in kept) <= size / 10
        thrashes = [remark for remark in made.remarks if "so that batches are fetched several times" in remark]
        assert bool(thrashes) == (together == "all")
        earlier = cast("Checkpoint", SimpleNamespace(run={}))  # of a version that had no windows: its order stays
        assert shuffle.together(made.train, "auto", earlier, []) == "all"
        assert ("the rows of 1 of the 20 shuffled together" in made.order_in_words) == (together == "auto")
    assert found["auto"] < 1.3 * size
    assert found["all"] > 1.3 * size  # in a fifth of an epoch


@pytest.mark.usefixtures("store")
def test_a_set_that_fits_into_the_cache_is_shuffled_as_in_a_folder(
    stored: tuple[str, int], folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote, local = (config(tmp_path / f"{name}.json", model) for name in ("remote", "local"))
    assert "order: all 800 rows shuffled together (shuffle_shards: all)" in train(stored[0], remote).stderr
    assert "order:" not in train(folder / "stored", local).stderr
    assert losses(remote) == losses(local)


# -- what is not read before the first step --


def test_rows_beyond_the_first_are_compared_with_the_expected_length_when_they_are_read(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "COMPARED", 1)
    opened = CompiledSet.open(data)
    split = opened.split("train")
    lengths = [max(len(row["input_ids"]) for row in split.batch(n).to_pylist()) for n in range(len(split.entries))]
    longest = max(len(row["input_ids"]) for name in ("train", "val") for row in opened.rows(name))
    run = config(tmp_path / "run.json", model, expect={"max_length": longest})
    said = train(data, run).stderr
    first = split.starts[1]
    assert f"of train the first {first} rows were compared, and the other {len(split) - first} are when" in said
    looked_at = max(lengths[0], *(len(row["input_ids"]) for row in list(opened.rows("val"))[:5]))
    assert max(lengths) > looked_at
    shorter = ("--set", f"expect.max_length={looked_at}", "--set", "overwrite_output_dir=true")
    said = train(data, run, *shorter, "--set", "max_steps=30", code=2).stderr
    assert f"#/expect/max_length: {data}: expected at most {looked_at} tokens, the set has rows of " in said
