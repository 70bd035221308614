"""CogAgent from its document's configuration to a chat: screenshots, a run that is killed and resumed, an export."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import Result

from cli import main
from tests.support.command import runner
from tests.support.documents import FILES
from tests.support.eyes import Asked
from tests.support.original import save_cogagent
from tests.support.sets import rows
from tests.support.trained import compile_set, kill_after, train, write
from trainer.config.config import TrainConfig
from trainer.data.images import images_of
from trainer.data.stream import TrainingSet
from trainer.data.vision.find import eyes_of
from trainer.models.folder import find
from trainer.predict.generate import prompts
from trainer.use.chat import open_chat

Run = Callable[..., Result]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
EXAMPLE = Path(__file__).parent.parent / "examples" / "cogagent"
NEXT = {"images/notes-0.png": "CLICK", "images/music-0.png": "CLICK", "images/pay-1.png": "CLICK"}
"""Screenshots and what is to be done there."""


@dataclass
class Trained:
    model: Path
    data: Path
    settings: dict[str, object]

    def given(self, name: str, output: Path, **changed: object) -> tuple[object, ...]:
        """What `cli train` is given to run a file of the document, with what is changed for a short run."""
        values = self.settings | {"output_dir": output} | changed
        settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        return (self.data, FILES[f"cogagent_{name}"], "--model", self.model, *settings)


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("screens")
    model, _ = save_cogagent(folder)
    made = [
        {"messages": [{"role": "user", "content": "What is next?", "image": image},
                      {"role": "assistant", "content": reply}]}
        for image, reply in NEXT.items()
    ]  # fmt: skip
    options = ["--tokenizer", model, "--template", "cogagent", "--media-dir", EXAMPLE, "--val-size", 1]
    data = compile_set(folder / "set", write(folder / "train.jsonl", made), *options)
    settings = {
        "media_dir": EXAMPLE, "use_cpu": "true", "dataloader_num_workers": 1, "logging_steps": 1,
        "generation_max_new_tokens": 8,
    }  # fmt: skip
    return Trained(model, data, settings)


def wait_until_free(lock: Path) -> None:
    """Wait until the processes of a killed run are gone."""
    deadline = time.monotonic() + 30
    with lock.open("w") as file:
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def said(run: Path) -> dict[int, float]:
    """The losses of a run by step."""
    lines = (run / "log.jsonl").read_text().splitlines()
    return {one["step"]: one["loss"] for one in map(json.loads, lines) if "loss" in one}


def test_lora_is_killed_resumed_exported_and_shown_a_picture(screens: Trained, tmp_path: Path, run: Run) -> None:
    numbers = {"max_steps": 6, "save_steps": 2, "eval_steps": 6}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(*screens.given("lora", whole, **numbers))
    kill_after(3, 1, *screens.given("lora", broken, **numbers), output=broken)
    wait_until_free(broken / ".lock")
    for resume in ("yes", "4"):
        train(*screens.given("lora", broken, **numbers), "--resume", resume)
        assert said(broken) == said(whole)
    run("export", broken / "checkpoint-6", tmp_path / "out")
    chat = open_chat(tmp_path / "out", None, None)
    chat.model = asked = Asked(chat.model, chat.stops[0])
    opened, source = TrainingSet.open(str(screens.data)), find(TrainConfig(str(screens.model), "x"))
    images = images_of(opened, eyes_of(source.config, source.folder), str(EXAMPLE))
    for number, row in enumerate(rows(screens.data)):
        chat.system("")
        chat.attach(EXAMPLE / row["images"][0]["uri"])
        chat.say("What is next?")
        (prompt,) = prompts(opened.split("train").row(number), sees=True)
        _, ids, inputs = images.see([prompt])
        assert asked.given["input_ids"].tolist() == ids
        assert torch.equal(asked.given["pixel_values"], inputs["pixel_values"])


def test_the_loss_falls_and_the_stop_is_learnt(screens: Trained, tmp_path: Path, run: Run) -> None:
    """With sft.yaml: everything but the eyes is trained."""
    numbers = {"max_steps": 50, "save_steps": 50, "eval_steps": 50, "learning_rate": "1e-2"}
    ran = tmp_path / "sft"
    train(*screens.given("sft", ran, **numbers))
    assert said(ran)[50] < 0.1 * said(ran)[1]
    run("export", ran / "checkpoint-50", tmp_path / "out")
    first = next(image["uri"] for row in rows(screens.data) for image in row["images"])
    typed = f"/image {EXAMPLE / first}\nWhat is next?\n"
    result = runner().invoke(main, ["chat", str(tmp_path / "out"), "--json"], input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    reply = json.loads(result.stdout)
    assert (reply["content"], reply["ended"]) == (f"\n{NEXT[first]}", "stop")
