"""A run on one process: what is trained, what is saved, what is refused. Models have random weights and two layers."""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cli import main
from tests.support.command import runner
from tests.support.documents import FILES, ZERO
from tests.support.trained import (
    compile_set,
    config,
    losses,
    outside,
    records,
    save_model,
    small_set,
    train,
    write,
)
from trainer import progress
from trainer.data import stream
from trainer.run import checkpoints
from trainer.run.checkpoints import COMPLETE
from trainer.run.output import locked

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
Make = Callable[..., Path]
OFFLOAD = Path(__file__).parent / "data" / "train" / "ds_zero_3_offload.json"
PROJECTED = {"num_virtual_tokens": 4, "prefix_projection": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_model(folder / "model")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    return small_set(folder / "data")


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    return small_set(folder / "packed", "--pack", 64)


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Make:
    """Write a configuration for the model; several get names of their own."""

    def write_config(name: str = "run", **settings: Any) -> Path:
        return config(tmp_path / f"{name}.json", settings.pop("model", model), **settings)

    return write_config


def checkpoint(run: Path, step: int) -> Path:
    return run.with_suffix("") / f"checkpoint-{step}"


# -- what is trained --


def loss_of(model: Any, data: Path, split: str = "train") -> tuple[float, dict[str, float]]:
    """Return the weighted loss of a split, in all and by dataset: row by row, with transformers alone."""
    sums: dict[str, list[float]] = {}
    rows = stream.TrainingSet.open(str(data)).split(split)
    for number in range(len(rows)):
        row = rows.row(number)
        ids = torch.tensor(row["input_ids"]).long()
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
        token = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        given = row["loss_weights"]
        weights = torch.tensor(row["labels"] != -100).float() if given is None else torch.tensor(given)
        one = sums.setdefault(row["dataset"], [0.0, 0.0])
        one[0] += float((token * weights[1:]).sum())
        one[1] += float(weights[1:].sum())
    total = sum(one[0] for one in sums.values()) / sum(one[1] for one in sums.values())
    return total, {name: one[0] / one[1] for name, one in sums.items()}


def test_the_loss_is_the_weighted_mean_of_all_rows(model: Path, data: Path, make: Make) -> None:
    run = make(max_steps=1, per_device_train_batch_size=64)
    train(data, run)
    assert losses(run)[1] == pytest.approx(loss_of(transformers.AutoModelForCausalLM.from_pretrained(model), data)[0])


def test_packs_are_trained_as_their_rows_are(data: Path, packed: Path, make: Make) -> None:
    """One step of everything, then the next: after an update by the same gradient the losses are the same again."""
    alone = make("alone", max_steps=3, per_device_train_batch_size=64)
    in_packs = make("packs", max_steps=3, per_device_train_batch_size=64)
    train(data, alone)
    said = train(packed, in_packs).stderr
    assert "packs: the losses equal those of their sequences alone" in said
    assert losses(in_packs) == pytest.approx(losses(alone), abs=1e-5)
    assert losses(alone)[3] < losses(alone)[1]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_accumulation_and_the_stage_of_zero_change_nothing(data: Path, make: Make, stage: int) -> None:
    """Also in the last step of an epoch, of 2 rows, where half of the passes have none."""
    settings = {"max_steps": 5, "zero_stage": stage}
    whole, parts = (
        make("whole", per_device_train_batch_size=8, **settings),
        make("parts", gradient_accumulation_steps=4, **settings),
    )
    train(data, whole)
    train(data, parts)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    if stage:
        other = make("other", per_device_train_batch_size=8, max_steps=5, zero_stage=0)
        train(data, other)
        assert losses(whole) == pytest.approx(losses(other), abs=1e-5)


def test_the_loss_falls_on_the_embedded_samples(tmp_path: Path, make: Make) -> None:
    who = ("--name", "小卡,Kaka", "--author", "陶,Tao")
    data = compile_set(tmp_path / "shards", "--self-cognition", 30, *who)
    run = make(tuning="full", lora=None, max_steps=30, per_device_train_batch_size=8, learning_rate=1e-2)
    train(data, run)
    found = losses(run)
    assert found[30] < found[1] - 3


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": {"target_modules": ["q_proj", "v_proj"]}},
        {"lora": {"target_modules": ["all", "embeddings"]}},
        {"lora": {"target_modules": "default", "modules_to_save": ["lm_head"], "use_rslora": True}},
        {"lora": {"use_dora": True}, "bf16": True},
        {"quantization_bit": 4},
        {"quantization_bit": 8, "bf16": True},
        {"tuning": "full", "lora": None, "bf16": True, "zero_stage": 3},
        {"tuning": "full", "lora": None, "freeze": ["embed_tokens", "layers.0"]},
        {"tuning": "full", "lora": None, "trainable": ["mlp"]},
        {"tuning": "prefix", "lora": None, "prefix": {"num_virtual_tokens": 4}},
        {"tuning": "prefix", "lora": None, "prefix": PROJECTED, "zero_stage": 3},
    ],
    ids=str,
)  # fmt: skip
def test_only_what_is_asked_for_is_trained(data: Path, model: Path, make: Make, settings: dict[str, Any]) -> None:
    run = make(max_steps=2, **settings)
    train(data, run)
    saved = checkpoint(run, 2)
    if settings.get("tuning") != "full":
        names = set(load_file(saved / "adapter_model.safetensors"))
        asked = settings.get("lora") or {}
        targets = asked.get("target_modules", "all") if settings.get("tuning") != "prefix" else ()
        assert any("q_proj" in name for name in names) == (settings.get("tuning") != "prefix")
        assert any("up_proj" in name for name in names) == ("all" in targets)
        assert any("embed_tokens" in name for name in names) == ("embeddings" in targets)
        assert any("lm_head" in name for name in names) == ("lm_head" in asked.get("modules_to_save", ()))
        loaded = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(model), saved)
        assert not set(load_file(saved / "adapter_model.safetensors")) - set(peft.get_peft_model_state_dict(loaded))
        return
    before, after = load_file(model / "model.safetensors"), load_file(saved / "model.safetensors")
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name].bfloat16(), after[name].bfloat16())}
    assert changed
    for name in changed:
        assert not any(pattern in name for pattern in settings.get("freeze", ()))
        assert not settings.get("trainable") or "mlp" in name


