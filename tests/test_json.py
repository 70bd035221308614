"""`--json` of every command: what it prints is valid by a schema in schemas/, and says the version of its form."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import torch
from safetensors.torch import load_file

import cli
from schemas import schema
from schemas.printed import VERSION
from tests.support.command import outside, runner
from tests.support.trained import config, save_model, small_set, train

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
ROOT = Path(__file__).resolve().parent.parent
OWN = {"browse": "browse", "convert": "conversion", "diff": "diff", "report": "report", "stats": "stats", "why": "why"}
"""The commands with a schema of their own."""
FORMS = schema("output")["$defs"]
CALLS = {
    "cache list": "cache list --cache cache",
    "cache verify": "cache verify --cache cache",
    "cache prune": "cache prune --unused-for 1d --cache cache",
    "chat": "chat exported --max-new-tokens 3",
    "compile": "compile more.jsonl --max-rejects 1 -o more --cache cache",
    "compile --only": "compile more.jsonl --only 1/2 --cache cache",
    "convert": "convert shards --to hf -o handed-on --drop-weights",
    "diff": "diff shards more",
    "doctor": "doctor",
    "export": "export run/checkpoint-2 exported-again",
    "follow": "follow llamafactory-cli train call.yaml",
    "formats": "formats",
    "inspect": "inspect shards --limit 2",
    "inspect --assert": "inspect shards --assert user:0",
    "inspect --rejected": "inspect more --rejected",
    "predict": "predict exported shards --limit 2 --max-new-tokens 3 -o predictions.jsonl",
    "report": "report shards -o report.html",
    "safetensors": "safetensors old new",
    "stats": "stats shards",
    "train": "train shards run.yaml --set output_dir=other",
    "train --dry-run": "train shards run.yaml --dry-run --resume yes",
    "verify": "verify shards",
    "why": "why more more.jsonl:1",
}
"""A call of each form, in the folder of `made`. cli serve and cli browse do not end: they have tests of their own."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, a model, a run and its export, and an old file of weights."""
    folder = tmp_path_factory.mktemp("made")
    small_set(folder, "--cache", str(folder / "cache"))
    model = save_model(folder / "model")
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "output_dir": str(folder / "run")}
    train(folder / "shards", config(folder / "run.yaml", model, **settings))
    asked = ["export", str(folder / "run" / "checkpoint-2"), str(folder / "exported")]
    assert runner().invoke(cli.main, asked).exit_code == 0
    old = save_model(folder / "old")
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    lines = ['{"instruction": "hi", "output": "yes"}', '{"instruction": "hi"}', '{"instruction": "ho", "output": "no"}']
    (folder / "more.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "call.yaml").write_text("model_name_or_path: model\nstage: sft\ndataset: d\noutput_dir: o\n")
    (folder / "dataset_info.json").write_text('{"d": {"file_name": "more.jsonl"}}')
    return folder


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def test_every_command_that_prints_json_has_a_schema() -> None:
    found = {name for name, one in commands(cli.main) if any("--json" in option.opts for option in one.params)}
    assert found == {name.partition(" --")[0] for name in FORMS} | set(OWN)
    assert set(CALLS) == (set(FORMS) | set(OWN)) - {"browse", "serve"}
    assert all(form["properties"]["version"]["const"] == VERSION for form in FORMS.values() if "properties" in form)


def check(name: str, printed: str) -> None:
    form: Any = schema(OWN[name]) if name in OWN else FORMS[name]
    lines = [json.loads(line) for line in printed.splitlines()]
    assert lines
    for line in lines:
        jsonschema.Draft202012Validator(form).validate(line)
        assert all(isinstance(one["version"], int) for one in (line if isinstance(line, list) else [line]))


@pytest.mark.parametrize("name", CALLS)
def test_what_a_command_prints_is_valid(made: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(made)
    if name in ("diff", "why", "inspect --rejected") and not (made / "more").exists():
        made_first = runner().invoke(cli.main, shlex.split(CALLS["compile"]))
        assert made_first.exit_code == 0, made_first.stderr
    words = shlex.split(CALLS[name])
    words.insert(2 if words[0] == "cache" else 1, "--json")
    done = runner().invoke(cli.main, words, input="hi\n")
    assert done.exit_code == 0, done.stderr
    check(name, done.stdout)


def test_what_serve_prints_is_valid(made: Path) -> None:
    pytest.importorskip("uvicorn")
    command = [sys.executable, ROOT / "cli.py", "serve", made / "exported", "--port", "0", "--json"]
    with subprocess.Popen([*map(str, command)], env=outside(), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            check("serve", server.stdout.readline())
        finally:
            server.terminate()
