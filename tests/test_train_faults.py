"""What goes wrong around a run: signals, memory, trackers, locks, a start that fails. Nothing that was done is lost."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas import disk
from tests.support.trained import config, losses, outside, records, save_model, small_set, train
from trainer.run import attention, checkpoints, evaluate, log, memory, output, step

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("faults") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("faults") / "data")


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Make:
    return lambda name="run", **settings: config(tmp_path / f"{name}.json", model, **settings)


def steps(run: Path) -> list[int]:
    return [one.step for one in checkpoints.complete(run.with_suffix(""))]


# -- signals --


def test_sigterm_saves_the_step_and_a_resume_goes_on(data: Path, make: Make) -> None:
    whole, ended = make("whole", max_steps=40), make("ended", max_steps=40)
    cli = str(Path(sys.executable).parent / "cli")
    with subprocess.Popen(
        [cli, "train", str(data), str(ended)], stderr=subprocess.PIPE, text=True, env=outside()
    ) as running:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (ended.with_suffix("") / "log.jsonl").is_file():
            time.sleep(0.02)
        while time.monotonic() < deadline and not losses(ended):
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        assert running.stderr is not None
        said = running.stderr.read()
        assert running.wait(60) == 143, said
    (last,) = steps(ended)
    assert f"checkpoint-{last}: saved after step {last}, as SIGTERM came\n  Run the same command again" in said
    assert last < 40
    train(data, whole)
    train(data, ended, "--resume", "yes")
    assert losses(ended) == pytest.approx(losses(whole), abs=1e-6)


# -- memory --


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("NPU out of memory. Tried")], ids=str
)
def test_an_evaluation_that_runs_out_of_memory_costs_no_step(
    data: Path, make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(evaluate, "tensors", fail)
    run = make(eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    said = train(data, run, code=2).stderr
    assert "run.json: out of memory while evaluating on cpu: " in said
    assert "Lower per_device_eval_batch_size; Set gradient_checkpointing: true; Use quantization_bit: 4" in said
    assert steps(run) == [2]


def test_a_step_that_runs_out_of_memory_is_one_message(data: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(step, "tensors", fail)
    said = train(data, make(tuning="full", lora=None), code=2).stderr
    assert "out of memory while training on cpu" in said
    assert "Lower per_device_train_batch_size and raise gradient_accumulation_steps as much" in said
    assert "Use tuning: lora" in said


def test_what_cann_says_of_memory_is_known() -> None:
    """As users posted it: vllm-project/vllm-ascend#3141, and without the code of the error."""
    said = "call aclnnMoeDistributeDispatchV2 failed, error code is 207001\n[Error]: Failed to apply for memory."
    for text in (said, "EL0004: [PID: 1] Failed to allocate memory.", "NPU out of memory. Tried to allocate 52.00 MiB"):
        assert memory._SAID.search(text)
    assert not memory._SAID.search("call aclnnAdd failed, error code is 507011")


# -- trackers and the plot --


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    data: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        name = "tensorboard"

        def __init__(self, *_: Any) -> None: ...

        def log(self, _: Any) -> None:
            raise ConnectionError("the server is away")

    def closed(*_: Any) -> None:
        raise OSError("no network")

    monkeypatch.setitem(log._TRACKERS, "tensorboard", Away)
    said = train(data, make("logs", report_to=["tensorboard"])).stderr
    assert said.count("note: report_to: tensorboard failed, and gets nothing more: ConnectionError: the server") == 1
    monkeypatch.setitem(log._TRACKERS, "tensorboard", closed)
    said = train(data, make("opens", report_to=["tensorboard"])).stderr
    assert "note: report_to: tensorboard cannot be opened, and gets nothing: OSError: no network" in said


