"""The estimate of memory, against tensors counted from outside, and the page of settings against the estimate."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.support import machines
from tests.support.machines import PAGE
from tests.support.peak import Peak
from tests.support.trained import compile_set, config, losses, rows, save_model, train, write
from trainer import device
from trainer import train as running
from trainer.config import load as configs
from trainer.models.tune import count
from trainer.run import estimate, plan, report
from trainer.run.estimate import ModelShape, Use

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
OFF = 0.2
"""By how much of what was counted an estimate may be off."""


# -- against runs and passes --


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("estimate")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A model whose activations weigh more than its weights."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return save_model(folder / "model", hidden_size=128, intermediate_size=352, num_hidden_layers=6, **heads)


@pytest.fixture(scope="module")
def packs(folder: Path) -> Path:
    return compile_set(folder / "shards", write(folder / "rows.jsonl", rows(600, 3)), "--pack", 1024)


FULL_RUN = {"tuning": "full", "lora": None, "per_device_train_batch_size": 1, "max_steps": 2}
"""AdamW has its state from the second step on."""


@pytest.mark.parametrize(
    "settings",
    [
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"bf16": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 2, **FULL_RUN},
    ],
    ids=str,
)
def test_a_run_holds_about_as_much_as_its_dry_run_says(
    tmp_path: Path, model: Path, packs: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Counted are the tensors of a whole `cli train`, from its first step on; loading has a peak of its own."""
    run = config(tmp_path / "run.json", model, **{"per_device_train_batch_size": 1, "max_steps": 1} | settings)
    memory = json.loads(train(packs, run, "--dry-run", "--json").stdout)["memory"]
    assert memory["all"] == pytest.approx(sum(memory.values()) - memory["all"], abs=9)
    peak, steps = Peak(), running._Run._train

    def counted(self: Any, loader: Any) -> int:
        peak.begin()
        return steps(self, loader)

    monkeypatch.setattr(running._Run, "_train", counted)
    with peak:
        train(packs, run)
    assert memory["all"] == pytest.approx(peak.most, rel=OFF)


