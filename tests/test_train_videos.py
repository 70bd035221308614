"""Videos of the class of Qwen2-VL: frames given as pictures and video files, in batches with pictures and without.

Pixels are worked out by hand: no frame here needs to be resized. Where torchvision is installed, transformers' own
video processor is asked too.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.support.eyes import eyes_model
from tests.support.sets import rows
from tests.support.trained import compile_set, config, losses, run_to_end, train, write
from trainer.config.config import TrainConfig
from trainer.data.images import images_of
from trainer.data.stream import TrainingSet
from trainer.data.vision.clips import Films
from trainer.data.vision.eyes import Clip
from trainer.data.vision.find import eyes_of
from trainer.models.folder import find
from trainer.predict.generate import prompts

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
av = pytest.importorskip("av")

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP."""
IMAGE, VIDEO = 8005, 8006
FRAMES = ["v/0.png", "v/1.png", "v/2.png"]


def film(path: Path, frames: int, rate: int) -> None:
    """Write a video of 56x84 pixels, of which every frame has a colour of its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        for i in range(frames):
            pixels = np.full((56, 84, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def talk(said: str, reply: str, **media: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "images": [], "videos": []} | media


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eyes_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "v").mkdir()
    for i, name in enumerate(FRAMES):
        pixels = np.random.default_rng(i).integers(0, 256, (56, 84, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    Image.new("RGB", (56, 56), "navy").save(folder / "a.png")
    film(folder / "film.mp4", 4, 8)
    made = [
        talk("<video>what moves", "a box, from left to right", videos=[FRAMES]),
        talk("<image>and <video>here", "nothing does", images=["a.png"], videos=["film.mp4"]),
        talk("no picture", "nothing to see"),
        talk("<image>what is it", "a box", images=["a.png"]),
    ]
    write(folder / "rows.jsonl", made)
    return folder


@pytest.fixture(scope="module")
def data(model: Path, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "set"
    return compile_set(out, media / "rows.jsonl", "--tokenizer", model, "--no-shuffle")


def by_hand(frames: list[Any]) -> tuple[torch.Tensor, list[list[int]]]:
    """Patches of 14x14 pixels of two frames each, in blocks of 2x2, and the grid."""
    pixels = np.stack([np.asarray(frame.convert("RGB"), np.float32) / 255 for frame in frames])
    pixels = (pixels - np.float32(MEAN)) / np.float32(DEVIATION)
    pixels = np.concatenate([pixels, *[pixels[-1:]] * (len(pixels) % 2)])
    times, height, width = len(pixels) // 2, pixels.shape[1] // 14, pixels.shape[2] // 14
    found = [
        pixels[2 * t : 2 * t + 2, y : y + 14, x : x + 14].transpose(3, 0, 1, 2).reshape(-1)
        for t in range(times)
        for top in range(0, 14 * height, 28)
        for left in range(0, 14 * width, 28)
        for y in (top, top + 14)
        for x in (left, left + 14)
    ]
    return torch.from_numpy(np.stack(found)), [[times, height, width]]


def decoded(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def given(model: Path, media: Path, row: dict[str, Any]) -> dict[str, Any]:
    """What the model takes of a row."""
    ids = torch.tensor([row["input_ids"]])
    found: dict[str, Any] = {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}
    for image in row["images"]:
        pixels, grid = by_hand([Image.open(media / image["uri"])] * 2)
        found |= {"pixel_values": pixels, "image_grid_thw": torch.tensor(grid)}
    for video in row["videos"]:
        listed = video["uri"].startswith("[")
        paths = json.loads(video["uri"]) if listed else []
        frames = [Image.open(media / path) for path in paths] or decoded(media / video["uri"])
        pixels, grid = by_hand(frames)
        found |= {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor(grid)}
        if json.loads((model / "config.json").read_text())["model_type"] == "qwen2_5_vl":
            found["second_per_grid_ts"] = torch.tensor([2 / (24 if listed else 8)])
    return found


def test_the_loss_of_videos_is_that_of_a_pass_made_by_hand(
    model: Path, data: Path, media: Path, tmp_path: Path
) -> None:
    run = config(
        tmp_path / "run.json", model, media_dir=str(media), max_steps=1, per_device_train_batch_size=4, tuning="full",
        lora=None,
    )  # fmt: skip
    train(data, run)
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(model)
    total, count = 0.0, 0
    for row in rows(data):
        labels = torch.tensor(row["labels"])
        assert sum(one["num_tokens"] for one in row["videos"]) == row["input_ids"].count(VIDEO)
        with torch.no_grad():
            logits = loaded(**given(model, media, row)).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels[1:] != -100).sum())
    assert losses(run)[1] == pytest.approx(total / count, abs=1e-4)


def test_a_prompt_has_the_videos_before_its_reply(model: Path, data: Path, media: Path) -> None:
    opened = TrainingSet.open(str(data))
    source = find(TrainConfig(model_name_or_path=str(model), output_dir="x"))
    images = images_of(opened, eyes_of(source.config, source.folder), str(media))
    for number, row in enumerate(rows(data)):
        (prompt,) = prompts(opened.split("train").row(number), sees=True)
        before, (ids,), inputs = images.see([prompt])
        expected = given(model, media, row)
        shown = [name for name in inputs if name in expected]
        assert [name for name in shown if not torch.allclose(inputs[name], expected[name], atol=1e-6)] == []
        assert ids == prompt.prompt_ids
        missing = [pad for pad, listed in ((IMAGE, "images"), (VIDEO, "videos")) if not row[listed]]
        assert sorted(set(before[0])) == missing  # a blank for what is not there


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2_5_vl"], indirect=True)
def test_videos_pictures_and_text_are_one_step_under_zero_3(
    model: Path, data: Path, media: Path, tmp_path: Path
) -> None:
    """Two processes, a row in each pass: the tower runs for pictures and for videos in every one."""
    more: dict[str, Any] = {"media_dir": str(media), "max_steps": 2, "tuning": "full", "lora": None}
    one = config(tmp_path / "one.json", model, per_device_train_batch_size=4, **more)
    two = config(
        tmp_path / "two.json", model, per_device_train_batch_size=1, gradient_accumulation_steps=2, zero_stage=3, **more
    )
    train(data, one)
    run_to_end(2, data, two)
    assert losses(two) == pytest.approx(losses(one), abs=2e-5)


@pytest.mark.parametrize(
    "numbers",
    [{}, {"size": {"shortest_edge": 4096, "longest_edge": 65536}, "patch_size": 16}, {"cap_pixels_per_frame": True}],
)
def test_frames_are_cut_as_transformers_video_processor_cuts_them(numbers: dict[str, Any], tmp_path: Path) -> None:
    """Pixels differ by rounding: torchvision resizes bytes otherwise than Pillow in the last bit."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"transformers' video processor needs torchvision: {error}")
    processor = transformers.Qwen2VLVideoProcessor(**{"cap_pixels_per_frame": False, **numbers}, max_video_tokens=300)
    said = {"image_processor_type": "Qwen2VLImageProcessor", "max_video_tokens": 300} | numbers
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    ours = Films.of(tmp_path, transformers.Qwen2VLImageProcessorPil.from_pretrained(tmp_path), timed=False)
    for count, width, height in [(1, 28, 28), (2, 300, 168), (5, 64, 48), (9, 33, 470)]:
        pixels = np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        theirs = processor(videos=[pixels], return_tensors="pt")
        made = ours.inputs([Clip([Image.fromarray(frame) for frame in pixels])])
        assert made["video_grid_thw"].tolist() == theirs["video_grid_thw"].tolist()
        assert torch.allclose(made["pixel_values_videos"], theirs["pixel_values_videos"], atol=0.04)
