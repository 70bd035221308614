"""Models that see: images are loaded when their batch is made, and nothing else about training changes.

Models of the classes of Qwen2-VL and GLM-4.1V with random weights, over the demo tokenizer with tokens for images.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from cli import main
from tests.support.command import runner
from tests.support.trained import compile_set, config, losses, save_model, train, write
from tests.support.vision import PROCESSOR, START, draw_images, make_model
from trainer.config.config import Lora, TrainConfig
from trainer.models.tune import tune

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
TEXT = {
    "vocab_size": 8009, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
}  # fmt: skip
SEES = {
    "qwen2_vl": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
    "glm4v": {"depth": 1, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 32},
}
_SIZE = '"size": {"shortest_edge": 6272, "longest_edge": 12845056}'
_TOKENS = {
    "<|vision_start|>": "<|begin_of_image|>", "<|vision_end|>": "<|end_of_image|>", "<|image_pad|>": "<|image|>",
}  # fmt: skip
AS_GLM = {
    "tokenizer.json": _TOKENS, "tokenizer_config.json": _TOKENS,
    "preprocessor_config.json": {"Qwen2VL": "Glm4v", '"min_pixels": 3136, "max_pixels": 12845056': _SIZE},
}  # fmt: skip
"""What is called otherwise there."""
IMAGE = START + 2
"""The id of the placeholder."""


def row(text: str, reply: str, *images: str) -> dict[str, Any]:
    said = "<image>" * len(images) + text
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "images": list(images)}


ROWS = [
    row("what is it", "a blue box", "a.png"),
    row("and now", "two boxes, one tall", "b.png", "c.png"),
    row("without a picture", "nothing to see"),
    row("what is it", "a small box", "c.png"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw_images(folder)
    write(folder / "rows.jsonl", ROWS)
    return folder


@pytest.fixture(scope="module", params=sorted(SEES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = make_model(folder / "tokenizer", PROCESSOR)
    if request.param == "glm4v":
        for name, pairs in AS_GLM.items():
            text = (tokenizer / name).read_text()
            for qwen, glm in pairs.items():
                text = text.replace(qwen, glm)
            (tokenizer / name).write_text(text)
    settings = {"vision_config": SEES[request.param], "text_config": TEXT, "image_token_id": IMAGE}
    return save_model(folder / "model", request.param, tokenizer, **settings)


@pytest.fixture(scope="module")
def data(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "set"
    return compile_set(out, pictures / "rows.jsonl", "--tokenizer", model, "--no-shuffle")


def seen(path: Path, model: Path, pictures: Path, **settings: Any) -> Path:
    return config(path, model, media_dir=str(pictures), **{"max_steps": 1, **settings})


def test_the_loss_of_images_is_the_models_own(model: Path, data: Path, pictures: Path, tmp_path: Path) -> None:
    """What the trainer logs is what transformers' model says of the same rows, given the pixels by hand."""
    run = seen(tmp_path / "run.json", model, pictures, per_device_train_batch_size=4, tuning="full", lora=None)
    train(data, run)
    from trainer.data.stream import TrainingSet

    split = TrainingSet.open(str(data)).split("train")
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(model)
    processor = transformers.AutoImageProcessor.from_pretrained(model)
    total, count = 0.0, 0
    for number in range(len(split)):
        one = split.row(number)
        ids, labels = torch.tensor(one["input_ids"])[None].long(), torch.tensor(one["labels"]).long()
        given: dict[str, Any] = {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).long()}
        if one["images"]:
            files = [Image.open(pictures / image["uri"]) for image in one["images"]]
            given |= processor(images=files, return_tensors="pt")
        with torch.no_grad():
            logits = loaded(**given).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels[1:] != -100).sum())
    assert losses(run)[1] == pytest.approx(total / count, abs=1e-4)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_frozen_vision_tower_is_not_trained(
    model: Path, data: Path, pictures: Path, tmp_path: Path, tuning: str
) -> None:
    run = seen(tmp_path / "run.json", model, pictures, tuning=tuning, lora=None, freeze_vision=True)
    train(data, run)
    checkpoint = run.with_suffix("") / "checkpoint-1"
    if tuning == "lora":
        assert not [name for name in load_file(checkpoint / "adapter_model.safetensors") if "visual" in name]
        return
    before, after = load_file(model / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "visual" in name]


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({"freeze_vision": "auto", "freeze_projector": "auto"}, {"language"}),
        ({"freeze_vision": True}, {"language"}),  # a projector in the tower goes with it
        ({"freeze_vision": True, "freeze_projector": False}, {"language", "projector"}),
        ({"freeze_projector": True}, {"language", "tower"}),
        ({"freeze_language_model": True}, {"tower", "projector"}),
        ({"freeze_language_model": True, "freeze_vision": True, "freeze_projector": False}, {"projector"}),
    ],
)
def test_each_part_of_a_model_that_sees_can_be_frozen(model: Path, settings: dict[str, Any], trained: set[str]) -> None:
    def part(name: str) -> str:
        return "projector" if ".merger." in name else "tower" if ".visual." in name else "language"

    loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(model)
    values: dict[str, Any] = {"model_name_or_path": str(model), "output_dir": "out", "lora": Lora(lora_alpha=8)}
    full = tune(loaded, TrainConfig(**values, tuning="full", **settings), "run.yaml", {})
    assert {part(name) for name, p in full.named_parameters() if p.requires_grad} == trained
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(model)
    lora = tune(loaded, TrainConfig(**values, **settings), "run.yaml", {})
    assert {part(name) for name, _ in lora.named_parameters() if "lora_A" in name} == trained


