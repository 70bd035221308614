"""What makes a device fast: attention, kernels, optimizers, logits in chunks, and what the log says of the speed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import import_utils

import registry
from schemas.errors import UsageError
from tests.support.tiny import lora, packed, padded, qwen2, row
from tests.support.trained import config, losses, run_to_end, save_model, small_set, train
from trainer.config.config import TrainConfig
from trainer.device import Device
from trainer.models import folder, optimizers
from trainer.objectives import default, head
from trainer.run import attention, probe, throughput

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_process")]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("speed") / "model", num_hidden_layers=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("speed") / "data")


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("speed") / "packs", "--pack", 64)


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Make:
    return lambda name="run", **settings: config(tmp_path / f"{name}.json", model, **settings)


def made_by(file: Path, step: int = 4) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((file.with_suffix("") / f"checkpoint-{step}" / "run.json").read_text())
    return found


# -- attention --


def test_a_run_says_what_computes_attention_and_why(packs: Path, make: Make) -> None:
    run = make(save_strategy="epoch")
    dry = json.loads(train(packs, run, "--dry-run", "--json").stdout)
    assert dry["attention"] == {"name": "sdpa", "why": "the fastest that trains on a CPU"}
    assert "attention  sdpa: the fastest that trains on a CPU" in train(packs, run, "--dry-run").stdout
    said = train(packs, run).stderr
    assert "attention: sdpa: the fastest that trains on a CPU" in said
    assert made_by(run)["attention"] == dry["attention"]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("flash_attention_2", "it has no kernel for a CPU"),
        ("kernels-community/flash-attn2", "it has no kernel for a CPU"),
        ("flex_attention", "on cpu it has no backward pass"),
    ],
)
def test_attention_that_cannot_be_had_is_refused_with_the_nearest(data: Path, make: Make, asked: str, why: str) -> None:
    run = make(attn_implementation=asked)
    for arguments in ([], ["--dry-run"]):
        said = train(data, run, *arguments, code=2).stderr
        assert f"{run}#/attn_implementation: {asked!r} cannot be used: {why}" in said
        assert "auto is sdpa here" in said


CARD = Device("cuda", "NVIDIA H100 80GB HBM3", 0, 1, 0, "nccl")


@pytest.mark.parametrize(
    ("capability", "installed", "half", "packed", "name", "why"),
    [
        (9, {2, 3}, True, True, "flash_attention_3", "FlashAttention"),
        (9, {2}, True, True, "flash_attention_2", "flash_attention_3 cannot be used: flash-attn-3 is not installed"),
        (8, {2, 3}, True, False, "flash_attention_2", "has compute capability 8, and it is for 9"),
        (7, {2}, True, True, "flex_attention", "flash_attention_2 cannot be used: "),
        (9, {2, 3}, False, True, "flex_attention", "this run in 32 bits"),
        (9, set(), True, False, "sdpa", "flash-attn is not installed"),
    ],
)
def test_on_a_card_the_fastest_attention_that_can_be_had_is_chosen(
    model: Path, monkeypatch: pytest.MonkeyPatch, capability: int, installed: set[int], half: bool,
    packed: bool, name: str, why: str,
) -> None:  # fmt: skip
    """What torch and Transformers say of the card and its packages is given; no card is here."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
    for version in (2, 3):
        is_there = version in installed
        monkeypatch.setattr(import_utils, f"is_flash_attn_{version}_available", lambda is_there=is_there: is_there)
    monkeypatch.setattr("transformers.PreTrainedModel._flash_attn_import_error", lambda *_, **__: None)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *_, **__: None)
    find = attention.importlib.util.find_spec
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda one: True if one == "triton" else find(one))
    source = folder.find(TrainConfig(str(model), "out"))
    chosen = attention.choose(source, "auto", CARD, "run.yaml", half=half, packed=packed)
    assert chosen.name == name
    assert why in chosen.why


