"""Every family of vision models: a set and its training are what transformers' own Processor and model make of a row.

One tiny model of each, with random weights. The Processor is put together by hand from the model's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from PIL import Image

from cli import main
from tests.support.command import runner
from tests.support.eyes import EYES, Asked, eyes_model, processor_of
from tests.support.sets import rows
from tests.support.tiny import strong_prefix
from tests.support.trained import compile_set, config, losses, run_to_end, train, write, write_manifest
from trainer.config.config import TrainConfig
from trainer.data.images import Images, images_of
from trainer.data.stream import SplitRows, TrainingSet
from trainer.data.vision.find import eyes_of
from trainer.models.folder import find
from trainer.models.pretrained import load_tokenizer
from trainer.predict.generate import ReplyPrompt, predict, prompts
from trainer.use.chat import Chat, open_chat

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


def images_and_rows(eyed: Eyed) -> tuple[Images, SplitRows]:
    source = find(TrainConfig(model_name_or_path=str(eyed.model), output_dir="x"))
    opened = TrainingSet.open(str(eyed.data))
    return images_of(opened, eyes_of(source.config, source.folder), str(eyed.pictures)), opened.split("train")


def prompts_of(split: SplitRows) -> list[ReplyPrompt]:
    return [one for number in range(len(split)) for one in prompts(split.row(number), sees=True)]


def test_the_ids_of_a_set_and_the_pixels_of_a_batch_are_the_processors(eyed: Eyed) -> None:
    images, split = images_and_rows(eyed)
    for number, (talk, stored) in enumerate(zip(TALKS, rows(eyed.data), strict=True)):
        made = processed(eyed, talk)
        assert stored["input_ids"] == made["input_ids"][0].tolist()
        if not stored["images"]:
            continue
        inputs, _ = images.load([split.row(number)])
        inputs |= images.types(made["input_ids"])
        assert set(inputs) == set(made) - {"input_ids", "attention_mask"}
        for name, value in inputs.items():
            assert torch.equal(value, made[name]), name


@pytest.fixture(scope="module")
def trained(eyed: Eyed, one_process: None) -> Path:  # noqa: ARG001
    """The configuration of a run of one step of all rows, with its checkpoint."""
    run = config(
        eyed.pictures.parent / "run.json", eyed.model, media_dir=str(eyed.pictures), max_steps=1, tuning="full",
        per_device_train_batch_size=4, lora=None, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    train(eyed.data, run)
    return run


def test_the_loss_of_a_step_is_that_of_the_processor_and_the_model(eyed: Eyed, trained: Path) -> None:
    """With rows of text alone beside those with pictures."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(eyed.model)
    total, count = 0.0, 0
    for talk, stored in zip(TALKS, rows(eyed.data), strict=True):
        labels = torch.tensor(stored["labels"])
        with torch.no_grad():
            logits = model(**processed(eyed, talk)).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels[1:] != -100).sum())
    assert losses(trained)[1] == pytest.approx(total / count, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("eyed", ["llava", "gemma3"], indirect=True)
def test_rows_with_and_without_pictures_are_one_step_under_zero_3(eyed: Eyed, trained: Path, tmp_path: Path) -> None:
    """Two processes, a row in each pass: the tower runs in every one."""
    run = config(
        tmp_path / "two.json", eyed.model, media_dir=str(eyed.pictures), max_steps=1, tuning="full", lora=None,
        per_device_train_batch_size=1, gradient_accumulation_steps=2, zero_stage=3,
    )  # fmt: skip
    run_to_end(2, eyed.data, run)
    assert losses(run) == pytest.approx(losses(trained), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("eyed", ["llava"], indirect=True)
def test_a_picture_that_one_process_misses_is_a_message_and_no_traceback(eyed: Eyed, tmp_path: Path) -> None:
    shutil.copytree(eyed.pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "b.png").unlink()
    run = config(tmp_path / "run.json", eyed.model, media_dir=str(tmp_path / "pictures"), per_device_train_batch_size=2)
    said = run_to_end(2, eyed.data, run, code=1)
    assert "b.png: cannot be read" in said
    assert "The message of that process says why." in said
    assert "]: Traceback" not in said


def test_replies_to_pictures_are_those_of_the_processor_and_generate(eyed: Eyed) -> None:
    """In batches of several prompts with and without pictures, and of one prompt without any."""
    images, split = images_and_rows(eyed)
    wanted = prompts_of(split)
    model = transformers.AutoModelForImageTextToText.from_pretrained(eyed.model)
    tokenizer = load_tokenizer(eyed.model)
    stop = tokenizer.convert_tokens_to_ids(EYES[eyed.name].eos)
    for size in (1, 3):
        found = predict(model, tokenizer, wanted, stops=[stop], max_new_tokens=4, eyes=images, batch_size=size)
        for one, prediction in zip(wanted, found, strict=True):
            # The whole row, and of its tokens and pictures those that come before the reply.
            made, length = processed(eyed, TALKS[one.row]), len(one.prompt_ids)
            per_token = {name for name, value in made.items() if value.shape == made["input_ids"].shape}
            given = {name: made[name][:, :length] for name in per_token}
            shown = sum(image["position"] < length for image in rows(eyed.data)[one.row]["images"])
            if shown:
                grids = made.get("image_grid_thw")
                given |= {} if grids is None else {"image_grid_thw": grids[:shown]}
                given["pixel_values"] = made["pixel_values"][: shown if grids is None else grids[:shown].prod(1).sum()]
            more: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": stop}
            written = model.generate(**given, **more, eos_token_id=stop)[0, length:].tolist()
            text = tokenizer.decode([t for t in written if t != stop], clean_up_tokenization_spaces=False)
            assert prediction.prediction == text


@pytest.mark.usefixtures("one_process")
def test_replies_to_pictures_after_a_prefix_are_those_of_passes_over_all_tokens(eyed: Eyed, tmp_path: Path) -> None:
    """Where the family can have both: PEFT does not shift the places of pictures, nor their masks."""
    if eyed.name != "llava":  # CogAgent has a test of its own
        given: dict[str, Any] = {"media_dir": str(eyed.pictures), "tuning": "prefix", "lora": None}
        said = train(eyed.data, config(tmp_path / "run.json", eyed.model, **given), code=2).stderr
        assert "#/tuning: a " in said
        assert "model places or masks its pictures as if there were no prefix" in said
        return
    images, split = images_and_rows(eyed)
    wanted, tokenizer = prompts_of(split), load_tokenizer(eyed.model)
    model = strong_prefix(transformers.AutoModelForImageTextToText.from_pretrained(eyed.model))
    found = predict(model, tokenizer, wanted, stops=[2], max_new_tokens=4, eyes=images, batch_size=3)
    for one, prediction in zip(wanted, found, strict=True):
        _, [ids], pictures = images.see([one])
        written: list[int] = []
        while len(written) < 4 and 2 not in written:
            tokens = torch.tensor([ids + written])
            with torch.no_grad():
                seen = pictures if one.source else {}
                logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **seen).logits
            written.append(int(logits[0, -1].argmax()))
        text = tokenizer.decode([t for t in written if t != 2], clean_up_tokenization_spaces=False)
        assert prediction.prediction == text


def ask(chat: Chat, images: Images, split: SplitRows, pictures: Path) -> None:
    """Hold the conversations of a set in a chat; what the model is asked must be what it is trained on."""
    asked = Asked(chat.model, chat.stops[0])
    chat.model = asked
    for one in prompts_of(split):
        if not one.reply:
            chat.system("")
        said, names, _ = TALKS[one.row][one.reply]
        for name in names:
            chat.attach(pictures / name)
        chat.say(said)
        _, ids, inputs = images.see([one])
        assert asked.given["input_ids"].tolist() == ids
        if chat.pictures:
            for name, value in inputs.items():
                assert torch.equal(asked.given[name], value), name
            for name, value in images.types(torch.tensor(ids)).items():
                assert torch.equal(asked.given[name], value), name
        chat.messages[-1]["content"] = TALKS[one.row][one.reply][2]  # as if the model had said it


def test_a_chat_with_pictures_asks_as_the_set_does(
    eyed: Eyed, trained: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """In the exported folder, by its own template; the real command answers too."""
    out = tmp_path / "out"
    run("export", trained.with_suffix("") / "checkpoint-1", out)
    ask(open_chat(out, None, None), *images_and_rows(eyed), eyed.pictures)
    typed = f"/image {eyed.pictures}/a.png\nwhat is it\n"
    given = ["chat", str(out), "--json", "--max-new-tokens", "2"]
    result = runner().invoke(main, given, input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    first = prompts_of(images_and_rows(eyed)[1])[0]
    assert json.loads(result.stdout)["prompt_tokens"] == len(first.prompt_ids)


@pytest.mark.parametrize("eyed", ["qwen2_vl"], indirect=True)
def test_what_cannot_be_shown_is_one_message(eyed: Eyed, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes((eyed.pictures / "b.png").read_bytes()[:300])
    wrong = {"none.png": "cannot be read: No such file", "text.png": "not an image", "half.png": "the image is cut off"}
    for name, what in wrong.items():
        given = ["chat", str(eyed.model), "--json"]
        typed = f"/image {tmp_path / name}\nwhat is it\n"
        result = runner().invoke(main, given, input=typed, catch_exceptions=False)
        assert result.exit_code == 5
        assert result.stdout == ""
        assert f"error: /image {tmp_path / name}: {what}" in result.stderr


@pytest.mark.parametrize("eyed", ["gemma3"], indirect=True)
def test_a_set_of_text_for_a_vision_model_needs_no_eyes(eyed: Eyed, tmp_path: Path) -> None:
    """Packs are refused with pictures alone, and no folder of images is asked for."""
    file = write(tmp_path / "rows.jsonl", [row([(f"say {word}", [], word)]) for word in ("red", "green", "blue")])
    packed = compile_set(tmp_path / "set", file, "--tokenizer", eyed.model, "--pack", 64)
    said = train(packed, config(tmp_path / "run.json", eyed.model, max_steps=1)).stderr
    assert "packs: the losses equal those of their sequences alone" in said


@pytest.mark.parametrize("eyed", ["qwen2_vl", "glm4v"], indirect=True)
def test_a_set_of_an_earlier_version_trains_as_before(eyed: Eyed, trained: Path, tmp_path: Path) -> None:
    """Its manifest does not say how many images and videos it has."""
    shutil.copytree(eyed.data, tmp_path / "set")
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert (manifest["media"].pop("images"), manifest["media"].pop("videos")) == (5, 0)
    write_manifest(tmp_path / "set", manifest)
    run = config(
        tmp_path / "run.json", eyed.model, media_dir=str(eyed.pictures), max_steps=1, tuning="full", lora=None,
        per_device_train_batch_size=4,
    )  # fmt: skip
    train(tmp_path / "set", run)
    assert losses(run) == pytest.approx(losses(trained), abs=1e-6)
