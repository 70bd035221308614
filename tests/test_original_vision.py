"""CogAgent in its original layout, trained on screenshots: one placeholder in the set is 1,600 tokens in the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

import trainer.models
from tests.support.documents import FILES
from tests.support.original import save_cogagent
from tests.support.sets import rows
from tests.support.trained import compile_set, config, losses, run_to_end, train

Run = Callable[..., Result]

EXAMPLE = Path(__file__).parent.parent / "examples" / "cogagent"
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]


@dataclass
class Screens:
    model: Path
    data: Path
    text: Path
    """The example with rows that have no picture."""
    control: dict[str, int]


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Screens:
    folder = tmp_path_factory.mktemp("screens")
    model, control = save_cogagent(folder)
    compiled = ["--tokenizer", model, "--template", "cogagent"]
    data = compile_set(folder / "data", EXAMPLE / "train.jsonl", *compiled, "--no-shuffle")
    plain = folder / "plain.jsonl"
    chat = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "green and blue"}]
    pictures = (EXAMPLE / "train.jsonl").read_text(encoding="utf-8")
    plain.write_text(pictures + (json.dumps({"messages": chat}) + "\n") * 2, encoding="utf-8")
    media = ["--media-dir", EXAMPLE, "--format", "openai"]
    text = compile_set(folder / "text", f"mixed={_as_openai(plain)}", *compiled, *media)
    return Screens(model, data, text, control)


def _as_openai(path: Path) -> Path:
    """The rows with their pictures in a column, as other rows have none."""
    made = []
    for line in path.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        images = [message.pop("image") for message in messages if "image" in message]
        for message in messages[:1] if images else []:
            message["content"] = "<image>" + message["content"]
        made.append({"messages": messages, "images": images})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return path


def by_hand(path: Path) -> torch.Tensor:
    """The pixels of a picture, float32 [1, 3, 160, 160], by Pillow alone."""
    opened = Image.open(path).convert("RGB").resize((160, 160), Image.Resampling.BICUBIC)
    scaled = np.asarray(opened, np.float32) / 255
    return torch.from_numpy((scaled - np.float32(MEAN)) / np.float32(DEVIATION)).permute(2, 0, 1)[None].float()


def expanded(screens: Screens, values: list[int], ids: list[int]) -> list[int]:
    """Values beside ids, with that of each placeholder 1,600 times."""
    found: list[int] = []
    for i, value in enumerate(values):
        here = ids[i] == screens.control["<|endoftext|>"] and ids[i - 1] == screens.control["<|begin_of_image|>"]
        found += [value] * (1600 if here else 1)
    return found


def test_the_first_loss_is_that_of_a_pass_made_by_hand(screens: Screens, tmp_path: Path) -> None:
    file = config(tmp_path / "run.json", screens.model, max_steps=1, media_dir=str(EXAMPLE))
    train(screens.data, file)
    model, total, number = trainer.models.load(screens.model), 0.0, 0
    for row in rows(screens.data):
        ids = expanded(screens, row["input_ids"], row["input_ids"])
        labels = torch.tensor(expanded(screens, row["labels"], row["input_ids"]))
        assert len(ids) == len(row["input_ids"]) + 1599
        with torch.no_grad():
            pixels = by_hand(EXAMPLE / row["images"][0]["uri"])
            logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0]
        total += functional.cross_entropy(logits[:-1], labels[1:], reduction="sum").item()
        number += int((labels != -100).sum())
    assert losses(file)[1] == pytest.approx(total / number, abs=1e-5)


def export(screens: Screens, folder: Path, run: Run, **settings: Any) -> tuple[Path, set[str]]:
    """Train, and export what came out. Returns the configuration, and the names of the tensors that changed."""
    every = {"save_strategy": "steps", "save_steps": settings["max_steps"], "media_dir": str(EXAMPLE)}
    file = config(folder / "run.json", screens.model, learning_rate=1e-2, **every, **settings)
    train(screens.data, file)
    run("export", folder / "run" / f"checkpoint-{settings['max_steps']}", folder / "out")
    before, after = load_file(screens.model / "model.safetensors"), load_file(folder / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    return file, {name for name in before if not torch.equal(before[name], after[name])}


def test_the_loss_falls_and_the_tower_stays_where_it_is_frozen(screens: Screens, tmp_path: Path, run: Run) -> None:
    file, changed = export(screens, tmp_path, run, max_steps=12, tuning="full", freeze_vision=True, lora=None)
    assert losses(file)[12] < 0.8 * losses(file)[1]
    assert changed
    assert not any("vision" in name for name in changed)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_towers_layers_of_a_name_are_adapted_where_it_is_not_frozen(
    screens: Screens, tmp_path: Path, run: Run, frozen: bool
) -> None:
    lora = {"r": 8, "target_modules": ["query_key_value"]}
    _, changed = export(screens, tmp_path, run, max_steps=2, lora=lora, freeze_vision=frozen)
    assert {name.split(".")[-2] for name in changed} == {"query_key_value"}
    assert {"vision" in name for name in changed} == ({False} if frozen else {True, False})


def test_batches_without_pictures_train_beside_others_under_zero_3(screens: Screens, tmp_path: Path) -> None:
    more: dict[str, Any] = {"media_dir": str(EXAMPLE), "max_steps": 2, "tuning": "full", "lora": None}
    one = config(tmp_path / "one.json", screens.model, per_device_train_batch_size=4, **more)
    two = config(tmp_path / "two.json", screens.model, per_device_train_batch_size=1, zero_stage=3,
                 gradient_accumulation_steps=2, **more)  # fmt: skip
    train(screens.text, one)
    run_to_end(2, screens.text, two)
    assert losses(two) == pytest.approx(losses(one), abs=2e-5)


@pytest.mark.parametrize("tuning", ["lora", "prefix"])
def test_replies_to_pictures_are_generated(screens: Screens, tmp_path: Path, tuning: str) -> None:
    data = compile_set(
        tmp_path / "split", EXAMPLE / "train.jsonl", "--tokenizer", screens.model, "--template", "cogagent",
        "--val-size", 1,
    )  # fmt: skip
    file = config(
        tmp_path / "run.json", screens.model, max_steps=1, media_dir=str(EXAMPLE), eval_strategy="steps", eval_steps=1,
        predict_with_generate=True, generation_max_new_tokens=3, learning_rate=1e-9 if tuning == "lora" else 1.0,
        tuning=tuning, save_strategy="steps", **({"lora": None} if tuning == "prefix" else {}),
    )  # fmt: skip
    train(data, file)
    (path,) = (tmp_path / "run").rglob("predictions*.jsonl")
    (said,) = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    (row,) = rows(data, "val")
    first = row["labels"].index(next(label for label in row["labels"] if label != -100))
    prompt = expanded(screens, row["input_ids"][:first], row["input_ids"])
    model, pixels, written = trainer.models.load(screens.model), by_hand(EXAMPLE / row["images"][0]["uri"]), list[int]()
    if tuning == "prefix":
        model = peft.PeftModel.from_pretrained(model, tmp_path / "run" / "checkpoint-1").eval()
    while len(written) < 3:
        with torch.no_grad():
            ids = torch.tensor([prompt + written])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits[0, -1]
        written.append(int(logits.argmax()))
        if written[-1] in (screens.control["<|user|>"], screens.control["<|endoftext|>"]):
            break
    from trainer.models.pretrained import load_tokenizer

    text = load_tokenizer(screens.model).decode(written, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert said["prediction"] == text


def test_the_documents_files_need_nothing_set(screens: Screens, tmp_path: Path) -> None:
    """In the folders that its repository has, started from elsewhere: the pictures are where they were compiled."""
    tokenizer = screens.model.parent / "tokenizer"
    options = ["--tokenizer", tokenizer, "--template", "cogagent", "--val-size", 1]
    data = compile_set(tmp_path / "set", EXAMPLE / "train.jsonl", *options)
    for name, tuning, stage in (("lora", "lora", 2), ("sft", "full", 3)):
        said = train(data, FILES[f"cogagent_{name}"], "--model", screens.model, "--dry-run", "--json").stdout
        facts = json.loads(said)
        assert (facts["config"]["tuning"], facts["zero_stage"], facts["steps"]) == (tuning, stage, 3000)
        assert facts["config"]["media_dir"] == str(EXAMPLE)
        assert f"media_dir is {EXAMPLE}, where the images were when the set was compiled" in facts["remarks"]
