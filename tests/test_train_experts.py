"""LoRA on models with fused experts: training under ZeRO, checkpoints, resuming, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from click.testing import Result
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.sets import rows as set_rows
from tests.support.tiny import weights_of
from tests.support.trained import (
    compile_set,
    config,
    losses,
    records,
    rows,
    run_to_end,
    save_model,
    small_set,
    train,
    write,
)  # fmt: skip

Run = Callable[..., Result]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
GLM = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
       "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": GLM,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 2, "pad_token_id": 1},
}
USUAL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("data"))


def moe(folder: Path, kind: str) -> Path:
    return save_model(folder, kind, head_dim=8, **KINDS[kind])


def adapted(checkpoint: Path) -> set[str]:
    """Parameters of the base that the checkpoint's adapter changes, by the names of the adapter's tensors."""
    names = set()
    for name in load_file(checkpoint / "adapter_model.safetensors"):
        path = name.removeprefix("base_model.model.").split(".lora_")[0]
        inner = "gate_up_proj" if path.endswith(".base_layer") else "down_proj"
        owner = path.removesuffix(".base_layer")
        names.add(f"{owner}.{inner}" if owner.endswith(".experts") else f"{owner}.weight")
    return names


@pytest.mark.parametrize("asked", ["all", USUAL])
@pytest.mark.parametrize("kind", KINDS)
def test_experts_and_every_linear_layer_are_adapted(
    kind: str, asked: str | list[str], data: Path, tmp_path: Path, run: Run
) -> None:
    model = moe(tmp_path / "model", kind)
    base = AutoModelForCausalLM.from_pretrained(model)
    every = {
        name for name, p in base.named_parameters()
        if p.dim() == 3 or isinstance(base.get_submodule(name.rpartition(".")[0]), torch.nn.Linear)
    } - {"lm_head.weight"}  # fmt: skip
    file = config(
        tmp_path / "run.json", model, lora={"r": 4, "target_modules": asked}, learning_rate=1e-2,
        save_strategy="steps", save_steps=4,
    )  # fmt: skip
    said = train(data, file).stderr
    assert "note: the experts are adapted: experts.gate_up_proj, experts.down_proj" in " ".join(said.split())
    checkpoint = tmp_path / "run" / "checkpoint-4"
    assert adapted(checkpoint) == every
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)  # 0 at the start
    run("export", checkpoint, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        plain = peft.PeftModel.from_pretrained(base, checkpoint).eval()(input_ids=ids).logits
        assert (merged(ids).logits - plain).abs().max() < 1e-5
        assert (AutoModelForCausalLM.from_pretrained(model)(ids).logits - plain).abs().max() > 1e-3


@pytest.mark.parametrize("stage", [2, 3])
def test_the_experts_are_trained_alike_by_two_processes_and_after_a_resume(
    stage: int, data: Path, tmp_path: Path
) -> None:
    model = moe(tmp_path / "model", "glm4_moe")
    one = config(tmp_path / "one.json", model, zero_stage=0)
    train(data, one)
    split = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}  # also small ones
    more: dict[str, Any] = {"per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 2}
    more |= {"deepspeed": {"zero_optimization": split, "bf16": {"enabled": "auto"}}}
    two = config(tmp_path / "two.json", model, gradient_checkpointing=True, **more)
    run_to_end(2, data, two)
    assert losses(two) == pytest.approx(losses(one), abs=2e-5)
    whole = losses(two)
    run_to_end(2, data, two, "--resume", 2)
    assert losses(two) == whole


def test_experts_that_peft_cannot_adapt_are_named(data: Path, tmp_path: Path) -> None:
    model = moe(tmp_path / "model", "qwen3_moe")
    dropout = config(tmp_path / "run.json", model, lora={"r": 4, "lora_dropout": 0.1})
    said = train(data, dropout).stderr
    left = "experts.gate_up_proj, experts.down_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj"
    assert f"note: not adapted: {left}; PEFT adapts parameters only without lora.lora_dropout" in said
    only = config(tmp_path / "only.json", model, lora={"target_modules": ["gate_proj", "up_proj"], "use_dora": True})
    refused = train(data, only, "--dry-run", code=2).stderr
    assert "only.json#/lora/target_modules" in refused
    assert "not adapted: experts.gate_up_proj" in refused
    assert "lora.use_dora" in refused


@pytest.mark.parametrize("bits", [4, 8])
def test_experts_are_adapted_beside_quantized_layers(bits: int, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = moe(tmp_path / "model", "qwen3_moe")
    file = config(
        tmp_path / "run.json", model, quantization_bit=bits, lora={"r": 4, "target_modules": USUAL},
        save_strategy="steps", save_steps=4,
    )  # fmt: skip
    said = train(data, file).stderr
    assert "experts.down_proj, as parameters, with rank 4 for each expert (gate and up together), and not quant" in said
    assert "note: not adapted: mlp.gate_proj, mlp.up_proj, mlp.down_proj; quantized layers" in said
    found = adapted(tmp_path / "run" / "checkpoint-4")
    assert {name.split(".", 3)[-1] for name in found if "experts" in name or "mlp" in name} == {
        "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
    }  # fmt: skip


def test_a_router_is_adapted_by_its_name(data: Path, tmp_path: Path) -> None:
    model = moe(tmp_path / "model", "olmoe")
    file = config(
        tmp_path / "run.json", model, lora={"r": 4, "target_modules": ["q_proj", "gate"]}, max_steps=1,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    train(data, file)
    found = {name.split(".", 3)[-1] for name in adapted(tmp_path / "run" / "checkpoint-1")}
    assert found == {"self_attn.q_proj.weight", "mlp.gate.weight"}


@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("kind", ["olmoe", "mixtral"])
def test_the_balancing_loss_is_trained_as_the_mean_over_the_passes(kind: str, passes: int, tmp_path: Path) -> None:
    model = moe(tmp_path / "model", kind)
    four = compile_set(tmp_path / "set", write(tmp_path / "four.jsonl", rows(4, 1)))
    norms = {}
    for share in (0.0, 5.0):
        file = config(
            tmp_path / f"{share}.json", model, tuning="full", lora=None, max_steps=1, router_aux_loss_coef=share,
            per_device_train_batch_size=4 // passes, gradient_accumulation_steps=passes,
        )  # fmt: skip
        train(four, file)
        norms[share] = records(file)[0]["grad_norm"]

    plain = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    examples = set_rows(four)
    longest = max(len(one["input_ids"]) for one in examples)
    weights = sum(sum(weights_of(one)[1:]) for one in examples)
    loss = torch.zeros(())
    groups = [examples] if passes == 1 else [[one] for one in examples]
    for group in groups:
        width = longest if passes == 1 else len(group[0]["input_ids"])
        ids = torch.tensor([one["input_ids"] + [0] * (width - len(one["input_ids"])) for one in group])
        mask = torch.tensor([[1] * len(one["input_ids"]) + [0] * (width - len(one["input_ids"])) for one in group])
        said = plain(input_ids=ids, attention_mask=mask, output_router_logits=True)
        for i, one in enumerate(group):
            logs = torch.log_softmax(said.logits[i].float(), -1)
            for place, (token, weight) in enumerate(zip(one["input_ids"], weights_of(one), strict=True)):
                if weight and place:
                    loss = loss - weight * logs[place - 1, token] / weights
        loss = loss + 5.0 * said.aux_loss / passes
    loss.backward()
    expected = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm()
    assert norms[5.0] == pytest.approx(float(expected), rel=1e-4)
    assert norms[5.0] != pytest.approx(norms[0.0], rel=1e-2)


def test_a_model_without_a_balancing_loss_is_named(data: Path, tmp_path: Path) -> None:
    model = moe(tmp_path / "model", "glm4_moe")
    said = train(data, config(tmp_path / "run.json", model, router_aux_loss_coef=0.01), code=2).stderr
    assert "run.json#/router_aux_loss_coef: Glm4MoeForCausalLM has no balancing loss" in said
