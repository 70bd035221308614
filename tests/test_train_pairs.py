"""Runs on preference and KTO sets: each objective from data to a resumed run, and the reference of full fine-tuning."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import transformers

from schemas.errors import LockedError
from tests.support.trained import (
    compile_set,
    config,
    kill_after,
    losses,
    records,
    run_to_end,
    save_model,
    train,
    write,
)
from trainer import device
from trainer.config import load as configs
from trainer.data.collate import Collator, tensors
from trainer.data.loader import Loader
from trainer.models import training
from trainer.run import plan
from trainer.run.output import locked
from trainer.run.schedule import learning_rate

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
Make = Callable[..., Path]
EXAMPLES = Path(__file__).parent.parent / "examples" / "llama_factory"
WORDS = ("red", "blue", "stone", "river", "moon", "a green bird", "the sun", "seven")
PAIRS = [{"instruction": f"say {w}", "chosen": f"{w} it is", "rejected": f"not {w} at all"} for w in WORDS]
JUDGED = [{"instruction": f"say {w}", "output": f"{w} it is", "kto_tag": i % 4 != 1} for i, w in enumerate(WORDS)]
FULL: dict[str, Any] = {"tuning": "full", "lora": None, "max_grad_norm": 0.0, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_model(folder / "model", scale=4)


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Path:
    return compile_set(folder / "pairs", write(folder / "pairs.jsonl", PAIRS), "--val-size", 3)


@pytest.fixture(scope="module")
def judged(folder: Path) -> Path:
    return compile_set(folder / "judged", write(folder / "judged.jsonl", JUDGED), "--val-size", 3)


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Make:
    """Write a configuration for the model; several get names of their own."""

    def write_config(name: str = "run", **settings: Any) -> Path:
        return config(tmp_path / f"{name}.json", settings.pop("model", model), **settings)

    return write_config


def reference_of(run: Path) -> list[dict[str, Any]]:
    """The lines of the file of a run."""
    with pa.OSFile(str(run.with_suffix("") / "reference.arrow")) as file:
        found: list[dict[str, Any]] = pa.ipc.open_file(file).read_all().to_pylist()
    return found


def wait_until_gone(output: Path) -> None:
    """Wait until no process of a killed run holds its folder."""
    for _ in range(600):
        with contextlib.suppress(LockedError), locked(output, print):
            return
        time.sleep(0.05)


# -- every objective --


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"objective": "ipo"}, "ipo: beta 0.1"),
        ({"objective": "orpo"}, "orpo: beta 0.1"),
        ({"objective": "simpo", **FULL}, "simpo: beta 2, simpo_gamma 0.5"),
        ({"objective": "dpo", **FULL}, "dpo: beta 0.1"),
    ],
    ids=lambda value: value["objective"] if isinstance(value, dict) else "",
)
def test_published_preferences_are_learnt_and_a_resumed_run_is_the_whole_one(
    tmp_path: Path, make: Make, settings: dict[str, Any], shown: str
) -> None:
    rows = EXAMPLES / "alpaca_preference.json"
    data = compile_set(tmp_path / "set", rows, "--kind", "preference")
    settings = settings | {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 5e-3}
    whole, parted = make("whole", **settings), make("parted", **settings)
    planned = train(data, whole, "--dry-run").stdout
    assert f"\nobjective  {shown}\n" in planned
    assert ("\nreference  its log-probabilities are" in planned) == (settings["objective"] == "dpo")  # in full
    assert f"\n{shown}\n" in train(data, whole).stderr
    shutil.copytree(whole.with_suffix(""), parted.with_suffix(""))
    train(data, parted, "--resume", 3)
    assert records(parted) == records(whole)
    assert losses(whole)[6] < losses(whole)[1]
    assert all(math.isfinite(record["rewards/margins"]) for record in records(whole))


# -- the reference of a model that training changes --


def trained_by_hand(data: Path, run: Path) -> tuple[list[float], float]:
    """The losses of a run, and that of its validation rows at the end, with a frozen copy of the model as reference."""
    made = plan.make(str(data), configs.load(run, ["output_dir=elsewhere"]), None, device.find(use_cpu=True))
    model = training.load(made.source, made.config, made.device, torch.float32, "")
    base = transformers.AutoModelForCausalLM.from_pretrained(made.source.folder).eval()
    collate = Collator(packed=False, pad=0, sides=made.objective.sides)
    loader = Loader(made.train, made.order, collate, 0, 1, made.micro, 1, 0, made.objective.pair)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0)
    rates = learning_rate(made.config, made.steps)
    found = []

    def loss(batch: Any) -> torch.Tensor:
        parts = made.objective.loss(model, tensors(batch, torch.device("cpu")), reference=base)
        return parts.loss_sum / parts.weight_sum

    for step in loader.steps(0, made.steps):
        optimizer.param_groups[0]["lr"] = rates(step.number)
        optimizer.zero_grad()
        one = loss(step.batches[0])
        one.backward()
        optimizer.step()
        found.append(one.item())
    assert made.val
    rows = [made.val.row(i) for i in reversed(range(len(made.val)))]
    rows.sort(key=lambda row: -row["seq_lens"][0])  # as they are evaluated, which decides on KTO's pairs
    if made.objective.pair:
        rows = [made.objective.pair(row, other) for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)]
    with torch.no_grad():
        return found, loss(collate(rows)).item()


@pytest.mark.parametrize("tuning", ["full", "prefix"])
@pytest.mark.parametrize("kind", ["pairs", "judged"])
def test_the_reference_of_full_and_prefix_tuning_is_a_frozen_copy_of_the_model(
    make: Make, request: pytest.FixtureRequest, kind: str, tuning: str
) -> None:
    data: Path = request.getfixturevalue(kind)
    settings = FULL | {"tuning": tuning, "per_device_train_batch_size": 3, "eval_strategy": "steps", "eval_steps": 5}
    run = make(**settings, prefix={"num_virtual_tokens": 4} if tuning == "prefix" else None, max_steps=5)
    said = train(data, run).stderr
    by_hand, evaluated = trained_by_hand(data, run)
    assert list(losses(run).values()) == pytest.approx(by_hand, abs=2e-5)
    assert records(run)[-1]["eval_loss"] == pytest.approx(evaluated, abs=2e-5)
    assert by_hand[0] - min(by_hand) > 1e-3  # the model has left its reference
    assert kind == "pairs" or any(record.get("kl", 0) > 1e-3 for record in records(run))  # the pairs count
    assert f"reference: the log-probabilities of {len(reference_of(run))} replies are kept in" in said


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stage", "processes"), [("pairs", 3, 1), ("judged", 2, 2)])
def test_several_processes_share_the_reference_and_a_killed_run_finds_it(
    make: Make, request: pytest.FixtureRequest, kind: str, stage: int, processes: int
) -> None:
    data: Path = request.getfixturevalue(kind)
    every = FULL | {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 1}
    every["weight_decay"] = 0.1  # of one group of parameters: DeepSpeed's conversion for ZeRO-3 would give it to all
    deepspeed = {"zero_optimization": {"stage": stage}}
    if stage == 3:
        deepspeed["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # else tiny weights stay whole
    whole = make("whole", gradient_accumulation_steps=4, **every)
    killed = make("killed", gradient_accumulation_steps=2, deepspeed=deepspeed, **every)
    train(data, whole)
    kill_after(3, 2, data, killed, output=killed.with_suffix(""))
    wait_until_gone(killed.with_suffix(""))
    kept = killed.with_suffix("") / "reference.arrow"
    before, values = kept.stat().st_mtime_ns, reference_of(killed)
    more = data, killed, "--resume", 2
    said = train(*more).stderr if processes == 1 else run_to_end(processes, *more)
    assert f"replies are read from {kept}" in said
    assert kept.stat().st_mtime_ns == before
    assert list(losses(killed).values()) == pytest.approx(list(losses(whole).values()), abs=2e-5)
    assert [{**one, "log_prob": pytest.approx(one["log_prob"], abs=1e-4)} for one in reference_of(whole)] == values


def test_what_the_file_of_the_reference_lacks_is_computed_by_the_base_model_and_said(
    judged: Path, tmp_path: Path, make: Make
) -> None:
    every = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    settings = FULL | every | {"per_device_train_batch_size": 2}
    run, longer = make("run", max_steps=4, **settings), make("longer", max_steps=8, **settings)
    train(judged, longer)
    train(judged, run)
    kept, first = run.with_suffix("") / "reference.arrow", reference_of(run)
    assert "nothing left to do" in train(judged, run, "--resume", "yes").stdout
    said = train(judged, run, "--resume", 4, "--set", "max_steps=8").stderr  # more epochs: other mismatched pairs
    assert re.search(r"replies are kept in .*; [1-9] of them were computed in 0:0\d: the file lacked them", said)
    assert all(one in reference_of(run) for one in first)
    assert list(losses(run).values())[:5] == pytest.approx(list(losses(longer).values())[:5], abs=1e-5)
    kept.unlink()
    said = train(judged, run, "--resume", 4, "--set", "max_steps=8").stderr
    assert ": the file was missing" in said
    kept.write_bytes(b"ARROW1 and no more")
    said = train(judged, run, "--resume", 4, "--set", "max_steps=8", code=5).stderr
    assert "reference.arrow: cannot be read" in said and "Remove it; it is computed again." in said
    other = save_model(tmp_path / "other", scale=3)
    write_again = make("run", max_steps=8, overwrite_output_dir=True, **settings)
    train(judged, write_again, "--set", "max_steps=2", code=5)  # the damaged file is nobody's to remove
    kept.unlink()
    train(judged, write_again, "--set", "max_steps=2")
    said = train(judged, write_again, "--set", "max_steps=2").stderr
    assert f"replies are read from {kept}" in said
    said = train(judged, make("run", model=other, max_steps=2, overwrite_output_dir=True, **settings)).stderr
    assert ": the file was that of another model" in said


def test_a_run_is_not_resumed_with_the_reference_of_another_model(pairs: Path, tmp_path: Path, make: Make) -> None:
    settings = FULL | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    own, others = make("own", **settings), make("others", model=save_model(tmp_path / "other", scale=3), **settings)
    train(pairs, own)
    train(pairs, others)
    shutil.copy(others.with_suffix("") / "reference.arrow", own.with_suffix(""))
    said = train(pairs, own, "--resume", 2, code=2).stderr
    assert "reference.arrow: its model is" in said
    assert "Resume with the same settings" in said


# -- rewards --


def test_rewards_are_on_the_line_of_a_step_in_the_log_and_in_the_trackers(pairs: Path, make: Make) -> None:
    every = {"eval_strategy": "steps", "eval_steps": 4, "logging_steps": 2, "report_to": ["tensorboard"]}
    run = make(learning_rate=1e-2, rpo_alpha=0.5, **every)
    said = train(pairs, run).stderr
    number = r"-?[\d.e-]+"
    names = ("chosen", "rejected", "margins", "accuracies")
    rewards = f"  rewards: {', '.join(f'{name} ({number})' for name in names)}  sft_loss {number}"
    (line,) = re.findall(f"^step 4/4 .* loss {number}{rewards}  lr ", said, re.MULTILINE)
    last = [record for record in records(run) if "loss" in record][2:]
    means = [sum(record[f"rewards/{name}"] for record in last) / 2 for name in names]
    assert list(map(float, line)) == pytest.approx(means, rel=1e-2)
    assert re.search(rf"^step 4  eval loss {number} \(pairs {number}\){rewards}$", said, re.MULTILINE)
    assert records(run)[-1]["eval_rewards/margins"] == pytest.approx(
        records(run)[-1]["eval_rewards/chosen"] - records(run)[-1]["eval_rewards/rejected"]
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.with_suffix("") / "tensorboard")).Reload()
    (logged,) = events.Scalars("eval_rewards/accuracies")
    assert logged.value == pytest.approx(records(run)[-1]["eval_rewards/accuracies"])
    assert [one.value for one in events.Scalars("rewards/margins")][-1] == pytest.approx(means[2])
