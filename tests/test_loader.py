"""Batches on their way to the device: the memory of those that wait, and how many of a step are on the device."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import InputError
from tests.support.trained import compile_set, config, losses, save_model, train, write
from tests.support.vision import PROCESSOR, START, draw_images, make_model
from tests.test_train_vision import SEES, TEXT
from trainer.config import load as configs
from trainer.data import loader
from trainer.data.collate import Batch, Collator, pad_id
from trainer.data.images import images_of
from trainer.data.loader import Loader, StepBatches
from trainer.data.vision import find as eyes
from trainer.device import Device, find
from trainer.models import training
from trainer.run import plan, step

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
TURNS = [("what is it", ["a.png"]), ("and now", ["b.png", "c.png"]), ("no picture", []), ("look", ["c.png"])]
PATCH = 3 * 2 * 14 * 14
"""The numbers of a patch of a picture, which has two frames for this model."""
BOTH = (56 + 140) * 56 // 14**2
"""The patches of b.png and c.png."""
STEPS, PASSES, THREADS = 8, 6, 3
CUDA = Device("cuda", "", 0, 1, 0, "nccl")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of four kinds; those with one wide picture have it to themselves."""
    folder = tmp_path_factory.mktemp("pictures")
    draw_images(folder)
    rows: list[dict[str, Any]] = []
    for number, (text, images) in enumerate(TURNS * 6):
        own = [Path(shutil.copy(folder / name, folder / f"{number}-{name}")).name for name in images if name == "a.png"]
        said = {"role": "user", "content": "<image>" * len(images) + f"{text} {number}"}
        reply = {"role": "assistant", "content": f"a box {number}"}
        rows.append({"messages": [said, reply], "images": own or images})
    write(folder / "sft.jsonl", rows)
    write(folder / "kto.jsonl", [row | {"kto_tag": number % 3 > 0} for number, row in enumerate(rows)])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_model(folder / "tokenizer", PROCESSOR)
    settings = {"vision_config": SEES["qwen2_vl"], "text_config": TEXT, "image_token_id": START + 2}
    return save_model(folder / "model", "qwen2_vl", tokenizer, **settings)


