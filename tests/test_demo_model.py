"""The embedded model and config.yaml: the third command of the README works on a fresh clone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import registry
from schemas.arrow import MANIFEST
from tests.support.trained import compile_set, losses, records, run_to_end, train
from trainer.models import demo

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def data(cache: Path) -> Path:
    return compile_set(cache / "shards", "--mix", "agent:1,bench:2", "--self-cognition", 60)


@pytest.fixture
def run(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped configuration, in a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "models"))
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(ROOT / "config.yaml", tmp_path / "output.yaml"))


def test_the_shipped_configuration_trains_the_embedded_model(data: Path, run: Path) -> None:
    done = train(data, run, "--set", "max_steps=6", "--set", "warmup_steps=1", "--json")
    assert f"note: {demo.ABOUT}" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["tokens"] == records(run)[-1]["tokens"] > 0
    assert losses(run)[6] < losses(run)[1] - 0.3
    assert (run.parent / "output" / "loss.png").is_file()


@pytest.mark.slow
def test_two_processes_train_it_as_one_does(data: Path, run: Path) -> None:
    few = ("--set", "max_steps=3", "--set", "warmup_steps=1")
    train(data, run, *few)
    alone = losses(run)
    shutil.rmtree(run.parent / "output")
    run_to_end(2, data, run, *few, "--set", "per_device_train_batch_size=8", cwd=run.parent)
    assert losses(run) == pytest.approx(alone, abs=1e-4)


def test_its_weights_are_made_once_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for name in ("one", "one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        made.append(demo.folder())
    assert made[0] == made[1] != made[2]
    first, _, other = ((folder / "model.safetensors").read_bytes() for folder in made)
    assert first == other
    tokenizer = registry.DEMO_TOKENIZER / "tokenizer.json"
    assert (made[0] / tokenizer.name).read_bytes() == tokenizer.read_bytes()
    assert not [path for path in made[0].parent.iterdir() if path != made[0]]


def test_a_folder_of_that_name_comes_first(data: Path, run: Path) -> None:
    (run.parent / demo.NAME).mkdir()
    assert "demo: no config.json: not the folder of a model" in train(data, run, code=2).stderr
    assert (data / MANIFEST).is_file()