@pytest.mark.parametrize(
    ("asked", "settings", "why"),
    [
        ("flash_attention_4", {}, "flash-attn-4 is not installed"),
        ("flash_attention_2", {"head_dim": 512}, "the model's heads have 512 numbers, and it takes 256 at most"),
    ],
)
def test_a_kernel_is_refused_where_transformers_would_fetch_or_try_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, settings: dict[str, Any], why: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(import_utils, "is_flash_attn_2_available", lambda: True)
    source = folder.find(TrainConfig(str(save_model(tmp_path / "model", "qwen3", **settings)), "out"))
    with pytest.raises(UsageError, match=why):
        attention.choose(source, asked, CARD, "run.yaml", half=True, packed=True)


def test_a_large_mask_is_named(packs: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "NOTED", 2 * 64 * 64)
    said = train(packs, make(), "--dry-run").stdout
    assert "attention by sdpa makes a mask of 0.0 GiB in each pass (2 x 64 x 64)" in said
    assert "makes a mask" not in train(packs, make(per_device_train_batch_size=1), "--dry-run").stdout


# -- kernels --


def test_liger_that_cannot_be_had_is_refused_and_auto_says_why(data: Path, make: Make) -> None:
    said = train(data, make(use_liger_kernel=True), "--dry-run", code=2).stderr
    assert "#/use_liger_kernel: Liger's kernels are Triton's, which a CPU does not run" in said
    said = train(data, make(), "--dry-run").stdout
    assert "kernels    the model's own layers (Liger's kernels are Triton's" in said


@pytest.mark.slow
def test_compiled_layers_give_the_same_losses(packs: Path, make: Make) -> None:
    plain, compiled = make("plain"), make("compiled", torch_compile=True, torch_compile_backend="aot_eager")
    train(packs, plain)
    assert ", compiled by torch" in train(packs, compiled).stderr
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)


def test_compiled_layers_and_zero_3_are_refused_together(data: Path, make: Make) -> None:
    said = train(data, make(torch_compile=True, zero_stage=3), "--dry-run", code=2).stderr
    assert "#/torch_compile: ZeRO-3 gathers weights between the layers' parts" in said
    said = train(data, make(torch_compile_mode="default"), "--dry-run", code=2).stderr
    assert "#/torch_compile_mode: it has no effect: torch_compile is false" in said


