"""What `cli verify` and every reader find in a set that somebody made or edited, with all digests made to match."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash
from click.testing import Result

from cli import main
from schemas.checks import read_batch
from schemas.errors import IntegrityError
from schemas.manifest import sealed
from schemas.reader import CompiledSet
from tests.support.command import runner
from tests.support.sets import manifest
from tests.support.trained import rewrite, small_set

Run = Callable[..., Result]
Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two datasets with both splits, several batches, repeats and weights."""
    folder = tmp_path_factory.mktemp("made")
    arguments = [
        "compile",
        "--mix",
        "agent:3,bench:1",
        "--val-size",
        "60",
        "--cache",
        folder / "c",
        "-o",
        folder / "out",
    ]
    assert runner().invoke(main, list(map(str, arguments))).exit_code == 0
    return folder / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def verify(out: Path) -> tuple[int, list[str]]:
    done = runner().invoke(main, ["verify", str(out), "--json"], catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout)["problems"] if done.stdout else [done.stderr]


def edit(out: Path, change: Edit) -> None:
    """Edit the manifest, with its own digest made to match."""
    found = manifest(out)
    change(found)
    (out / "manifest.json").write_bytes(sealed(found))  # type: ignore[arg-type]


def dataset(found: dict[str, Any]) -> dict[str, Any]:
    return dict(found["datasets"][0])


def more(of: Callable[[dict[str, Any]], dict[str, Any]], *keys: str) -> Edit:
    """Add one to some counts."""

    def change(found: dict[str, Any]) -> None:
        for key in keys:
            of(found)[key] += 1

    return change


def shard_twice(found: dict[str, Any]) -> None:
    """List a shard twice, with all sums right."""
    train = found["splits"]["train"]
    train["shards"].append(copy.deepcopy(train["shards"][0]))
    for name in ("rows", "tokens", "trained_tokens"):
        train[name] *= 2


def tokens_everywhere(found: dict[str, Any]) -> None:
    for one in (found["splits"]["train"], found["splits"]["train"]["shards"][0], found["datasets"][0]["realized"]):
        one["tokens"] += 5


