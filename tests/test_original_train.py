"""`cli train` and `cli export` on models in their original layout: they are trained as what they become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import trainer.models
from tests.support.documents import FILES
from tests.support.original import CONFIGS, save_original
from tests.support.trained import config, losses, run_to_end, small_set, train

Run = Callable[..., Result]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("data"))


def native(folder: Path, original: Path) -> Path:
    """The same model as an ordinary folder of Transformers, saved by Transformers itself."""
    trainer.models.load(original).save_pretrained(folder)
    for path in original.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "cogagent"])
def test_an_original_folder_trains_as_the_native_one(name: str, data: Path, tmp_path: Path) -> None:
    original = save_original(tmp_path / "original", name)
    for tuning in ("full", "lora"):
        more: dict[str, Any] = {
            "tuning": tuning,
            "lora": {"r": 4, "target_modules": "all"} if tuning == "lora" else None,
        }
        found = []
        for folder in (original, native(tmp_path / "native", original)):
            file = config(tmp_path / f"{tuning}-{folder.name}.json", folder, **more)
            train(data, file)
            found.append(losses(file))
        assert len(found[0]) == 4
        assert found[0] == found[1]


NAMES = [("chatglm3", "query_key_value,dense,dense_h_to_4h", "q_proj,k_proj,v_proj,o_proj,gate_up_proj"),
         ("chatglm3", "dense_4h_to_h", "down_proj"),
         ("qwen", "c_attn,c_proj,w1,w2", "q_proj,k_proj,v_proj,o_proj,up_proj,gate_proj,down_proj"),
         ("internlm2", "wqkv,wo,w1,w2,w3", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"),
         ("baichuan", "W_pack,o_proj", "q_proj,k_proj,v_proj,o_proj")]  # fmt: skip


@pytest.mark.parametrize(("name", "users", "ours"), NAMES)
def test_the_names_of_layers_that_users_know_are_taken(
    name: str, users: str, ours: str, data: Path, tmp_path: Path
) -> None:
    original = save_original(tmp_path / "original", name)
    found = []
    for i, asked in enumerate((users, ours)):
        file = config(tmp_path / f"{i}.json", original, lora={"r": 4, "target_modules": asked.split(",")})
        train(data, file)
        found.append(losses(file))
    assert found[0] == found[1]


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_train_it_as_one_does(stage: int, data: Path, tmp_path: Path) -> None:
    original = save_original(tmp_path / "original", "chatglm3")
    more: dict[str, Any] = {"tuning": "full", "zero_stage": stage, "lora": None}
    one = config(tmp_path / "one.json", original, per_device_train_batch_size=2, **more)
    two = config(tmp_path / "two.json", original, per_device_train_batch_size=1, **more)
    train(data, one)
    run_to_end(2, data, two)
    assert losses(two) == pytest.approx(losses(one), abs=2e-5)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_an_export_is_a_folder_that_transformers_loads(tuning: str, data: Path, tmp_path: Path, run: Run) -> None:
    original = save_original(tmp_path / "original", "chatglm3")
    file = config(
        tmp_path / "run.json", original, tuning=tuning, save_strategy="steps", save_steps=4, learning_rate=1e-2,
        lora={"r": 4, "target_modules": ["query_key_value"]} if tuning == "lora" else None,
    )  # fmt: skip
    train(data, file)
    run("export", tmp_path / "run" / "checkpoint-4", tmp_path / "out")
    if tuning == "lora":
        checkpoint = tmp_path / "run" / "checkpoint-4"
        assert json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"] == str(original)
        assert "PEFT alone cannot load it" in (checkpoint / "README.md").read_text(encoding="utf-8")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    assert type(exported).__name__ == "GlmForCausalLM"
    before = trainer.models.load(original)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert (exported(ids).logits - before(ids).logits).abs().max() > 1e-3  # it has learnt something


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("name", ["chatglm3", "qwen"])
def test_an_export_in_the_original_layout_says_the_same(
    name: str, tuning: str, data: Path, tmp_path: Path, run: Run
) -> None:
    original = save_original(tmp_path / "original", name)
    (original / "modeling_mine.py").write_text("raise SystemExit", encoding="utf-8")
    file = config(
        tmp_path / "run.json", original, tuning=tuning, save_strategy="steps", save_steps=4, learning_rate=1e-2,
        lora={"r": 4} if tuning == "lora" else None,
    )  # fmt: skip
    train(data, file)
    run("export", tmp_path / "run" / "checkpoint-4", tmp_path / "plain")
    run("export", tmp_path / "run" / "checkpoint-4", tmp_path / "out", "--layout", "original")
    before, after = load_file(original / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {key: tensor.shape for key, tensor in before.items()} == {key: one.shape for key, one in after.items()}
    for kept in ("config.json", "modeling_mine.py"):
        assert (tmp_path / "out" / kept).read_bytes() == (original / kept).read_bytes()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = trainer.models.load(tmp_path / "plain")(ids).logits
        assert torch.equal(trainer.models.load(tmp_path / "out")(ids).logits, plain)
        assert (trainer.models.load(original)(ids).logits - plain).abs().max() > 1e-3
    run("export", tmp_path / "run" / "checkpoint-4", tmp_path / "half", "--layout", "original", "--dtype", "fp16")
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(tensors[key], after[key].half()) for key in after)
    assert json.loads((tmp_path / "half" / "provenance.json").read_text())["layout"] == "original"


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_model_that_transformers_has_no_class_for_is_exported_in_its_own_layout(
    tuning: str, data: Path, tmp_path: Path, run: Run
) -> None:
    original = save_original(tmp_path / "original", "cogagent")
    file = config(
        tmp_path / "run.json", original, tuning=tuning, save_strategy="steps", save_steps=4, freeze_vision=True,
        lora={"r": 4, "target_modules": ["query_key_value"]} if tuning == "lora" else None,
    )  # fmt: skip
    train(data, file)
    run("export", tmp_path / "run" / "checkpoint-4", tmp_path / "out")
    refused = run("export", tmp_path / "run" / "checkpoint-4", tmp_path / "no", "--layout", "transformers", code=2)
    assert "it has no class for GLM-4V and CogAgent" in refused.stderr
    assert (tmp_path / "out" / "config.json").read_bytes() == (original / "config.json").read_bytes()
    before, after = load_file(original / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("vision" in name for name in changed)  # frozen, also where it has layers of that name
    if tuning == "lora":
        assert {name.split(".", 4)[-1] for name in changed} == {"self_attention.query_key_value.weight"}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prefix_is_trained(name: str, data: Path, tmp_path: Path) -> None:
    """Also where gradient checkpointing is asked for, which is switched off."""
    original = save_original(tmp_path / "original", name)
    file = config(
        tmp_path / "run.json", original, tuning="prefix", lora=None, prefix={"num_virtual_tokens": 4},
        gradient_checkpointing=True,
    )  # fmt: skip
    said = train(data, file).stderr
    assert "note: gradient_checkpointing is off, as tuning is prefix" in said
    assert len(losses(file)) == 4


@pytest.mark.parametrize(("name", "tuning"), [("lora", "lora"), ("ptuning_v2", "prefix"), ("sft", "full")])
def test_chatglm3s_own_files_need_nothing_set(name: str, tuning: str, data: Path, tmp_path: Path) -> None:
    original = save_original(tmp_path / "original", "chatglm3", hidden_size=64)
    facts = json.loads(train(data, FILES[f"chatglm3_{name}"], "--model", original, "--dry-run", "--json").stdout)
    assert (facts["config"]["tuning"], facts["steps"], facts["step_rows"]) == (tuning, 3000, 4)
    assert facts["config"]["gradient_checkpointing"] == (tuning != "prefix"), "as their code switches it on"
    assert facts["zero_stage"] == (3 if name == "sft" else 2)