def test_every_second_layer_is_computed_again_with_the_same_losses(
    packs: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    again = checkpoint.checkpoint

    def counted(layer: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(layer)
        return again(layer, *args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    plain = make("plain")
    train(packs, plain)
    run = make("again", gradient_checkpointing=True, gradient_checkpointing_kwargs={"every_n_layers": 2})
    train(packs, run)
    assert losses(run) == pytest.approx(losses(plain), abs=1e-5)
    assert len(calls) == 4 * 2, "steps, of one pass each, x two of the four layers"


def test_activations_are_not_offloaded_from_a_cpu(packs: Path, make: Make) -> None:
    run = make(gradient_checkpointing=True, gradient_checkpointing_kwargs={"offload": True})
    said = train(packs, run, "--dry-run", code=2).stderr
    assert "#/gradient_checkpointing_kwargs/offload: on a CPU all is in the host's memory already" in said


# -- optimizers --


def test_adamw_of_8_bits_trains_about_as_torchs(data: Path, make: Make) -> None:
    pytest.importorskip("bitsandbytes")
    settings: dict[str, Any] = {"tuning": "full", "lora": None, "max_steps": 12}
    plain, small = make("plain", **settings), make("small", **settings, optim="adamw_8bit")
    train(data, plain)
    assert "optimizer: adamw_8bit" in train(data, small).stderr
    assert losses(small)[1] == losses(plain)[1]
    assert losses(small) != losses(plain)
    assert losses(small) == pytest.approx(losses(plain), rel=2e-2)


def test_a_resumed_run_with_8_bits_goes_on_exactly_and_not_with_other_states(data: Path, make: Make) -> None:
    pytest.importorskip("bitsandbytes")
    settings: dict[str, Any] = {"tuning": "full", "lora": None, "max_steps": 6, "optim": "adamw_8bit"}
    whole, parted = make("whole", **settings), make("parted", **settings, save_strategy="steps", save_steps=3)
    train(data, whole)
    train(data, parted)
    train(data, parted, "--resume", 3)
    assert losses(parted) == losses(whole)
    other = train(data, parted, "--resume", 3, "--set", "optim=adamw_torch", code=2).stderr
    assert "optimizer: adamw_8bit, now adamw_torch" in other
    with pytest.raises(UsageError, match="the states of adamw_8bit are of 2 processes"):
        optimizers.check_moved("adamw_8bit", 2, 1, "run.yaml")


def test_fused_adamw_gives_the_same_losses_and_may_be_changed_on_the_way(data: Path, make: Make) -> None:
    whole, fused = make("whole", max_steps=6), make("fused", max_steps=6, optim="adamw_torch_fused", save_steps=3)
    fused.write_text(json.dumps(json.loads(fused.read_text()) | {"save_strategy": "steps"}))
    train(data, whole)
    train(data, fused)
    assert losses(fused) == pytest.approx(losses(whole), abs=1e-6)
    train(data, fused, "--resume", 3, "--set", "optim=adamw_torch")
    assert losses(fused) == pytest.approx(losses(whole), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optim": "paged_adamw_8bit"}, "bitsandbytes has pages of memory for CUDA devices only"),
        ({"optim": "adamw_8bit", "zero_stage": 3}, "ZeRO-3 keeps the optimizer's states in pieces of its own"),
        ({"optim": "adafactor"}, "'adafactor' is not one of"),
    ],
    ids=str,
)
def test_an_optimizer_that_cannot_be_had_is_refused(
    data: Path, make: Make, settings: dict[str, Any], said: str
) -> None:
    pytest.importorskip("bitsandbytes")
    assert said in train(data, make(**settings), "--dry-run", code=2).stderr


# -- logits in chunks --


@pytest.mark.parametrize("kind", ["sft", "pretrain"])
def test_logits_in_chunks_give_the_same_losses_and_gradients(kind: str) -> None:
    given = packed([row([5, 6, 7, 8, 9, 3], 2, [0, 0, 1, 2, 0.5, 1]), row([4, 4, 2, 8], 1)])
    found = []
    for wanted in (False, True):
        model = lora(qwen2(), trained=True)
        head.in_chunks(model, wanted=wanted)
        parts = default(kind).loss(model, given)
        parts.loss_sum.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((parts.losses, grads))
    (plain, gradients), (chunked, chunked_gradients) = found
    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(chunked_gradients, gradients)


def test_with_logits_in_chunks_no_pass_has_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.objectives.log_probs._CHUNK", 4)
    model = qwen2()
    batch = padded([row(list(range(1, 20)), 1)])
    sizes = []
    model.lm_head.register_forward_hook(lambda *a: sizes.append(a[2].shape[:-1].numel()))
    head.in_chunks(model, wanted=True)
    default("sft").loss(model, batch).loss_sum.backward()
    whole, *chunks = sizes
    assert (whole, max(chunks)) == (18, 4), "the first is the head left out, which returns hidden states"
    assert sum(chunks) == 2 * 18, "forward, and again in the backward pass"


def test_two_processes_compute_logits_in_chunks(packs: Path, make: Make) -> None:
    plain, chunked = make("plain"), make("chunked", logits_in_chunks=True)
    run_to_end(2, packs, plain)
    assert "logits are computed in chunks" in run_to_end(2, packs, chunked)
    assert losses(chunked) == pytest.approx(losses(plain), abs=1e-5)


def test_with_zero_3_logits_stay_whole_and_a_note_says_so(
    data: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = train(data, make(zero_stage=3, logits_in_chunks=True), "--dry-run", code=2).stderr
    assert "#/logits_in_chunks: ZeRO-3 takes the head's weights away" in said
    monkeypatch.setattr(probe, "LARGE", 1)
    assert "with ZeRO-3 they cannot be computed in chunks" in train(data, make(zero_stage=3)).stderr


def test_a_model_that_changes_logits_after_its_head_keeps_them_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled = save_model(tmp_path / "scaled", "gemma2", head_dim=8, final_logit_softcapping=1.0, pad_token_id=0, scale=4)
    asked = config(tmp_path / "asked.json", scaled, logits_in_chunks=True)
    said = train(data, asked, code=2).stderr
    assert "#/logits_in_chunks: PeftModelForCausalLM changes logits after its head" in said
    monkeypatch.setattr(probe, "LARGE", 1)
    left, never = (config(tmp_path / f"{name}.json", scaled, **more) for name, more in (
        ("left", {}), ("never", {"logits_in_chunks": False}),
    ))  # fmt: skip
    assert "changes logits after its head, so that they cannot be computed in chunks" in train(data, left).stderr
    train(data, never)
    assert losses(left) == losses(never)


# -- speed --


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_arithmetic_of_a_step_is_what_torch_counts(tuning: str) -> None:
    model: Any = qwen2(attn_implementation="eager")
    settings = model.config
    model = lora(model, trained=True) if tuning == "lora" else model
    length = 48
    batch = torch.randint(0, 97, (1, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=batch).logits.sum().backward()
    parameters, trained = throughput.multiplying(model, settings)
    all_pairs = 2 * throughput.attention_flops(settings.num_hidden_layers, settings.hidden_size, length**2)
    counted = throughput.step_flops(parameters, trained, length, all_pairs)
    # Nothing before the first adapter has a gradient, which is a good part of two layers.
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.01 if tuning == "full" else 0.12)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362), ("Tesla T4", 65), ("NVIDIA GeForce RTX 4090", 165), ("Ascend910B2", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_device_is_found_by_its_name(name: str, tflops: int | None) -> None:
    assert throughput.peak_of(name) == (tflops and tflops * 1e12)


def test_special_names_of_devices_come_before_plain_ones() -> None:
    seen: list[set[str]] = []
    for words in ({*one["words"]} for one in registry.devices()):
        assert not any(words > before for before in seen), f"{words} is never reached"
        seen.append(words)


def test_the_log_and_the_summary_say_how_fast_a_run_is(packs: Path, make: Make) -> None:
    run = make(save_strategy="epoch", peak_tflops=0.001)
    done = train(packs, run, "--json")
    summary = json.loads(done.stdout)
    lines = [json.loads(line) for line in (run.with_suffix("") / "log.jsonl").read_text().splitlines()]
    seconds = sum(line["seconds"] for line in lines)
    assert summary["seconds"] == pytest.approx(seconds, abs=0.01)
    assert summary["tokens_per_second"] == pytest.approx(summary["tokens"] / seconds, rel=0.02)
    for line in lines:
        assert 0 < line["trained_tokens_per_second"] < line["tokens_per_second"]
        assert 0 <= line["data_seconds"] < line["seconds"]
        assert line["memory_peak"] > 10**8, "that of the process"
        assert line["share_of_peak"] > 0
    assert 0 < summary["save_seconds"] < 60
    assert "% of peak" in done.stderr
    assert "saved " in done.stderr and " s)" in done.stderr


def test_the_trained_tokens_of_a_step_are_those_of_the_set(packs: Path, make: Make) -> None:
    run = make(per_device_train_batch_size=1, gradient_accumulation_steps=64, max_steps=1)
    train(packs, run)
    (line,) = [json.loads(line) for line in (run.with_suffix("") / "log.jsonl").read_text().splitlines()]
    split = json.loads((packs / "manifest.json").read_text())["splits"]["train"]
    assert line["tokens"] == split["tokens"]
    assert line["trained_tokens_per_second"] * line["seconds"] == pytest.approx(split["trained_tokens"], rel=1e-2)


def test_a_profile_is_a_trace_of_so_many_steps(packs: Path, make: Make) -> None:
    run = make(max_steps=5)
    plain = make("plain", max_steps=5)
    said = train(packs, run, "--profile", 2).stderr
    path = run.with_suffix("") / "trace-2-3.json.gz"
    assert f"trace of 2 steps: {path}" in said
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = sum(event.get("name") == "Optimizer.step#AdamW.step" for event in events)
    assert steps == 2
    train(packs, plain)
    assert losses(run) == losses(plain)