EDITS: dict[str, tuple[Edit, str]] = {
    "rows of a split": (more(lambda m: m["splits"]["train"], "rows"), "train: rows is"),
    "trained tokens of a split": (more(lambda m: m["splits"]["train"], "trained_tokens"), "train: trained_tokens is"),
    "tokens everywhere": (tokens_everywhere, "train/shard-00000.arrow: tokens is"),
    "read": (more(lambda m: m["datasets"][0]["balance"], "read"), "balance of agent"),
    "read and rejected": (
        more(lambda m: m["datasets"][0]["balance"], "read", "rejected"), "the balance is not the sum",
    ),
    "realized": (more(lambda m: m["datasets"][0]["realized"], "rows"), "dataset agent: rows is"),
    "val rows": (more(lambda m: m["datasets"][1]["realized"], "val_rows"), "dataset bench: val_rows is"),
    "rows of a batch": (more(lambda m: m["splits"]["train"]["shards"][0]["batches"][0], "rows"), "rows is"),
    "offset of a batch": (
        lambda m: (some := m["splits"]["val"]["shards"][0]["batches"]).append(some[0]), "batch 1 begins within the one",
    ),
    "length of a batch": (
        lambda m: m["splits"]["train"]["shards"][0]["batches"][-1].update(length=1 << 40), "batches end after the file",
    ),
    "shard twice": (shard_twice, "the shards of train are not numbered"),
    "name of a dataset": (lambda m: m["datasets"][0].update(name="other"), "a row is of agent, file"),
    "name of a file": (lambda m: m["datasets"][0]["files"][0].update(file="other"), "a row is of agent, file"),
    "rows of a file": (lambda m: m["datasets"][0]["files"][0].update(rows=1), "the number of a row is not one of its"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_manifest_does_not_pass(out: Path, name: str) -> None:
    change, said = EDITS[name]
    edit(out, change)
    code, problems = verify(out)
    assert code == 4
    assert any(said in problem for problem in problems), problems


def test_the_set_itself_passes(out: Path) -> None:
    assert verify(out) == (0, [])


def test_rows_that_are_there_twice_do_not_pass(out: Path) -> None:
    def change(found: dict[str, Any]) -> None:
        shard_twice(found)
        train = found["splits"]["train"]
        train["shards"][1]["file"] = "train/shard-00001.arrow"
        for name in ("agent", "bench"):
            (entry,) = (one for one in found["datasets"] if one["name"] == name)
            for key in ("rows", "tokens", "trained_tokens"):
                entry["realized"][key] *= 2

    shutil.copy(out / "train" / "shard-00000.arrow", out / "train" / "shard-00001.arrow")
    edit(out, change)
    assert any("rows are there twice" in problem or "balance of" in problem for problem in verify(out)[1])


@pytest.mark.parametrize("name", ["README.md", "train/shard-00000.arrow", "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_refused_before_it_is_read(out: Path, name: str, kind: str) -> None:
    (out / name).unlink()
    if kind == "pipe":
        os.mkfifo(out / name)
    else:
        (out / name).symlink_to("/dev/zero")
    code, problems = verify(out)
    assert code == (5 if name == "manifest.json" else 4)
    assert any("is not a regular file" in problem for problem in problems), problems


def test_batches_that_were_tampered_with_are_refused_and_crash_nothing(out: Path) -> None:
    """Bytes of the batches are changed, and every digest is made to match. All of it is in one process of its own."""
    chance = random.Random(3)
    found = manifest(out)
    entry = found["splits"]["val"]["shards"][0]
    path = out / entry["file"]
    whole = path.read_bytes()
    codes = {0: 0, 4: 0}
    child = os.fork()
    if not child:
        try:
            for _ in range(120):
                data = bytearray(whole)
                batch = entry["batches"][0]
                for _ in range(chance.choice((1, 3, 20))):
                    near = 1200 if chance.random() < 0.7 else batch["length"]  # the metadata, or anything
                    data[batch["offset"] + chance.randrange(min(near, batch["length"]))] = chance.choice(
                        (0, 1, 127, 255)
                    )
                path.write_bytes(data)
                part = bytes(data[batch["offset"] : batch["offset"] + batch["length"]])
                batch["xxh3"] = xxhash.xxh3_128_hexdigest(part)
                entry["sha256"] = hashlib.sha256(data).hexdigest()
                (out / "manifest.json").write_bytes(sealed(found))  # type: ignore[arg-type]
                codes[verify(out)[0]] += 1
                with contextlib.suppress(IntegrityError):
                    assert len(list(CompiledSet.open(out).rows("val"))) == entry["rows"]
            os._exit(0 if codes[4] > 60 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def _message(batch: pa.RecordBatch, compression: str | None) -> pa.Buffer:
    """The message of a batch in a stream, after that of the schema."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    source = pa.BufferReader(sink.getvalue())
    pa.ipc.read_message(source)
    return sink.getvalue().slice(source.tell())


def test_a_compressed_batch_is_refused_before_it_is_unpacked() -> None:
    schema = pa.schema([pa.field("x", pa.int64())])
    batch = pa.record_batch([pa.array([0] * 1000)], schema=schema)
    plain, packed = (_message(batch, compression) for compression in (None, "zstd"))
    with pytest.raises(ValueError, match="it is compressed"):
        read_batch(packed, schema)
    with pytest.raises(KeyError):  # it is read, and lacks the columns of a shard
        read_batch(plain, schema)


def test_spans_that_do_not_add_up_to_the_tokens_are_refused_in_one_message(run: Run, tmp_path: Path) -> None:
    out = small_set(tmp_path / "small")

    def shorter(row: dict[str, Any]) -> dict[str, Any]:
        *spans, last = row["spans"]
        return row | {"spans": [*spans, last | {"num_tokens": last["num_tokens"] - 1}]}

    rewrite(out, shorter)
    assert "spans do not add up to the tokens" in run("verify", out, code=4).stderr
    done = run("inspect", out, code=4)
    assert "train/shard-00000.arrow: batch 0" in done.stderr
    assert done.stderr.count("error:") == 1