def without_memory(model: nn.Module) -> None:
    """Give a model on the meta device tensors in bf16 that have a place but no memory, under FakeTensorMode."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                new = nn.Parameter(torch.empty(old.shape, dtype=torch.bfloat16), old.requires_grad)
                module._parameters[name] = made.setdefault(id(old), new)
        for name, old in module._buffers.items():
            module._buffers[name] = None if old is None else torch.empty(old.shape, dtype=old.dtype)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="none")


@pytest.mark.parametrize("layers", [4, pytest.param(28, marks=pytest.mark.slow)])
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_a_pass_of_a_model_of_7b_holds_about_as_much_as_estimated(layers: int, recomputed: bool) -> None:
    """Qwen2.5-7B with LoRA on one pack of 4,096 tokens, by tensors without memory."""
    config, tokens = machines.configuration("7B"), 4096
    config = Qwen2Config(**{**config.to_dict(), "num_hidden_layers": layers, "layer_types": None})
    with torch.device("meta"):
        model: Any = Qwen2ForCausalLM(config)
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        model = machines.adapted(model, 8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_memory(model)
        ids = torch.zeros(tokens, dtype=torch.long)
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
        with Peak() as peak:
            for parameter in model.parameters():
                parameter.view(-1)  # seen
            logits = model.train()(input_ids=ids[None], attention_mask=mask, use_cache=False).logits.flatten(0, 1)
            parts = zip(torch.split(logits, estimate.CHUNK), torch.split(ids, estimate.CHUNK), strict=True)
            del logits
            losses = [checkpoint(cross_entropy, *part, use_reentrant=False) for part in parts]
            torch.cat(losses).sum().backward()  # type: ignore[no-untyped-call]
    total, trained = count(model)
    use = Use(total, trained, tokens, tokens, zero_stage=0, accumulates=False, recomputed=int(recomputed), masked=True)
    found = estimate.estimate(ModelShape.of(config), use)
    most = peak.most + found["optimizer"]  # there was none
    assert found["all"] == pytest.approx(most, rel=OFF)
    assert found["all"] - found["weights"] == pytest.approx(most - found["weights"], rel=OFF)


# -- laws --

QWEN_7B = ModelShape(28, 3584, 18944, 28, 4, 128, 152064)
LORA = Use(7_656_000_000, 40_000_000, tokens=4096, longest=4096)
FULL = replace(LORA, trained=7_615_000_000, tuning="full", recomputed=1)


def of(use: Use, **settings: Any) -> dict[str, int]:
    return estimate.estimate(QWEN_7B, replace(use, **settings))


def test_what_processes_divide_is_divided() -> None:
    one, eight = of(FULL), of(FULL, processes=8)
    assert eight["optimizer"] == one["optimizer"] // 8
    assert eight["weights"] == one["weights"]
    assert of(FULL, processes=8, zero_stage=3)["weights"] == one["weights"] // 8
    assert of(FULL, processes=8, zero_stage=0)["optimizer"] == one["optimizer"]


@pytest.mark.parametrize(
    ("lowered", "part"),
    [
        ({"recomputed": 1}, "activations"),
        ({"activations_on_host": True}, "activations"),
        ({"whole_logits": False, "recomputed": 1}, "logits"),
        ({"trained_tokens": 100, "recomputed": 1}, "logits"),
        ({"quantized": 6_500_000_000, "bits": 4.5}, "weights"),
        ({"state_bytes": 2}, "optimizer"),
        ({"tokens": 2048}, "activations"),
    ],
    ids=str,
)
def test_each_way_to_need_less_lowers_its_part_and_all(lowered: dict[str, Any], part: str) -> None:
    before = of(LORA, recomputed=int("recomputed" in lowered and part == "logits"))
    after = of(LORA, **lowered)
    assert after[part] < before[part]
    assert after["all"] < before["all"]


def test_a_layer_keeps_63_times_its_hidden_size_as_the_page_says() -> None:
    """Two norms in fp32 with their outputs and products, q, k, v, the output, and four of the feed-forward part."""
    h, i, q, k = 3584, 18944, 3584, 512
    tokens = of(FULL, trained=0, recomputed=0, tokens=1, longest=1)["activations"] - (4 + 2 + 2) * h
    assert tokens == 28 * (2 * 4 * h + 2 * 2 * h + 2 * 2 * h + 2 * (q + 2 * k + q) + 4 * 28 + 4 * 2 * i)
    assert round(tokens / 28 / h) == 63
    assert "63 x hidden bytes a token for Qwen2.5-7B" in PAGE.read_text("utf-8")


def test_a_mask_costs_a_square_for_each_layer_that_keeps_it() -> None:
    kept, recomputed = of(LORA, masked=True), of(LORA, masked=True, recomputed=1)
    assert kept["attention"] == 4096**2 * (1 + 2 * 28)
    assert recomputed["attention"] <= 4096**2 * 3


# -- the dry run --


class Small(device.Device):
    """A device with a megabyte; this machine has none that has memory of its own."""

    def memory(self) -> int | None:
        return 2**20


def test_a_dry_run_that_would_not_fit_says_what_to_lower(tmp_path: Path, model: Path, packs: Path) -> None:
    run = config(tmp_path / "run.json", model, per_device_train_batch_size=2)
    made = plan.make(str(packs), configs.load(run), None, device.find(use_cpu=True))
    assert not [line for line in report.facts(made)["lints"] if "GiB" in line]
    found = made.device
    small = Small("cpu", "a small card", found.rank, found.world, found.local_rank, found.backend)
    (said,) = (line for line in report.facts(replace(made, device=small))["lints"] if "GiB" in line)
    assert re.match(r"about \d\.\d GiB are needed, and a small card has 0\.0\. ", said)
    assert "Lower per_device_train_batch_size and raise gradient_accumulation_steps as much" in said
    assert "Set gradient_checkpointing: true" in said


# -- the page --


def test_the_models_of_the_page_have_the_parameters_that_it_says() -> None:
    models = [row for _, row in machines.found("layers", PAGE.read_text("utf-8"))]
    assert len(models) >= 6
    assert {row["model"]: machines.counted(row["model"])[0] for row in models} == {
        row["model"]: machines.number(row["parameters"]) for row in models
    }


def test_every_figure_of_the_page_is_the_estimate() -> None:
    text = PAGE.read_text("utf-8")
    settings = machines.found("zero_stage", text)
    assert len(settings) >= 20
    for heading, row in settings:
        said = machines.figures(heading, row, text)
        assert {name: value for name, value in said.items() if name in row} == {
            name: row[name] for name in row if name in said
        }, (heading, row["model"], "python -m tests.support.machines writes the figures")
        assert all(said[part] == "0.0" for part in machines.PARTS if part not in row), (heading, row["model"])
        size = float(row["all"]) + float(row["left"])
        assert float(row["left"]) >= size / 10, "what the estimate does not count takes of what is left"
    assert machines.rewrite(text) == text


def test_the_deepspeed_file_of_the_page_is_accepted_and_runs(tmp_path: Path, model: Path, packs: Path) -> None:
    (given,) = re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "offload.json").write_text(given)
    run = config(tmp_path / "run.json", model, deepspeed="offload.json", **(FULL_RUN | {"max_steps": 1}))
    memory = json.loads(train(packs, run, "--dry-run", "--json").stdout)["memory"]
    assert memory["optimizer"] == 0
    train(packs, run)
    assert 8 < losses(run)[1] < 10, "about the logarithm of the vocabulary"
