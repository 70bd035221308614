"""Settings that change what is learnt: smoothed labels, noise, how adapters begin and at which rates they learn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.trainer_pt_utils import LabelSmoother

from cli import main
from tests.support.agent import seal
from tests.support.command import runner
from tests.support.trained import compile_set, config, losses, records, rows, save_model, small_set, train, write
from trainer.data import stream

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
Make = Callable[..., Path]
PLUS = {"loraplus_lr_ratio": 16, "loraplus_lr_embedding": 1e-5}
ALL_ROWS = {"per_device_train_batch_size": 64, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("effects")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_model(folder / "model", scale=4)


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    return small_set(folder / "data", count=8)


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Make:
    def write_config(name: str = "run", **settings: Any) -> Path:
        return config(tmp_path / f"{name}.json", model, **(ALL_ROWS | settings))

    return write_config


def sums(model: Any, data: Path, smoothing: float = 0.0, split: str = "train") -> tuple[float, float]:
    """(sum of weighted losses, sum of weights) of a split, row by row, by the formula."""
    total = weight = 0.0
    opened = stream.TrainingSet.open(str(data)).split(split)
    for number in range(len(opened)):
        row = opened.row(number)
        ids = torch.tensor(row["input_ids"]).long()
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0], -1)[:-1]
        own = -log_probs.gather(1, ids[1:, None])[:, 0]
        token = (1 - smoothing) * own - smoothing * log_probs.mean(1)
        given = row["loss_weights"]
        weights = torch.tensor(row["labels"] != -100).float() if given is None else torch.tensor(given)
        total, weight = total + float((token * weights[1:]).sum()), weight + float(weights[1:].sum())
    return total, weight


def loss_of(model: Any, data: Path, smoothing: float = 0.0, split: str = "train") -> float:
    total, weight = sums(model, data, smoothing, split)
    return total / weight


def plain(model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(model)


def adapted(model: Path, checkpoint: Path) -> Any:
    return peft.PeftModel.from_pretrained(plain(model), checkpoint)


def folder_of(run: Path, step: int) -> Path:
    return run.with_suffix("") / f"checkpoint-{step}"


# -- smoothed labels --


def test_smoothed_labels_count_all_tokens_alike_for_their_part(model: Path, data: Path, make: Make) -> None:
    run = make(max_steps=1, label_smoothing_factor=0.2)
    train(data, run)
    assert losses(run)[1] == pytest.approx(loss_of(plain(model), data, 0.2), rel=1e-5)
    assert losses(run)[1] != pytest.approx(loss_of(plain(model), data), rel=1e-3)


def test_without_weights_that_is_the_loss_of_transformers(model: Path, tmp_path: Path, make: Make) -> None:
    chats = [
        {"messages": [{k: v for k, v in m.items() if k != "loss_scale"} for m in row["messages"]]} for row in rows(5, 1)
    ]
    data = compile_set(tmp_path / "set", write(tmp_path / "plain.jsonl", chats))
    run = make(max_steps=1, label_smoothing_factor=0.1)
    train(data, run)
    opened = stream.TrainingSet.open(str(data)).split("train")
    smoother, total, count = LabelSmoother(epsilon=0.1), 0.0, 0
    for number in range(len(opened)):
        row = opened.row(number)
        labels = torch.tensor(row["labels"])[None].long()
        with torch.no_grad():
            output = plain(model)(input_ids=torch.tensor(row["input_ids"])[None].long())
        trained = int((labels[:, 1:] != -100).sum())
        total, count = total + float(smoother(output, labels, shift_labels=True)) * trained, count + trained
    assert losses(run)[1] == pytest.approx(total / count, rel=1e-5)


def test_preferences_are_not_smoothed_silently(tmp_path: Path, model: Path) -> None:
    pairs = [{"prompt": "red", "chosen": "green", "rejected": "blue"}] * 4
    preferences = compile_set(tmp_path / "pairs", write(tmp_path / "pairs.jsonl", pairs))
    said = train(preferences, config(tmp_path / "run.json", model, label_smoothing_factor=0.1), code=2).stderr
    assert "#/label_smoothing_factor: it has no effect on the objective dpo" in said


# -- noise --


def test_noise_is_for_training_alone_and_the_same_again(model: Path, data: Path, make: Make) -> None:
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 1}
    quiet, noisy, again = (
        make("quiet", **settings),
        make("noisy", neftune_noise_alpha=10, **settings),
        make("again", neftune_noise_alpha=10, **settings),
    )
    for run in (quiet, noisy, again):
        train(data, run)
    assert losses(noisy) == losses(again)
    assert abs(losses(noisy)[1] - losses(quiet)[1]) > 1e-4
    (evaluated,) = [one["eval_loss"] for one in records(noisy) if "eval_loss" in one]
    assert evaluated == pytest.approx(loss_of(adapted(model, folder_of(noisy, 2)), data, split="val"), rel=1e-4)
    before = losses(noisy)
    train(data, noisy, "--resume", 1)
    assert losses(noisy) == before


def test_the_noise_is_as_large_as_the_paper_says(model: Path) -> None:
    """Uniform between -alpha / sqrt(tokens x width) and that, for each number of an embedding."""
    from trainer.models import noise

    found = plain(model)
    embeddings, ids = found.get_input_embeddings(), torch.arange(40)[None]
    clean = embeddings(ids)
    noise.add(found, 5.0)
    limit = 5.0 / (40 * clean.shape[-1]) ** 0.5
    found.train()
    added = embeddings(ids) - clean
    assert 0.95 * limit < added.abs().max() <= limit
    assert added.mean().abs() < limit / 10
    found.eval()
    assert torch.equal(embeddings(ids), clean)


# -- LoRA+ --


@pytest.mark.parametrize("stage", [2, 3])
def test_b_learns_so_much_faster_than_a(data: Path, make: Make, stage: int) -> None:
    """AdamW's first step moves a weight by its rate. A has no gradient while B is 0, so its first is step 2 of AdamW,
    which moves it by (0.1 / 0.19) / sqrt(0.001 / 0.001999) of its rate.
    """
    run = make(
        max_steps=2, learning_rate=1e-4, save_strategy="steps", save_steps=1, zero_stage=stage,
        lora={"r": 4, "target_modules": ["q_proj", "embeddings"]} | PLUS,
    )  # fmt: skip
    train(data, run)
    first, second = (load_file(folder_of(run, step) / "adapter_model.safetensors") for step in (1, 2))
    b = torch.cat([value.flatten() for name, value in first.items() if "lora_B" in name])
    assert b.abs().max() == pytest.approx(16e-4, rel=1e-2)
    a = torch.cat([(second[name] - value).flatten() for name, value in first.items() if "lora_A" in name])
    assert a.abs().max() == pytest.approx(1e-4 * (0.1 / 0.19) / (0.001 / 0.001999) ** 0.5, rel=1e-2)
    e = torch.cat([value.flatten() for name, value in first.items() if "lora_embedding_A" in name])
    assert e.abs().max() == pytest.approx(1e-5, rel=1e-2)


# -- how adapters begin --


@pytest.mark.parametrize("begin", ["gaussian", "olora", "pissa", "pissa_niter_4"])
def test_every_beginning_is_the_model_itself_and_its_checkpoint_fits_the_unchanged_model(
    model: Path, data: Path, make: Make, tmp_path: Path, begin: str
) -> None:
    lora = {"r": 4, "init_lora_weights": begin, "use_rslora": begin == "pissa"}
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    run = make(lora=lora, **settings)
    train(data, run)
    found = losses(run)
    assert found[1] == pytest.approx(loss_of(plain(model), data), rel=1e-5)
    (evaluated,) = [one["eval_loss"] for one in records(run) if "eval_loss" in one]
    assert evaluated == pytest.approx(loss_of(adapted(model, folder_of(run, 3)), data, split="val"), rel=1e-5)
    assert abs(evaluated - loss_of(plain(model), data, split="val")) > 1e-3
    train(data, run, "--resume", 2)
    assert losses(run) == found
    done = runner().invoke(main, ["export", str(folder_of(run, 3)), str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    assert evaluated == pytest.approx(loss_of(plain(tmp_path / "out"), data, split="val"), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"zero_stage": 3}, "ZeRO-3 splits them between processes"),
        ({"quantization_bit": 4}, "those of 4 bits cannot be changed so"),
        ({"lora": {"init_lora_weights": "pissa", "use_dora": True}}, "use_dora keeps the lengths"),
    ],
)
def test_a_beginning_that_would_be_wrong_is_refused(
    data: Path, make: Make, settings: dict[str, Any], said: str
) -> None:
    run = make(**({"lora": {"init_lora_weights": "pissa"}} | settings))
    message = train(data, run, "--dry-run", code=2).stderr
    assert said in message and "#/lora/init_lora_weights" in message


def test_the_reference_of_preferences_is_the_whole_model(tmp_path: Path, model: Path) -> None:
    pairs = [{"prompt": "red", "chosen": "green", "rejected": "blue"}] * 4
    preferences = compile_set(tmp_path / "pairs", write(tmp_path / "pairs.jsonl", pairs))
    run = config(tmp_path / "run.json", model, lora={"init_lora_weights": "olora"})
    assert "which is the reference of the objective" in train(preferences, run, "--dry-run", code=2).stderr


def test_a_beginning_that_comes_out_otherwise_is_not_resumed(data: Path, make: Make) -> None:
    """As on a device that takes another part out of the weights: the adapter would be added to the wrong rest."""
    lora = {"r": 4, "init_lora_weights": "pissa"}
    run = make(max_steps=2, save_strategy="steps", save_steps=1, lora=lora)
    train(data, run)
    path = folder_of(run, 1) / "adapter_model.safetensors"
    weights = load_file(path)
    weights[min(weights)][4:] *= 1.5
    save_file(weights, path)
    seal(path.parent)
    assert "began otherwise" in train(data, run, "--resume", 1, code=4).stderr


@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm"])
def test_weights_that_others_have_quantized_are_refused_by_name(
    model: Path, data: Path, tmp_path: Path, method: str
) -> None:
    other = shutil.copytree(model, tmp_path / "model")
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps(values | {"quantization_config": {"quant_method": method, "bits": 4}})
    )
    said = train(data, config(tmp_path / "run.json", other), "--dry-run", code=2).stderr
    assert f"#/quantization_config: its weights are stored by {method}" in said


# -- steps as parts of a run --


def test_steps_below_one_are_parts_of_the_run(data: Path, make: Make) -> None:
    run = make(max_steps=4, save_strategy="steps", save_steps=0.3, eval_strategy="steps", eval_steps=0.5)
    train(data, run)
    saved = {int(path.name.rpartition("-")[2]) for path in run.with_suffix("").glob("checkpoint-*")}
    assert saved == {2, 4}  # every ceil(0.3 x 4)
    assert [one["step"] for one in records(run) if "eval_loss" in one] == [2, 4]
