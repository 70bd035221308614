"""Folders of models that are cut off, corrupt or hostile: each is one message with exit code 2, 4 or 5, and soon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cli import main
from tests.support.command import runner
from tests.support.trained import config, save_model, small_set

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
SECONDS = 20


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("models") / "data")


@pytest.fixture
def model(tmp_path: Path, good: Path) -> Path:
    return shutil.copytree(good, tmp_path / "model")


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise AssertionError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def tried(command: tuple[object, ...], codes: tuple[int, ...] = (2, 4, 5)) -> str:
    """What a command says; any exception is raised here."""
    signal.alarm(SECONDS)
    done = runner().invoke(main, list(map(str, command)), input="hi\n", catch_exceptions=False)
    signal.alarm(0)
    assert done.exit_code in codes, done.output
    return done.stderr


def commands(model: Path, data: Path, tmp_path: Path) -> list[tuple[object, ...]]:
    return [
        ("train", data, config(tmp_path / "run.json", model, max_steps=1), "--dry-run"),
        ("chat", model, "--max-new-tokens", 1),
        ("predict", model, data, "--limit", 1, "--max-new-tokens", 1, "-o", tmp_path / "out.jsonl"),
    ]


def headed(head: Any, body: bytes) -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


def broken(whole: bytes) -> dict[str, bytes]:
    """Files of weights that are none, by what is wrong with them."""
    length = struct.unpack("<Q", whole[:8])[0]
    head, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    name = next(key for key in head if key != "__metadata__")
    made = {f"cut to {size}": whole[:size] for size in (0, 7, 8, 100, 8 + length, len(whole) - 1)}
    made |= {
        "a length beyond memory": b"\xff" * 8 + whole[8:],
        "a length beyond the file": struct.pack("<Q", 10**9) + whole[8:],
        "a pointer of git": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n",
        "zeros": bytes(len(whole)),
        "no JSON": whole[:8] + b"x" * length + body,
        "a deep header": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "a header of null": struct.pack("<Q", 4) + b"null",
    }
    for key, value in (("dtype", "F99"), ("shape", [-1]), ("shape", [2, 2]), ("data_offsets", [2**60, 2**60 + 4])):
        made[f"{key} {value}"] = headed(head | {name: head[name] | {key: value}}, body)
    return made


def test_weights_that_are_cut_off_or_corrupt_are_named_by_every_command(
    model: Path, good: Path, data: Path, tmp_path: Path
) -> None:
    weights = model / "model.safetensors"
    for what, content in broken((good / "model.safetensors").read_bytes()).items():
        weights.write_bytes(content)
        for command in commands(model, data, tmp_path):
            assert f"{weights}: cannot be read: " in tried(command, (5,)), (what, command)
    weights.unlink()
    os.mkfifo(weights)
    for command in commands(model, data, tmp_path):
        assert f"{weights}: is no regular file" in tried(command, (5,))


def test_weights_that_are_missing_are_not_made_up(model: Path, data: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    _, chat, predict = commands(model, data, tmp_path)
    for command in (("train", data, config(tmp_path / "run.json", model, max_steps=1)), chat, predict):
        assert f"{model}: the weights of model.layers.1.mlp.up_proj.weight are missing\n" in tried(command, (4,))


@pytest.mark.parametrize(
    "text",
    [
        "null", "{}", "NaN", "[" * 100_000, '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../model/model.safetensors"}}', '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "."}}',
    ],
)  # fmt: skip
def test_an_index_of_weights_that_is_none_is_named(model: Path, data: Path, tmp_path: Path, text: str) -> None:
    (model / "model.safetensors.index.json").write_text(text)
    for command in commands(model, data, tmp_path):
        tried(command, (4, 5))


def changed(whole: dict[str, Any]) -> Iterator[str]:
    """Configurations in which one value is of another kind, or beyond all sense."""
    yield from ("null", "[]", '"x"', "NaN", "", "[" * 100_000, '{"a":' * 50_000, f'{{"vocab_size": {"9" * 5000}}}')
    for key in whole:
        for value in (None, "x", -1, 0, 10**12, [], {}, float("nan")):
            yield json.dumps(whole | {key: value})


@pytest.mark.parametrize("which", [0, 1], ids=["train", "chat"])
def test_no_value_of_a_config_json_ends_in_a_traceback(
    model: Path, good: Path, data: Path, tmp_path: Path, which: int
) -> None:
    whole = json.loads((good / "config.json").read_text())
    count = 0
    for text in changed(whole):
        (model / "config.json").write_text(text)
        tried(commands(model, data, tmp_path)[which], (0, 2, 4, 5))  # 0: a key that decides nothing here
        count += 1
    assert count > 200