def test_images_are_found_where_they_were_compiled(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Also when set and images are moved together; otherwise one message says where they were."""
    project = tmp_path / "project"
    shutil.copytree(pictures, project / "pictures")
    out = compile_set(project / "set", project / "pictures" / "rows.jsonl", "--tokenizer", model)
    moved = project.rename(tmp_path / "moved")
    run = config(tmp_path / "run.json", model, max_steps=1)
    said = train(moved / "set", run).stderr
    assert f"media_dir is {moved / 'pictures'}, where the images were when the set was compiled" in said
    assert "compiled" not in train(moved / "set", seen(tmp_path / "named.json", model, pictures)).stderr
    (moved / "pictures").rename(tmp_path / "elsewhere")
    said = train(moved / "set", config(tmp_path / "gone.json", model, max_steps=1), code=2).stderr
    assert f"#/media_dir: the images were in {moved / 'pictures'} when the set was compiled, and there is no" in said
    assert out != moved


def test_images_in_several_folders_are_one_message(model: Path, pictures: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(pictures, tmp_path / name)
    files = [f"{name}={tmp_path / name / 'rows.jsonl'}" for name in ("one", "two")]
    out = compile_set(tmp_path / "set", *files, "--tokenizer", model)
    said = train(out, config(tmp_path / "run.json", model), "--dry-run", code=2).stderr
    assert f"in several folders: one in {tmp_path / 'one'}, two in {tmp_path / 'two'}" in said


def test_an_image_that_is_not_the_compiled_one_is_named(
    model: Path, data: Path, pictures: Path, tmp_path: Path
) -> None:
    other = tmp_path / "pictures"
    shutil.copytree(pictures, other)
    Image.new("RGB", (112, 56), "red").save(other / "a.png")
    run = seen(tmp_path / "run.json", model, other, per_device_train_batch_size=4)
    said = train(data, run, code=4).stderr
    assert "a.png: not the image that was compiled" in said
    (other / "a.png").unlink()
    said = train(data, run, code=5).stderr
    assert "a.png: cannot be read" in said


def test_images_that_rows_held_are_trained_from_the_set_alone(model: Path, pictures: Path, tmp_path: Path) -> None:
    """No folder of images is set, and the source is gone; the loss is that of the same rows with images in files."""
    source = tmp_path / "source"
    source.mkdir()
    text = datasets.Value("string")
    messages = [{"role": text, "content": text}]
    features = datasets.Features({"messages": messages, "images": [datasets.Image(decode=False)]})
    held = [one | {"images": [{"bytes": (pictures / name).read_bytes()} for name in one["images"]]} for one in ROWS]
    datasets.Dataset.from_list(held, features=features).to_parquet(source / "rows.parquet")
    embedded = compile_set(tmp_path / "set", source / "rows.parquet", "--tokenizer", model, "--no-shuffle")
    shutil.rmtree(source)
    settings = {"max_steps": 1, "per_device_train_batch_size": 4}
    run = config(tmp_path / "run.json", model, **settings)
    train(embedded, run)
    in_files = compile_set(tmp_path / "files", pictures / "rows.jsonl", "--tokenizer", model, "--no-shuffle")
    other = config(tmp_path / "other.json", model, media_dir=str(pictures), **settings)
    train(in_files, other)
    assert losses(run)[1] == losses(other)[1]
    first = sorted((embedded / "media").rglob("*.png"))[0]
    first.unlink()
    said = train(embedded, config(tmp_path / "again.json", model, **settings), code=5).stderr
    assert "an image of the set is gone from" in said


def test_packs_of_images_are_refused(model: Path, pictures: Path, tmp_path: Path) -> None:
    packed = compile_set(tmp_path / "set", pictures / "rows.jsonl", "--tokenizer", model, "--pack", 256)
    said = train(packed, seen(tmp_path / "run.json", model, pictures), code=2).stderr
    assert "packs with images are not supported" in said


def test_images_go_with_evaluation_zero_3_and_pairs(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Passes without a picture among them: every process must run the vision tower in each."""
    data = compile_set(tmp_path / "set", pictures / "rows.jsonl", "--tokenizer", model, "--val-size", 2)
    run = seen(tmp_path / "run.json", model, pictures, eval_strategy="steps", eval_steps=1, zero_stage=3)
    assert "eval loss" in train(data, run).stderr
    pairs = [
        {"instruction": f"{mark}say {word}", "chosen": f"it is {word}", "rejected": "no", "images": images}
        for word, mark, images in (("blue", "<image>", ["a.png"]), ("red", "", []), ("tall", "<image>", ["b.png"]))
    ]
    file = write(tmp_path / "pairs.jsonl", pairs)
    data = compile_set(tmp_path / "pairs", file, "--tokenizer", model, "--media-dir", pictures)
    steps = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    for tuning in ({}, {"tuning": "full", "lora": None}):  # the reference sees the pictures too, now or before
        run = seen(tmp_path / f"dpo{len(tuning)}.json", model, pictures, **steps, **tuning)
        train(data, run)
        assert losses(run)[1] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("model", ["qwen2_vl"], indirect=True)
def test_a_picture_that_is_gone_at_a_late_step_ends_the_run_there(
    model: Path, data: Path, pictures: Path, tmp_path: Path
) -> None:
    """What was done before is kept, and the run goes on from there once the picture is back."""
    steps: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    whole = seen(tmp_path / "whole.json", model, pictures, **steps)
    train(data, whole)
    other = tmp_path / "pictures"
    shutil.copytree(pictures, other)
    (other / "b.png").unlink()  # of one row
    run = seen(tmp_path / "run.json", model, other, **steps)
    result = train(data, run, code=5)
    assert result.stderr.count("error: ") == 1
    assert "b.png: cannot be read" in result.stderr
    done = losses(run)
    assert done == {step: loss for step, loss in losses(whole).items() if step <= len(done)}
    assert len(done) < 4
    shutil.copy(pictures / "b.png", other)
    train(data, run, "--resume", "yes")
    assert losses(run) == losses(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type: a qwen2 model has no eyes; those of "),
        ({"model_type": "llava_next"}, "a llava_next model takes pictures in a way that is not known here; those of "),
        ({"model_type": "gemma3"}, "and this one is a gemma3"),
    ],
)
@pytest.mark.parametrize("model", ["qwen2_vl"], indirect=True)
def test_a_set_for_another_family_is_refused_by_name(
    model: Path, data: Path, pictures: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """The same tokenizer and processor, and another model."""
    other = tmp_path / "model"
    shutil.copytree(model, other)
    settings = json.loads((other / "config.json").read_text())
    if change["model_type"] == "qwen2":
        settings = TEXT
    (other / "config.json").write_text(json.dumps(settings | change))
    said = train(data, seen(tmp_path / "run.json", other, pictures), "--dry-run", code=2).stderr
    assert message in said


def test_replies_to_pictures_are_predicted(model: Path, data: Path, pictures: Path, tmp_path: Path) -> None:
    """From the folder in which they were compiled, or another one."""
    shutil.copytree(pictures, tmp_path / "moved")
    found = []
    for name, options in (("here", []), ("moved", ["--media-dir", str(tmp_path / "moved")])):
        out = tmp_path / f"{name}.jsonl"
        asked = ["predict", str(model), str(data), "-o", str(out), "--max-new-tokens", "4", *options]
        done = runner().invoke(main, asked, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        found.append([json.loads(line) for line in out.read_text().splitlines()])
    assert found[0] == found[1]
    assert [line["reference"] for line in found[0]] == [one["messages"][1]["content"] for one in ROWS]
    done = runner().invoke(main, ["predict", str(model), str(data), "--media-dir", str(tmp_path / "gone")])
    assert (done.exit_code, "--media-dir: " in done.stderr, "no such folder" in done.stderr) == (2, True, True)
