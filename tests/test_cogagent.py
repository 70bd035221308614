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
YAML = """\
data_config:
  train_file: train.jsonl
  val_file: dev.jsonl
  test_file: dev.jsonl
  num_proc: 1
combine: True
freezeV: {freeze}
max_input_length: 512
max_output_length: 512
training_args:
  output_dir: {output}
  max_steps: {steps}
  learning_rate: {rate}
  per_device_train_batch_size: 1
  dataloader_num_workers: 1
  remove_unused_columns: false
  save_strategy: steps
  save_steps: {save}
  log_level: info
  logging_strategy: steps
  logging_steps: 1
  per_device_eval_batch_size: 4
  eval_strategy: steps
  eval_steps: {steps}
  predict_with_generate: true
  generation_config:
    max_new_tokens: 8
"""
"""What the document's lora.yaml and sft.yaml have in common."""
LORA = """\
peft_config:
  peft_type: LORA
  task_type: CAUSAL_LM
  r: 8
  lora_alpha: 32
  lora_dropout: 0.1
  target_modules: ["query_key_value"]
"""
NEXT = {"images/notes-0.png": "CLICK", "images/music-0.png": "CLICK", "images/pay-1.png": "CLICK"}
"""Screenshots and what is to be done there."""


@dataclass
class Trained:
    model: Path
    data: Path
    settings: list[object]

    def settled(self, path: Path, more: str = "", **numbers: object) -> Path:
        """Write the document's configuration; its output goes beside it."""
        path.write_text(YAML.format(output=path.with_suffix(""), **numbers) + more)
        return path


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
    given = {"model_name_or_path": model, "media_dir": EXAMPLE, "use_cpu": "true"}
    return Trained(model, data, [part for key, value in given.items() for part in ("--set", f"{key}={value}")])


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
    lines = (run.with_suffix("") / "log.jsonl").read_text().splitlines()
    return {one["step"]: one["loss"] for one in map(json.loads, lines) if "loss" in one}


def test_lora_is_killed_resumed_exported_and_shown_a_picture(screens: Trained, tmp_path: Path, run: Run) -> None:
    numbers = {"freeze": False, "steps": 6, "rate": "5e-4", "save": 2}
    whole = screens.settled(tmp_path / "whole.yaml", LORA, **numbers)
    train(screens.data, whole, *screens.settings)
    broken = screens.settled(tmp_path / "broken.yaml", LORA, **numbers)
    kill_after(3, 1, screens.data, broken, *screens.settings, output=broken.with_suffix(""))
    wait_until_free(broken.with_suffix("") / ".lock")
    for resume in ("yes", "4"):
        train(screens.data, broken, *screens.settings, "--resume", resume)
        assert said(broken) == said(whole)
    run("export", broken.with_suffix("") / "checkpoint-6", tmp_path / "out")
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
    file = screens.settled(tmp_path / "sft.yaml", freeze=True, steps=50, rate="1e-2", save=50)
    train(screens.data, file, *screens.settings)
    assert said(file)[50] < 0.1 * said(file)[1]
    run("export", file.with_suffix("") / "checkpoint-50", tmp_path / "out")
    first = next(image["uri"] for row in rows(screens.data) for image in row["images"])
    typed = f"/image {EXAMPLE / first}\nWhat is next?\n"
    result = runner().invoke(main, ["chat", str(tmp_path / "out"), "--json"], input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    reply = json.loads(result.stdout)
    assert (reply["content"], reply["ended"]) == (f"\n{NEXT[first]}", "stop")
