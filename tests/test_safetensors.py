"""`cli safetensors`: weights in pickles become safetensors, and nothing in the pickles is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

import trainer.models
from tests.support.original import save_original
from tests.support.trained import config, outside, save_model, small_set, train

Run = Callable[..., Result]

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries about their own future


def pickled(folder: Path, shards: int = 1, **settings: Any) -> dict[str, torch.Tensor]:
    """Replace a folder's safetensors file by pickled ones. Returns its tensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", **settings)
        return tensors
    weight_map = {}
    for i in range(shards):
        name = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        part = dict(list(tensors.items())[i::shards])
        torch.save(part, folder / name, **settings)
        weight_map |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def written(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(("shards", "settings"), [(1, {}), (3, {}), (2, {"_use_new_zipfile_serialization": False})])
def test_the_tensors_are_those_of_the_pickles(tmp_path: Path, run: Run, shards: int, settings: dict[str, Any]) -> None:
    model = save_model(tmp_path / "model")
    wanted = pickled(model, shards, **settings)
    (model / "training_args.bin").write_bytes(b"what trainers leave there")
    said = run("safetensors", model).stdout
    assert f"{len(wanted)} tensors in {shards} file" in said
    found = written(model)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    trainer.models.load(model)
    assert "it has files of weights already" in run("safetensors", model, code=2).stderr


def test_another_folder_gets_everything_else_too(tmp_path: Path, run: Run) -> None:
    model = save_model(tmp_path / "model")
    pickled(model)
    before = sorted(path.name for path in model.iterdir())
    shown = json.loads(run("safetensors", model, tmp_path / "out", "--json").stdout)
    assert shown["files"] == ["model.safetensors"]
    assert sorted(path.name for path in model.iterdir()) == before
    after = {path.name for path in (tmp_path / "out").iterdir()}
    assert after == {*before, "model.safetensors"} - {"pytorch_model.bin"}
    assert "it is not empty" in run("safetensors", model, model.parent, code=2).stderr


def test_tensors_that_share_memory_are_all_kept(tmp_path: Path, run: Run) -> None:
    """A head tied to the embeddings, a part of a larger tensor, and one that is laid out by columns."""
    model = save_model(tmp_path / "model", tie_word_embeddings=True)
    tensors = load_file(model / "model.safetensors")
    whole = torch.arange(40.0).view(4, 10)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors |= {"part": whole[1:3], "columns": torch.arange(6.0).view(2, 3).T}
    (model / "model.safetensors").unlink()
    torch.save(tensors, model / "pytorch_model.bin")
    assert "1 of them shared memory" in run("safetensors", model).stdout
    found = written(model)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


class Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("new", [True, False])
def test_a_file_that_asks_for_more_than_tensors_is_refused_and_not_run(tmp_path: Path, run: Run, new: bool) -> None:
    model = save_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    attack = {"weight": torch.zeros(2), "more": Attack(tmp_path / "owned")}
    torch.save(attack, model / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    for arguments in (["safetensors", model], ["safetensors", model, tmp_path / "out"]):
        said = run(*arguments, code=4).stderr
        assert "pytorch_model.bin: it asks for posix.mkdir" in said
        assert "Nothing of it was run." in said
    assert not (tmp_path / "owned").exists()
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_what_is_missing_or_no_weights_is_one_message(tmp_path: Path, run: Run) -> None:
    model = save_model(tmp_path / "model")
    tensors = pickled(model, 2)
    second = model / "pytorch_model-00002-of-00002.bin"
    data = second.read_bytes()
    second.unlink()
    assert f"{second}: is missing" in run("safetensors", model, code=5).stderr
    second.write_bytes(data[: len(data) // 2])
    assert f"{second}: cannot be read" in run("safetensors", model, code=5).stderr
    torch.save({"state_dict": tensors}, second)
    assert "found dict under 'state_dict'" in run("safetensors", model, code=4).stderr
    torch.save({}, second)
    assert "which no file has" in run("safetensors", model, code=4).stderr
    assert not list(model.glob("*.safetensors*"))
    assert "no such folder" in run("safetensors", tmp_path / "none", code=5).stderr


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_an_original_folder_of_pickles_is_converted_and_trained(tmp_path: Path, run: Run) -> None:
    data = small_set(tmp_path / "data")
    original = save_original(tmp_path / "chatglm3", "chatglm3")
    pickled(original, 2)
    file = config(tmp_path / "run.json", original, max_steps=1)
    said = train(data, file, code=2).stderr
    assert f"cli safetensors {original}" in said
    assert f"cli safetensors {original}" in run("chat", original, code=2).stderr
    run("safetensors", original)
    train(data, file)


@pytest.mark.slow
def test_nothing_asks_on_the_standard_input_or_runs_code_of_a_model(tmp_path: Path) -> None:
    """A model with classes of its own, and somebody who answers yes to everything."""
    data = small_set(tmp_path / "data")
    model, mark = save_model(tmp_path / "model"), tmp_path / "owned"
    (model / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nraise SystemExit\n", encoding="utf-8")
    classes = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    changed = json.loads((model / "config.json").read_text()) | {"auto_map": classes, "model_type": "own"}
    strange = shutil.copytree(model, tmp_path / "strange")
    (strange / "config.json").write_text(json.dumps(changed))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["own.T", None]}, "tokenizer_class": "OwnTokenizer"}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    file = config(tmp_path / "run.json", strange)
    for arguments in (["train", data, file], ["train", data, file, "--dry-run"], ["chat", strange], ["chat", model]):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "cli", *map(str, arguments)], input="y\n" * 20, text=True,
            capture_output=True, timeout=120, check=False, env=outside(),
        )  # fmt: skip
        assert "y/N" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert not mark.exists()


def test_what_a_killed_conversion_left_goes_and_what_others_made_stays(tmp_path: Path, run: Run) -> None:
    model = save_model(tmp_path / "model")
    wanted = pickled(model)
    left = tmp_path / "out" / ".safetensors.partial"
    left.mkdir(parents=True)
    (left / "notes.txt").write_text("theirs")
    assert (
        f"{left}: it is in the way, and no conversion made it" in run("safetensors", model, left.parent, code=2).stderr
    )
    assert (left / "notes.txt").read_text() == "theirs"
    (left / ".made-by").write_text(json.dumps({"made_by": "finetune-data-compiler safetensors"}))
    run("safetensors", model, left.parent)
    assert not left.exists()
    assert written(left.parent).keys() == wanted.keys()


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, run: Run) -> None:
    model = save_model(tmp_path / "model")
    pickled(model)
    for name in ("../secret.bin", "/etc/passwd", "a/../../b.bin"):
        (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        said = run("safetensors", model, code=4).stderr
        assert f"pytorch_model.bin.index.json: lists {name!r}, which leads out of the folder" in said
