"""Every family of vision models: a set and its training are what transformers' own Processor and model make of a row.

One tiny model of each, with random weights. The Processor is put together by hand from the model's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from PIL import Image

from tests.support.eyes import EYES, eyes_model, processor_of
from tests.support.sets import rows
from tests.support.trained import compile_set, config, losses, train, write

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]

PICTURES = {"a.png": ((112, 56), "navy"), "b.png": ((60, 140), "orange"), "c.png": ((56, 56), "green")}
TALKS: list[list[tuple[str, list[str], str]]] = [
    [("what is it", ["a.png"], "a blue box")],
    [("\nand now", ["b.png", "c.png"], "two boxes, one tall"), ("sure", [], "yes")],
    [("without a picture", [], "nothing to see")],
    [("what is it", ["c.png"], "a small box"), ("and this", ["a.png"], "a wide one")],
]
"""Rows: what the user says, with which pictures before it, and the reply."""


def row(talk: list[tuple[str, list[str], str]]) -> dict[str, Any]:
    messages = []
    for said, pictures, reply in talk:
        messages += [
            {"role": "user", "content": "<image>" * len(pictures) + said},
            {"role": "assistant", "content": reply},
        ]
    return {"messages": messages, "images": [name for _, pictures, _ in talk for name in pictures]}


def parts(talk: list[tuple[str, list[str], str]]) -> list[dict[str, Any]]:
    """The messages as transformers takes them."""
    messages: list[dict[str, Any]] = []
    for said, pictures, reply in talk:
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": said}]
        messages += [{"role": "user", "content": content if pictures else said}]
        messages += [{"role": "assistant", "content": reply}]
    return messages


class Eyed(NamedTuple):
    name: str
    model: Path
    data: Path
    pictures: Path


@pytest.fixture(scope="module", params=EYES)
def eyed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Eyed:
    folder = tmp_path_factory.mktemp(request.param)
    pictures = folder / "pictures"
    pictures.mkdir()
    for name, (size, colour) in PICTURES.items():
        picture = Image.radial_gradient("L").resize(size).convert("RGB")
        Image.blend(picture, Image.new("RGB", size, colour), 0.5).save(pictures / name)
    write(pictures / "rows.jsonl", [row(talk) for talk in TALKS])
    model = eyes_model(folder, request.param)
    options = ["--template", EYES[request.param].card, "--no-shuffle"]
    data = compile_set(folder / "set", pictures / "rows.jsonl", "--tokenizer", model, *options)
    return Eyed(request.param, model, data, pictures)


def processed(eyed: Eyed, talk: list[tuple[str, list[str], str]]) -> Any:
    """What transformers' Processor makes of a conversation."""
    processor = processor_of(eyed.model, eyed.name)
    if eyed.name == "llava":  # its published template writes no stop
        said = [f"USER: {'<image>' * len(names)}{text} ASSISTANT: {reply}</s>" for text, names, reply in talk]
        text = "<s>" + "".join(said)
    else:
        text = processor.tokenizer.apply_chat_template(parts(talk), tokenize=False)
    opened = [Image.open(eyed.pictures / name) for _, names, _ in talk for name in names]
    given = [opened] if eyed.name == "gemma3" else opened
    return processor(images=given if opened else None, text=[text], return_tensors="pt", add_special_tokens=False)


def test_the_ids_of_a_set_and_the_pixels_of_a_batch_are_the_processors(eyed: Eyed) -> None:
    from trainer.config.config import TrainConfig
    from trainer.data.images import images_of
    from trainer.data.stream import TrainingSet
    from trainer.data.vision.find import eyes_of
    from trainer.models.folder import find

    source = find(TrainConfig(model_name_or_path=str(eyed.model), output_dir="x"))
    opened = TrainingSet.open(str(eyed.data))
    images = images_of(opened, eyes_of(source.config, source.folder), str(eyed.pictures))
    for number, (talk, stored) in enumerate(zip(TALKS, rows(eyed.data), strict=True)):
        made = processed(eyed, talk)
        assert stored["input_ids"] == made["input_ids"][0].tolist()
        if not stored["images"]:
            continue
        inputs, _ = images.load([opened.split("train").row(number)])
        inputs |= images.types(made["input_ids"])
        assert set(inputs) == set(made) - {"input_ids", "attention_mask"}
        for name, value in inputs.items():
            assert torch.equal(value, made[name]), name


def test_the_loss_of_a_step_is_that_of_the_processor_and_the_model(eyed: Eyed, tmp_path: Path) -> None:
    """With rows of text alone beside those with pictures."""
    run = config(
        tmp_path / "run.json", eyed.model, media_dir=str(eyed.pictures), max_steps=1, per_device_train_batch_size=4,
        tuning="full", lora=None,
    )  # fmt: skip
    train(eyed.data, run)
    model = transformers.AutoModelForImageTextToText.from_pretrained(eyed.model)
    total, count = 0.0, 0
    for talk, stored in zip(TALKS, rows(eyed.data), strict=True):
        labels = torch.tensor(stored["labels"])
        with torch.no_grad():
            logits = model(**processed(eyed, talk)).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels[1:] != -100).sum())
    assert losses(run)[1] == pytest.approx(total / count, abs=1e-4)