@pytest.mark.parametrize(("bits", "tuning"), [(4, "lora"), (8, "lora"), (4, "prefix")])
def test_an_evaluation_in_between_changes_nothing_of_quantized_weights(
    data: Path, make: Make, monkeypatch: pytest.MonkeyPatch, bits: int, tuning: str
) -> None:
    """As on a CPU with AVX512-BF16, where bitsandbytes packs weights of 4 bits for evaluations."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    settings: dict[str, Any] = {"quantization_bit": bits, "learning_rate": 1e-2, "tuning": tuning}
    settings |= {"lora": None, "prefix": {"num_virtual_tokens": 4}} if tuning == "prefix" else {}
    plain = make("plain", **settings)
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "predict_with_generate": True}
    evaluated = make("evaluated", generation_max_new_tokens=2, **settings)
    train(data, plain)
    train(data, evaluated)
    assert losses(evaluated) == losses(plain)
    assert len(losses(plain)) == 4


def test_recomputed_layers_give_the_same_losses(packed: Path, make: Make) -> None:
    plain, recomputed = make("plain", bf16=False), make("recomputed", bf16=False, gradient_checkpointing=True)
    train(packed, plain)
    train(packed, recomputed)
    assert losses(recomputed) == pytest.approx(losses(plain), abs=1e-5)


def test_the_learning_rate_is_that_of_transformers(data: Path, make: Make) -> None:
    run = make(max_steps=8, lr_scheduler_type="cosine", warmup_ratio=0.25, learning_rate=1e-3)
    train(data, run)
    found = [record["learning_rate"] for record in records(run)]
    after = [0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert found == pytest.approx([1e-3 * factor for factor in (0, 0.5, *after)])


def test_a_glm_trains_too(data: Path, tmp_path: Path, make: Make) -> None:
    glm = save_model(tmp_path / "glm", "glm", head_dim=8, pad_token_id=0)
    run = make(model=glm, max_steps=3, learning_rate=1e-2)
    train(data, run)
    assert losses(run)[3] < losses(run)[1]


def test_a_piped_run_says_every_few_seconds_what_it_is_doing(data: Path, make: Make) -> None:
    """Every 8 seconds by default, from the first import to the last step; here at once."""
    assert progress.EVERY <= 10
    run = make(max_steps=30, logging_steps=1000, eval_strategy="steps", eval_steps=15)
    code = "import sys, trainer.progress as p; p.EVERY = 0.02; from cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "train", str(data), str(run)],
        capture_output=True, text=True, timeout=300, check=False, env=outside(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in (
        r"importing libraries: 0:\d\d", r"starting DeepSpeed: 0:\d\d", r"loading the model: 0:\d\d",
        r"training: \d+ of 30 steps, [\d.]+ steps/s, 0:\d\d left", r"evaluating: \d of \d+ batches, .*",
    ):  # fmt: skip
        assert re.search(rf"^{line}$", done.stderr, re.MULTILINE), done.stderr


# -- pairs --

PAIRS = [
    {"instruction": f"say {word}", "chosen": f"{word} it is", "rejected": f"not {word} at all"}
    for word in ("red", "blue", "stone", "river", "moon")
]
JUDGED = [
    {"instruction": f"say {word}", "output": f"{word} it is", "kto_tag": i % 2 == 0}
    for i, word in enumerate(("red", "blue", "stone", "river", "moon"))
]


@pytest.mark.parametrize(("rows", "first"), [(PAIRS, math.log(2)), (JUDGED, 0.5)], ids=["dpo", "kto"])
def test_preferences_start_at_indifference_and_accumulation_changes_nothing(
    tmp_path: Path, make: Make, rows: list[Any], first: float
) -> None:
    data = compile_set(tmp_path / "set", write(tmp_path / "rows.jsonl", rows))
    whole = make("whole", per_device_train_batch_size=4, learning_rate=1e-2)
    parts = make("parts", per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2)
    train(data, whole)
    train(data, parts)
    assert losses(whole)[1] == pytest.approx(first, abs=1e-5)
    assert losses(whole)[4] < first
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


# -- checkpoints --


@pytest.mark.parametrize(
    "settings", [{"tuning": "full", "lora": None, "bf16": True}, {"lora": {"lora_dropout": 0.2}}], ids=str
)
def test_a_resumed_run_has_the_losses_of_the_whole_one(data: Path, make: Make, settings: dict[str, Any]) -> None:
    """Dropout included, and by --resume of a number, then of the last."""
    settings = settings | {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole, parted = make("whole", **settings), make("parted", **settings)
    train(data, whole)
    shutil.copytree(whole.with_suffix(""), parted.with_suffix(""))
    train(data, parted, "--resume", 2)
    assert records(parted) == records(whole)
    shutil.rmtree(checkpoint(parted, 6))
    with (parted.with_suffix("") / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')  # a killed run's last line
    assert "2 steps" in train(data, parted, "--resume", "yes").stdout
    assert records(parted) == records(whole)
    assert "nothing left to do" in train(data, parted, "--resume", "yes").stdout


def test_plain_peft_loads_an_adapter_from_anywhere(
    data: Path, model: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run was given relative paths; the README says how."""
    shutil.copytree(model, tmp_path / "model")
    shutil.copytree(data, tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    run = make(model=Path("model"), max_steps=1, save_strategy="steps", save_steps=1)
    train("set", run)
    monkeypatch.chdir("/")
    said = checkpoint(run, 1) / "README.md"
    assert "AutoPeftModelForCausalLM" in said.read_text()
    assert "Model Card for" not in said.read_text()
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(checkpoint(run, 1))
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    for name, weight in base.named_parameters():
        assert torch.equal(weight, dict(loaded.named_parameters())[_inside(name, loaded)])
    shown = runner().invoke(main, ["export", str(checkpoint(run, 1)), str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.stderr


def _inside(name: str, loaded: Any) -> str:
    """The name of a base model's parameter in one with adapters."""
    names = dict(loaded.named_parameters())
    path, _, last = f"base_model.model.{name}".rpartition(".")
    return f"{path}.{last}" if f"{path}.{last}" in names else f"{path}.base_layer.{last}"


CODE = """
from transformers import Qwen2Config, Qwen2ForCausalLM

class MineConfig(Qwen2Config):
    model_type = "mine"

class MineForCausalLM(Qwen2ForCausalLM):
    config_class = MineConfig
"""


def test_the_code_of_a_model_goes_with_its_weights(data: Path, model: Path, make: Make, tmp_path: Path) -> None:
    own = shutil.copytree(model, tmp_path / "model")
    (own / "mine.py").write_text(CODE, encoding="utf-8")
    classes = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    changed = {"auto_map": classes, "model_type": "mine", "architectures": ["MineForCausalLM"]}
    settings = json.loads((own / "config.json").read_text()) | changed
    (own / "config.json").write_text(json.dumps(settings))
    more: dict[str, Any] = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "trust_remote_code": True}
    full = make(model=own, tuning="full", lora=None, **more)
    train(data, full)
    assert (checkpoint(full, 1) / "mine.py").read_text(encoding="utf-8") == CODE
    exported = runner().invoke(main, ["export", str(checkpoint(full, 1)), str(tmp_path / "out")])
    assert exported.exit_code == 0, exported.stderr
    shutil.rmtree(own)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(loaded).__name__ == "MineForCausalLM"
    trained = load_file(checkpoint(full, 1) / "model.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in loaded.state_dict().items() if name in trained)


def test_a_resume_on_another_base_is_refused(data: Path, model: Path, make: Make, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "model")
    run = make(model=other, max_steps=2, save_strategy="steps", save_steps=1)
    train(data, run)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1.01
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    said = train(data, run, "--resume", 1, code=2).stderr
    assert "base_digest: " in said


@pytest.mark.parametrize(("tied", "stage"), [(False, 2), (True, 3)])
def test_a_checkpoint_is_a_model_with_where_it_came_from(
    tmp_path: Path, data: Path, make: Make, tied: bool, stage: int
) -> None:
    """Its weights give the losses that the run says, computed by transformers alone."""
    base = save_model(tmp_path / "base", tie_word_embeddings=tied)
    run = make(
        model=base,
        zero_stage=stage,
        tuning="full",
        lora=None,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        per_device_eval_batch_size=4,
    )
    train(data, run)
    saved = checkpoint(run, 3)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(saved)
    total, by_dataset = loss_of(loaded, data, "val")
    record = records(run)[-1]
    assert record["eval_loss"] == pytest.approx(total, abs=1e-5)
    assert record["eval_loss_by_dataset"] == pytest.approx(by_dataset, abs=1e-5)
    assert transformers.AutoTokenizer.from_pretrained(saved).decode([8001]) == "<|im_start|>"
    said = json.loads((saved / "run.json").read_text())
    assert said["provenance"]["datasets"] == ["plain", "other"]
    assert said["provenance"]["stops"] == ["<|im_end|>"]
    assert (said["step"], said["seed"], said["set"]) == (
        3,
        42,
        stream.TrainingSet.open(str(data)).manifest["content_digest"],
    )
    assert said["config"]["tuning"] == "full"


def test_an_adapter_is_the_trained_model(data: Path, packed: Path, model: Path, make: Make) -> None:
    """Packs are evaluated sequence by sequence: the same losses by dataset as of the unpacked split."""
    run = make(max_steps=3, learning_rate=1e-2, eval_strategy="steps", eval_steps=3, zero_stage=3)
    train(packed, run)
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    total, by_dataset = loss_of(peft.PeftModel.from_pretrained(base, checkpoint(run, 3)), data, "val")
    assert records(run)[-1]["eval_loss"] == pytest.approx(total, abs=1e-5)
    assert records(run)[-1]["eval_loss_by_dataset"] == pytest.approx(by_dataset, abs=1e-5)


def test_only_the_last_complete_checkpoints_are_kept_and_used(data: Path, make: Make) -> None:
    run = make(max_steps=6, save_strategy="steps", save_steps=1, save_total_limit=2)
    train(data, run)
    output = run.with_suffix("")
    assert [one.step for one in checkpoints.complete(output)] == [5, 6]
    assert len(list(output.glob("checkpoint-*"))) == 2
    (checkpoint(run, 6) / COMPLETE).unlink()
    said = train(data, run, "--resume", 6, code=2).stderr
    assert "it was never completed" in said
    assert "Complete ones: 5" in said
    assert "there is no such checkpoint" in train(data, run, "--resume", 3, code=2).stderr
    train(data, run, "--resume", "yes")
    assert [one.step for one in checkpoints.complete(output)] == [5, 6]


def test_after_an_earlier_checkpoint_the_ones_of_the_run_that_was_left_are_not_the_last(data: Path, make: Make) -> None:
    run = make(max_steps=6, save_strategy="steps", save_steps=2)
    train(data, run)
    again = ("--set", "learning_rate=1e-2")
    train(data, run, "--resume", 2, *again, "--set", "max_steps=4")
    assert [one.step for one in checkpoints.complete(run.with_suffix(""))] == [2, 6, 4]
    assert "2 steps" in train(data, run, "--resume", "yes", *again).stdout
    assert sorted(losses(run)) == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Give what lets no file grow beyond a size, as a full disk would; undone afterwards."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before_it(data: Path, make: Make, small_disk: Callable[[int], None]) -> None:
    run = make(tuning="full", lora=None, max_steps=4, save_strategy="steps", save_steps=2)
    train(data, run, "--set", "max_steps=2")
    small_disk(200_000)
    said = train(data, run, "--resume", "yes", code=5).stderr
    assert "checkpoint-4: the checkpoint could not be written" in said
    assert f"The last complete one is {checkpoint(run, 2)}" in said
    assert not checkpoint(run, 4).exists()
    small_disk(2**40)
    train(data, run, "--resume", "yes")
    assert sorted(losses(run)) == [1, 2, 3, 4]


def test_a_folder_with_checkpoints_is_not_overwritten_unasked(data: Path, make: Make) -> None:
    run = make(max_steps=1)
    train(data, run)
    said = train(data, run, code=2).stderr
    assert "it has checkpoints, the last of step 1" in said
    train(data, run, "--set", "overwrite_output_dir=true", "--set", "max_steps=2")
    assert sorted(losses(run)) == [1, 2]
    assert not checkpoint(run, 1).exists()


def test_a_resume_of_another_run_is_refused(data: Path, packed: Path, make: Make) -> None:
    run = make(max_steps=2)
    train(data, run, "--set", "max_steps=1")
    resumed = ("--resume", "yes")
    assert "made by another run:\n  set: " in train(packed, run, *resumed, code=2).stderr
    changed = ("seed=7", "bf16=true", "zero_stage=3", "lora.r=8", "lora.lora_alpha=64", "lora.use_rslora=true")
    said = train(data, run, *resumed, *(part for one in changed for part in ("--set", one)), code=2).stderr
    for line in (
        "seed: 42, now 7", "precision: fp32, now bf16", "zero_stage: 2, now 3", "lora.r: 4, now 8",
        "lora.lora_alpha: 8, now 64", "lora.use_rslora: False, now True",
    ):  # fmt: skip
        assert f"\n  {line}\n" in said
    full = ("--set", "tuning=full", "--set", "lora=null")
    assert "tuning: lora, now full" in train(data, run, *resumed, *full, code=2).stderr
    said = train(data, run, *resumed, "--set", "per_device_train_batch_size=3", code=2).stderr
    assert "its steps have 2 rows, which 1 processes cannot share in batches of 3" in said
    said = train(data, run, *resumed, "--set", "per_device_train_batch_size=1", "--set", "weight_decay=0.1").stderr
    assert "weight_decay is 0.1 from here on; until step 1 it was 0.0" in said
    assert "the run has 2 steps, 1 when it was saved: the learning rate of step 2 is 0.0005 instead of 0" in said
    assert "gradient_accumulation_steps is 2, so that steps keep their 2 rows" in said
    assert "expected yes or the number" in train(data, run, "--resume", "last", code=2).stderr


def test_a_set_that_was_compiled_again_is_the_same_to_a_checkpoint(data: Path, make: Make, tmp_path: Path) -> None:
    run = make(max_steps=1, save_strategy="steps", save_steps=1)
    train(data, run)
    files = [data.parent / f"{name}.jsonl" for name in ("plain", "other")]
    again = compile_set(tmp_path / "again", *files, "--val-size", 6, "--max-rejects", "2%")
    manifests = [stream.TrainingSet.open(str(one)).manifest for one in (data, again)]
    assert manifests[0]["digest"] != manifests[1]["digest"]
    run = make(max_steps=2, save_strategy="steps", save_steps=1)
    train(again, run, "--resume", "yes")
    assert checkpoint(run, 2).is_dir()
    outcome = runner().invoke(main, ["export", str(checkpoint(run, 2)), str(tmp_path / "out"), "--set", str(data)])
    assert outcome.exit_code == 0, outcome.stderr


def test_a_resume_of_nothing_starts_and_says_so(data: Path, make: Make) -> None:
    run = make(max_steps=1)
    assert "has no complete checkpoint; the run starts from the beginning" in train(data, run, "--resume", "yes").stderr


# -- what is seen --


def test_a_run_shows_what_it_trains_first(data: Path, make: Make) -> None:
    said = train(data, make(max_steps=1)).stderr
    assert said.index("Sanity Check") < said.index("step 1/1")
    assert "'<|im_start|>':   8001 ->   -100" in said
    assert "'<|im_end|>':   8002 ->   8002" in said
    assert "parameters are trained" in said


def test_losses_are_drawn_and_reported(data: Path, make: Make) -> None:
    run = make(plot_loss=True, report_to=["tensorboard"], eval_strategy="steps", eval_steps=2)
    train(data, run)
    assert (run.with_suffix("") / "loss.png").read_bytes().startswith(b"\x89PNG")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.with_suffix("") / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(list(losses(run).values()))
    assert [e.step for e in events.Scalars("eval_loss/plain")] == [2, 4]


def test_a_tracker_that_is_not_installed_is_named(data: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "swanlab", None)
    for way in ((), ("--dry-run",)):
        said = train(data, make(report_to=["swanlab"]), *way, code=2).stderr
        assert "report_to: swanlab: is not installed" in said
        assert "pip install swanlab" in said


def test_a_dry_run_says_what_would_happen(data: Path, packed: Path, make: Make) -> None:
    run = make(max_steps=None, num_train_epochs=2, eval_strategy="steps", eval_steps=500, save_strategy="steps")
    said = train(data, run, "--dry-run").stdout
    assert "eval_steps 500 is more than the 34 steps of this run" in said
    assert "save_steps 500 is more than the 34 steps of this run" in said
    assert "learning_rate: 0.001" in said
    assert not run.with_suffix("").exists()
    facts = json.loads(train(packed, run, "--dry-run", "--json").stdout)
    assert facts["packing"]["length"] == 64
    assert 0.5 < facts["padding"]["efficiency"] <= 1
    split = stream.TrainingSet.open(str(data)).manifest["splits"]["train"]
    facts = json.loads(train(data, run, "--dry-run", "--json").stdout)
    assert (facts["tokens"], facts["trained_tokens"]) == (2 * split["tokens"], 2 * split["trained_tokens"])
    assert facts["padding"]["tokens"] == split["tokens"]
    assert facts["trained_parameters"] < facts["parameters"]


# -- what is refused --


def test_what_is_not_there_is_one_message(tmp_path: Path, data: Path, make: Make) -> None:
    assert "no such folder" in train(tmp_path / "nowhere", make(), code=5).stderr
    assert "no such file" in train(data, tmp_path / "nowhere.yaml", code=2).stderr
    assert "model_name_or_path: nowhere: no such folder" in train(data, make(model="nowhere"), code=2).stderr
    assert "did you mean 'max_steps'" in train(data, make(max_step=3), code=2).stderr
    assert (
        "split val: it is empty"
        in train(compile_set(tmp_path / "set", "--self-cognition", 3), make(eval_strategy="epoch"), code=2).stderr
    )


def test_a_model_without_safetensors_is_refused(tmp_path: Path, data: Path, model: Path, make: Make) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    said = train(data, make(model=other), code=2).stderr
    assert "the weights are in pytorch_model.bin, which could run code when it is read" in said
    (other / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    (other / "evil.py").write_text("raise SystemExit('it ran')")
    shutil.copy(model / "model.safetensors", other)
    said = train(data, make(model=other), code=2).stderr
    assert "trust_remote_code: true" in said
    assert "it ran" not in said


def test_a_shard_of_a_model_that_is_missing_is_named_before_the_run(
    tmp_path: Path, data: Path, model: Path, make: Make
) -> None:
    base = Path(shutil.copytree(model, tmp_path / "base"))
    transformers.AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="100KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    gone = sorted(base.glob("model-*.safetensors"))[1]
    gone.unlink()
    said = train(data, make(model=base), "--dry-run", code=5).stderr
    assert f"{gone}: is missing, and the index lists it" in said


def test_a_model_of_another_tokenizer_is_refused(tmp_path: Path, data: Path, model: Path, make: Make) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|im_stop|>"))
    said = train(data, make(model=other), code=4).stderr
    assert "tokenizer.json: not the tokenizer of the set" in said


def test_a_damaged_batch_is_refused_before_it_is_used(tmp_path: Path, data: Path, make: Make) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    shard = other / "train" / "shard-00000.arrow"
    whole = bytearray(shard.read_bytes())
    whole[len(whole) // 2] ^= 1
    shard.write_bytes(whole)
    run = make()
    assert "is damaged" in train(other, run, code=4).stderr
    assert not losses(run)


def test_a_loss_that_is_no_number_stops_with_step_and_rows(tmp_path: Path, data: Path, model: Path, make: Make) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["model.embed_tokens.weight"][8001] = float("nan")
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    run = make(model=other, per_device_train_batch_size=1)
    said = train(data, run, code=4).stderr
    assert "step 1: the loss is nan" in said
    assert "Rows: row " in said
    assert ".jsonl:" in said
    assert not checkpoints.complete(run.with_suffix(""))


def test_a_step_in_which_nothing_is_trained_is_refused(tmp_path: Path, packed: Path, make: Make) -> None:
    """No compiler makes such a set; this one is written by hand."""
    from tests.support.trained import rewrite

    other = Path(shutil.copytree(packed, tmp_path / "other"))
    rewrite(other, lambda row: row | {"labels": [-100] * len(row["labels"]), "loss_weights": None})
    said = train(other, make(), code=4).stderr
    assert "step 1: nothing is trained in this step" in said


def test_what_an_objective_cannot_be_trained_with_is_refused(tmp_path: Path, make: Make) -> None:
    judged = compile_set(tmp_path / "judged", write(tmp_path / "judged.jsonl", JUDGED))
    said = train(judged, make(per_device_train_batch_size=1), code=2).stderr
    assert "gradient_accumulation_steps: a step has 1 row, and kto pairs each row with the next one" in said


def test_settings_of_other_objectives_are_refused(data: Path, make: Make) -> None:
    assert "beta: it has no effect on the objective sft" in train(data, make(beta=0.2), code=2).stderr
    assert "simpo_gamma: it has no effect on the objective sft" in train(data, make(simpo_gamma=1), code=2).stderr


def test_what_would_be_silently_wrong_is_refused(data: Path, packed: Path, make: Make) -> None:
    prefix = {"tuning": "prefix", "lora": None}
    assert "would see those before it" in train(packed, make(**prefix), code=2).stderr
    assert "kto needs a set of kind kto" in train(data, make(objective="kto"), code=2).stderr
    assert "a CPU does not compute in fp16" in train(data, make(fp16=True), code=2).stderr
    said = train(data, make(quantization_bit=4, zero_stage=3), code=2).stderr
    assert "cannot be split between processes" in said
    assert "has no vision tower" in train(data, make(freeze_vision=True), code=2).stderr


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("lfm2", {"layer_types": ["conv", "full_attention"]}), ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32})],
)
def test_a_model_that_mixes_the_sequences_of_a_pack_is_refused(
    tmp_path: Path, packed: Path, data: Path, make: Make, kind: str, settings: dict[str, Any]
) -> None:
    """Found by the probe, not by name: OPT counts positions itself, LFM2's convolutions reach over the start of a
    sequence (by next to nothing with weights as small as new ones have)."""
    mixing = save_model(tmp_path / kind, kind, scale=8, **settings)
    said = train(packed, make(model=mixing), code=2).stderr
    assert "lets a sequence of a pack see those before it" in said
    train(data, make(model=mixing, max_steps=1))


def test_wrong_names_are_answered_with_the_nearest(data: Path, make: Make) -> None:
    said = train(data, make(lora={"target_modules": ["q_prj"]}), code=2).stderr
    assert "did you mean 'q_proj'" in said
    full = {"tuning": "full", "lora": None}
    assert (
        "no parameter's name matches 'embed_token$'"
        in train(data, make(**full, freeze=["embed_token$"]), code=2).stderr
    )
    assert "is not a regular expression" in train(data, make(**full, freeze=["("]), code=2).stderr
    assert "nothing is left to train" in train(data, make(**full, freeze=["."]), code=2).stderr
    said = train(data, make(**full, freeze=["^([a-z0-9._]+)+=$"]), code=2).stderr
    assert "takes more than 5 seconds for the name " in said


def test_two_runs_in_one_folder_are_refused(data: Path, make: Make) -> None:
    run = make(max_steps=1)
    with locked(run.with_suffix(""), print):
        assert "another run is writing to it" in train(data, run, code=6).stderr
    train(data, run)


def test_a_set_that_is_not_what_a_configuration_expects_is_named(data: Path, make: Make) -> None:
    expect = {
        "datasets": ["plain"],
        "template": "qwen",
        "max_length": 8,
        "max_samples": 3,
        "val_size": 0.1,
        "packing": True,
    }
    said = train(data, make(expect=expect), code=2).stderr
    for line in (
        "datasets: expected plain, the set has plain, other",
        "max_length: expected at most 8 tokens, the set has rows of ",
        "max_samples: expected at most 3 rows a dataset, plain has more",
        "val_size: expected 0.1, the set was compiled with --val-size 6.0",
        "packing: expected True, the set is not packed",
    ):
        assert line in said
    fitting = {
        "datasets": ["plain", "other"],
        "template": "qwen",
        "max_length": 64,
        "max_samples": 20,
        "val_size": 6,
        "packing": False,
    }
    assert "uses the template of the model's own tokenizer" in train(data, make(expect=fitting, max_steps=1)).stderr


# -- the files that users have --


@pytest.mark.parametrize("name", FILES)
def test_the_files_that_users_have_run(data: Path, model: Path, tmp_path: Path, name: str) -> None:
    """Unchanged, but for model, sizes and paths on the command line."""
    changed = {
        "output_dir": tmp_path / "out", "max_steps": 2, "use_cpu": "true", "eval_steps": 2, "expect.datasets": "null",
        "expect.val_size": "null", "dataloader_num_workers": 1,
    }  # fmt: skip
    text = FILES[name].read_text()
    if "query_key_value" in text:
        changed["lora.target_modules"] = "[q_proj, k_proj, v_proj]"
    if name == "cogagent_sft":
        changed |= {"freeze_vision": "false", "deepspeed": ZERO / "ds_zero_3.json"}
    if name == "chatglm3_sft":
        changed["deepspeed"] = OFFLOAD
    if "predict_with_generate" in text:
        changed["generation_max_new_tokens"] = 4
    overrides = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    said = train(data, FILES[name], "--model", model, *overrides)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2]
    if "generation_max_new_tokens" in changed:
        assert lines[-1]["eval_scores"]["bleu-4"] >= 0
        said_there = (tmp_path / "out" / "predictions-2.jsonl").read_text().splitlines()
        assert len(said_there) == 6, "one for each reply of the validation split"
    assert "has no effect" in said.stderr
    assert (tmp_path / "out" / "checkpoint-2" / COMPLETE).is_file()