def test_a_plot_that_cannot_be_drawn_is_named_and_the_run_goes_on(
    data: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no fonts")

    monkeypatch.setattr(Figure, "savefig", fail)
    run = make(plot_loss=True, save_strategy="steps", save_steps=2)
    said = train(data, run).stderr
    assert said.count("loss.png cannot be drawn: OSError: no fonts") == 1
    assert steps(run) == [2, 4]


def test_the_smoothed_loss_is_a_weighted_mean_of_what_came_before() -> None:
    assert log.smoothed([2.0] * 40) == pytest.approx([2.0] * 40)
    falling = [1 / (i + 1) for i in range(100)]
    smooth = log.smoothed(falling)
    assert smooth[0] == falling[0]
    assert all(now < smoother <= smooth[0] for now, smoother in zip(falling[1:], smooth[1:], strict=True))


# -- the output folder --


def test_a_start_that_fails_removes_nothing_of_the_run_it_was_to_replace(
    data: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(plot_loss=True, save_strategy="steps", save_steps=2)
    train(data, run)
    before = {path.name: path.read_bytes() for path in run.with_suffix("").iterdir() if path.is_file()}
    old = losses(run)
    replacing = ("--set", "overwrite_output_dir=true", "--set", "learning_rate=1e-2")
    with monkeypatch.context() as patch:
        patch.setattr(step, "tensors", lambda *_: [][0])
        with pytest.raises(IndexError):
            train(data, run, *replacing)
    assert steps(run) == [2, 4]
    assert "nothing left to do" in train(data, run, "--resume", "yes").stdout
    with monkeypatch.context() as patch:  # as if the disk were full while the first new checkpoint is written
        patch.setattr(checkpoints, "_publish", lambda *_: [][0])
        with pytest.raises(IndexError):
            train(data, run, *replacing)
    assert steps(run) == [2, 4]
    train(data, run, "--resume", "2")
    assert losses(run) == old
    assert {path.name for path in run.with_suffix("").iterdir() if path.is_file()} == before.keys()
    train(data, run, *replacing, "--set", "max_steps=2", "--set", "save_steps=3")
    assert (steps(run), sorted(losses(run))) == ([2], [1, 2])
    assert not [path for path in run.with_suffix("").iterdir() if path.name.startswith(".") and path.is_dir()]


def test_a_file_system_without_locks_is_noted_and_used(data: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(disk.fcntl, "flock", flock)
    run = make()
    said = train(data, run).stderr
    assert f"{run.with_suffix('')}: its file system has no locks (Function not implemented)" in said
    with output.locked(run.with_suffix(""), print):
        pass


# -- one check for a dry run and a run --


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attn_implementation": "flash_attention_2"}, "#/attn_implementation: 'flash_attention_2' cannot be used"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs: cosine_with_min_lr: "),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "lr_scheduler_kwargs: cosine: "),
    ],
    ids=str,
)
def test_a_dry_run_refuses_what_a_run_would(data: Path, make: Make, settings: dict[str, Any], said: str) -> None:
    assert said in train(data, make(**settings), "--dry-run", code=2).stderr


# -- the best checkpoint --


def test_the_best_checkpoint_is_kept_and_named(data: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter(
        [(3.0, {"plain": 1.0}, {}), (1.0, {"plain": 4.0}, {}), (2.0, {"plain": 3.0}, {}), (2.5, {"plain": 2.0}, {})]
    )
    monkeypatch.setattr(evaluate.Evaluator, "loss", lambda *_: next(found))
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run = make(**every, save_total_limit=2, load_best_model_at_end=True)
    said = json.loads(train(data, run, "--json").stdout)
    assert said["best"] == {"step": 2, "metric": "eval_loss", "value": 1.0}
    assert said["checkpoint"].endswith("checkpoint-2")
    assert steps(run) == [2, 4]
    found = iter(
        [(3.0, {"plain": 1.0}, {}), (1.0, {"plain": 4.0}, {}), (2.0, {"plain": 3.0}, {}), (2.5, {"plain": 2.0}, {})]
    )
    other = make(
        "other", **every, save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="eval_loss/plain",
        greater_is_better=True,
    )  # fmt: skip
    assert "best: eval_loss/plain 4.0000 at step 2" in train(data, other).stdout
    assert steps(other) == [2, 4]


def test_a_run_stops_when_evaluations_get_no_better_also_over_a_resume(
    data: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [3.0, 1.0, 0.95, 1.5, 0.1]
    found = iter([])

    def again() -> None:
        nonlocal found
        found = iter([(value, {"plain": value}, {}) for value in values])

    monkeypatch.setattr(evaluate.Evaluator, "loss", lambda *_: next(found))
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    every |= {"early_stopping_patience": 2, "early_stopping_threshold": 0.1, "max_steps": 6}
    whole, parted = make("whole", **every), make("parted", **every)
    again()
    said = train(data, whole).stdout
    assert "trained 4 steps (stopped early)" in said
    assert "best: eval_loss 0.9500 at step 3" in said
    assert "nothing left to do" in train(data, whole, "--resume", "yes").stdout
    again()
    train(data, parted, "--set", "max_steps=2", "--set", "lr_scheduler_type=constant")
    said = train(data, parted, "--resume", "yes", "--set", "lr_scheduler_type=constant").stdout
    assert "trained 2 steps (stopped early)" in said
    assert [one["eval_loss"] for one in records(parted) if "eval_loss" in one] == values[:4]


def test_a_metric_that_no_evaluation_has_is_named(data: Path, make: Make) -> None:
    every = {"eval_strategy": "steps", "eval_steps": 1, "early_stopping_patience": 1}
    said = train(data, make(**every, metric_for_best_model="rouge-l"), code=2).stderr
    assert "#/metric_for_best_model: no evaluation has 'rouge-l'" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"load_best_model_at_end": True}, "nothing is evaluated"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps"}, "save_strategy is no and eval_strategy is steps"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps",
             "save_steps": 6},
            "save_steps 6 is not a multiple of eval_steps 4",
        ),
        ({"metric_for_best_model": "eval_loss"}, "evaluations are not compared"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_the_best_is_refused(data: Path, make: Make, settings: dict[str, Any], said: str) -> None:
    assert said in train(data, make(**settings), code=2).stderr


# -- packs under FlashAttention --


def flash_by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float, causal: bool) -> Any:
    """FlashAttention's plain function, [B, T, heads, d], for grouped heads too."""
    several = q.shape[2] // k.shape[2]
    q, k, v = (part.transpose(1, 2) for part in (q, k.repeat_interleave(several, 2), v.repeat_interleave(several, 2)))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale)
    return found.transpose(1, 2)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """FlashAttention's functions on the cpu, under the real dispatch of Transformers; how many sequences each got."""
    from transformers import PreTrainedModel, modeling_flash_attention_utils

    calls: dict[str, list[int]] = {"plain": [], "varlen": []}

    def plain(q: Any, k: Any, v: Any, softmax_scale: float | None = None, causal: bool = False, **_: Any) -> Any:
        calls["plain"].append(len(q))
        return flash_by_torch(q, k, v, softmax_scale or q.shape[-1] ** -0.5, causal)

    def varlen(
        q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
        softmax_scale: float | None = None, causal: bool = False, **_: Any,
    ) -> Any:  # fmt: skip
        assert cu_seqlens_q.dtype == torch.int32
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        lengths = cu_seqlens_q.diff()
        assert (int(max_seqlen_q), int(max_seqlen_k), int(cu_seqlens_q[-1])) == (int(lengths.max()),) * 2 + (len(q),)
        calls["varlen"].append(len(lengths))
        parts = (part.split(lengths.tolist()) for part in (q, k, v))
        scale = softmax_scale or q.shape[-1] ** -0.5
        return torch.cat(
            [flash_by_torch(*(p[None] for p in one), scale, causal)[0] for one in zip(*parts, strict=True)]
        )

    def found(*_: Any, **__: Any) -> Any:
        return (
            plain,
            varlen,
            None,
            modeling_flash_attention_utils._pad_input,
            modeling_flash_attention_utils._unpad_input,
        )

    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", found)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    monkeypatch.setattr(attention, "lacks", lambda *_, **__: None)  # these kernels run on a CPU, in 32 bits
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_import_error", lambda *_, **__: None, raising=False)
    monkeypatch.setattr(
        PreTrainedModel, "_check_and_adjust_attn_implementation", lambda _, name, *__, **___: name or "sdpa"
    )
    return calls


def test_packs_do_not_see_each_other_under_flash_attention(
    tmp_path: Path, make: Make, kernels: dict[str, list[int]]
) -> None:
    packed = small_set(tmp_path / "packed", "--pack", 64)
    settings: dict[str, Any] = {"per_device_train_batch_size": 3, "tuning": "full", "lora": None}
    plain, flash = make("plain", **settings), make("flash", **settings, attn_implementation="flash_attention_2")
    train(packed, plain)
    assert kernels == {"plain": [], "varlen": []}
    said = train(packed, flash).stderr
    assert "packs: the losses equal those of their sequences alone" in said
    assert max(kernels["varlen"]) > 3, "a pass has the sequences of three packs"
    assert losses(flash) == pytest.approx(losses(plain), abs=1e-5)


def test_rows_with_padding_go_on_under_flash_attention(data: Path, make: Make, kernels: dict[str, list[int]]) -> None:
    plain, flash = make("plain"), make("flash", attn_implementation="flash_attention_2")
    train(data, plain)
    train(data, flash)
    assert kernels["varlen"]
    assert losses(flash) == pytest.approx(losses(plain), abs=1e-5)
