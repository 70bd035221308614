"""Configurations that nobody means well: each is one message with exit code 2 or 5, and soon."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cli import main
from tests.support.command import runner

HEAD = "model_name_or_path: model\noutput_dir: out\n"
SECONDS = 5
"""Most of what each takes is PyYAML's scanner, 2 seconds for a megabyte on a busy machine."""


def nested(count: int) -> str:
    """Aliases of which each has nine of the one before."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, count)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nested(10) + HEAD, "more than 10,000 keys and values"),
        ("- " + nested(10).replace("\n", "\n  "), "more than 10,000 keys and values"),
        (f"{HEAD}lora: &a {{r: *a}}\n", "the alias 'a' is inside of what it stands for"),
        (f"null: 1\n{HEAD}", "the key 'None' is not the name of a setting"),
        (f"{HEAD}lora: {{1: 2}}\n", "the key '1' is not the name of a setting"),
        (f"{HEAD}deepspeed: {{~: 2}}\n", "the key 'None' is not the name of a setting"),
        (f"{HEAD}? [1, 2]\n: 3\n", "the key '[1, 2]' is not the name of a setting"),
        (f"{HEAD}max_steps: {'9' * 5000}\n", "a number of 5,000 digits"),
        (f"{HEAD}learning_rate: 1e999\n", "#/learning_rate: expected a number, found inf"),
        (f"{HEAD}lora: {{lora_dropout: .nan}}\n", "#/lora/lora_dropout: expected a number, found nan"),
        (f"{HEAD}max_steps: !!int one\n", "a value is not what its tag says"),
        (f"{HEAD}plot_loss: !!bool one\n", "a value is not what its tag says"),
        ("[" * 200_000, "more than 50 levels"),
        (HEAD + "lora: " + "{a: " * 3000 + "1" + "}" * 3000, "more than 50 levels"),
        (HEAD + "".join(f"k{i}: 1\n" for i in range(20_000)), "more than 10,000 keys and values"),
        (HEAD + "".join(f"k{i}: 1\n" for i in range(4_000)), "expected at most 1,000 keys, found 4,002"),
        (f"model_name_or_path: {'x' * 500_000}\noutput_dir: y\n", "a value of 500,000 characters"),
        (HEAD + "#" * 2**21, "found more than 1,048,576 bytes"),
        ("#!/bin/sh\nswift sft --model x " + " ".join(f"--k{i} 1" for i in range(20_000)), "found 20,001"),
        ("#!/bin/sh\nA0=xxxxxxxxxx\n" + "".join(f"A{i + 1}=$A{i}$A{i}\n" for i in range(40)) + "swift sft --model $A40",
         "$A40 needs a shell: $A"),
        (f"#!/bin/sh\nswift sft --model x --max_steps {'9' * 5000}", "max_steps"),
        (f"#!/bin/sh\nswift sft --model x --max_steps $(expr 1 {'/ 1 ' * 500})", "needs a shell"),
    ],
    ids=range(22),
)  # fmt: skip
def test_a_hostile_configuration_is_one_message(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    began = time.monotonic()
    done = runner().invoke(main, ["train", str(tmp_path), str(file), "--dry-run"])
    assert time.monotonic() - began < SECONDS
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert len(done.stderr) < 3000


def test_a_deep_deepspeed_file_is_one_message(tmp_path: Path) -> None:
    from schemas.errors import InputError, UsageError
    from trainer.config import zero
    from trainer.config.config import TrainConfig

    path = tmp_path / "ds.json"
    path.write_text("[" * 100_000)
    config = TrainConfig(model_name_or_path="model", output_dir="out", deepspeed=str(path))
    with pytest.raises(InputError, match="not a JSON file"):
        zero.read(config, "run.yaml")
    path.write_text('{"zero_optimization": 3}')
    with pytest.raises(UsageError, match="#/zero_optimization: expected a JSON object"):
        zero.read(config, "run.yaml")