@pytest.fixture(scope="module")
def data(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_set(tmp_path_factory.mktemp("set") / "set", pictures / "sft.jsonl", "--tokenizer", model)


@pytest.fixture
def make(model: Path, pictures: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration; several get names of their own."""
    every = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": PASSES, "group_by_length": False}

    def write_config(name: str = "run", **settings: Any) -> Path:
        return config(tmp_path / f"{name}.json", model, **{"media_dir": str(pictures), **every, **settings})

    return write_config


def loader_of(data: Path, run: Path, threads: int = THREADS, device: Device | None = None) -> Loader:
    made = plan.make(str(data), configs.load(run), None, find(use_cpu=True))
    images = images_of(made.set, eyes.eyes_of(made.source.config, made.source.folder), made.config.media_dir)
    collate = Collator(False, pad_id(made.set.manifest), made.objective.sides, images)
    pin = device.pinned if device else None
    return Loader(made.train, made.order, collate, 0, 1, made.micro, made.accumulation, threads, pin=pin)


def pixels() -> int:
    """The bytes of all pixels in this process, whoever holds them."""
    found = [one for one in gc.get_objects() if type(one) is torch.Tensor]
    return sum(one.nbytes for one in found if one.dim() == 2 and one.shape[1] == PATCH)


def size(one: StepBatches) -> int:
    return sum(batch["pixel_values"].nbytes for batch in one.batches)


def closed(steps: Any) -> bool:
    """Close an iterator of steps, and tell whether its threads have ended."""
    closing = threading.Thread(target=steps.close)
    closing.start()
    closing.join(30)
    return not closing.is_alive() and not [t for t in threading.enumerate() if t.name.startswith("batches")]


# -- the memory of what waits --


def test_steps_that_wait_take_as_much_memory_as_they_may(
    data: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels are counted in the whole process, twice for each that a thread may be making."""
    run = make()
    sizes = [size(one) for one in loader_of(data, run, 0).steps(0, STEPS)]
    largest = BOTH * PATCH * 4
    monkeypatch.setattr(loader, "SPACE", 2 * largest)
    steps = loader_of(data, run).steps(0, STEPS)
    for number in range(STEPS - THREADS * loader.AHEAD + 1):
        held = next(steps)
        assert size(held) == sizes[number]
        may = 2 * largest + sizes[number] + sizes[number + 1] + THREADS * 2 * largest
        unbounded = sum(sizes[number : number + THREADS * loader.AHEAD])
        for _ in range(3):
            time.sleep(0.05)
            assert pixels() <= may < unbounded
    assert closed(steps)


def test_the_next_step_is_made_whatever_it_takes_and_nothing_changes(
    data: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make()
    expected = list(loader_of(data, run, 0).steps(0, STEPS))
    before = pixels()
    monkeypatch.setattr(loader, "SPACE", 0)
    for held in loader_of(data, run).steps(0, STEPS):
        number = held.number
        for one, other in zip(held.batches, expected[number].batches, strict=True):
            assert torch.equal(one["pixel_values"], other["pixel_values"])
            assert torch.equal(one["labels"], other["labels"])
        wanted = before + sum(map(size, expected[number : number + 2]))
        end = time.monotonic() + 30
        while pixels() != wanted:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_picture_that_is_gone_is_an_error_when_its_step_comes(
    data: Path, make: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """A thread meets it while earlier steps wait."""
    whole = loader_of(data, make(), 0)
    alone = {
        image["uri"]: one.number
        for one in whole.steps(0, whole.order.steps_per_epoch)
        for row in one.rows
        for image in whole.split.row(int(row))["images"]
        if "-a" in image["uri"]
    }
    name, last = max(alone.items(), key=lambda item: item[1])
    assert last > 1
    other = tmp_path / "pictures"
    shutil.copytree(pictures, other)
    (other / name).unlink()
    steps = loader_of(data, make("gone", media_dir=str(other))).steps(0, STEPS)
    assert [next(steps).number for _ in range(last)] == list(range(last))
    with pytest.raises(InputError, match=f"{name}: cannot be read"):
        next(steps)
    assert closed(steps)


# -- the device --


@pytest.mark.parametrize("kind", ["sft", "kto"])
def test_one_batch_of_a_step_is_on_the_device_at_a_time(
    kind: str, model: Path, pictures: Path, make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of the device is an array, which lives as long as anything uses it: a graph for gradients too."""
    data = compile_set(tmp_path / "set", pictures / f"{kind}.jsonl", "--tokenizer", model)
    before, after = make("before"), make("after")
    train(data, before)
    copies: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def to_the_device(batch: Batch, _: torch.device) -> dict[str, torch.Tensor]:
        alive.append(sum(copy() is not None for copy in copies))
        arrays = {name: value.numpy().copy() for name, value in batch.items() if isinstance(value, torch.Tensor)}
        copies.extend(map(weakref.ref, arrays.values()))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    monkeypatch.setattr(step, "tensors", to_the_device)
    train(data, after)
    assert losses(after) == losses(before)
    assert alive == [0] * (len(losses(after)) * PASSES * (2 if kind == "kto" else 1))


def test_batches_are_pinned_for_an_accelerator_and_not_for_the_cpu(data: Path, make: Callable[..., Path]) -> None:
    """Without an accelerator, torch says so in the thread, which shows that it was asked."""
    run = make()
    batch = next(loader_of(data, run, device=find(use_cpu=True)).steps(0, 1)).batches[0]
    assert not any(value.is_pinned() for value in batch.values() if isinstance(value, torch.Tensor))
    steps = loader_of(data, run, device=CUDA).steps(0, 1)
    if torch.cuda.is_available():
        batch = next(steps).batches[0]
        assert all(value.is_pinned() for value in batch.values() if isinstance(value, torch.Tensor))
    else:
        with pytest.raises(Exception, match=r"CUDA|cuda|NVIDIA"):
            next(steps)


def test_weights_are_read_straight_to_an_accelerator(data: Path, make: Callable[..., Path]) -> None:
    """Without an accelerator, torch says so while they are read."""
    made = plan.make(str(data), configs.load(make()), None, find(use_cpu=True))
    if torch.cuda.is_available():
        loaded = training.load(made.source, made.config, CUDA, torch.float32, "")
        assert {one.device.type for one in loaded.parameters()} == {"cuda"}
    else:
        with pytest.raises(Exception, match=r"CUDA|cuda|NVIDIA"):
            training.load(made.source, made.config, CUDA, torch.float32, "")
