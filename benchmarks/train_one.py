"""One configuration of benchmarks/train_device.py, in a process of its own: `python -m benchmarks.train_one TASK`.

TASK is JSON. A Qwen2 of the size of a public one gets random weights on the device. Packs are random too. What the
trainer has for it is used: its adapters, batches and loss; DeepSpeed alone is left out, as it may not be installed. The
result is the last line, as JSON.

The loss is compared with that of the same weights in fp32 with eager attention, token by token, before the first step.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers

import registry
from trainer.config.config import Lora, TrainConfig
from trainer.data.collate import Collator, tensors
from trainer.models.tune import count, tune
from trainer.objectives.cross_entropy import loss as loss_of
from trainer.run import throughput

MODELS = {
    "0.5B": {
        "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "7B": {
        "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 8192, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""The sizes in config.json of Qwen2.5-0.5B and Qwen2.5-7B, and of one to try this on a CPU."""
PACKS = 4
"""Different packs, trained in turns. Each is trained once before the time is taken: kernels are compiled then."""
LORA = Lora(r=16, lora_alpha=32)


def main() -> None:
    """Do what the task says, and print the result."""
    task = json.loads(sys.argv[1])
    print(json.dumps(saved(task) if "save" in task else measured(task)))


def saved(task: dict[str, Any]) -> dict[str, Any]:
    """Save a model with random weights and the demo tokenizer in a folder, for `cli train`."""
    model = made(task)
    model.save_pretrained(task["save"])
    for path in registry.DEMO_TOKENIZER.iterdir():
        shutil.copy(path, task["save"])
    return {"parameters": count(model)[0]}


def made(task: dict[str, Any]) -> Any:
    """The model with random bf16 weights, made on the device."""
    config = transformers.AutoConfig.for_model("qwen2", **MODELS[task["model"]])
    auto: Any = transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    with torch.device(task["device"]):
        return auto.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")


def measured(task: dict[str, Any]) -> dict[str, Any]:
    """Train for some seconds; the speed, the memory, and the difference of losses."""
    device, began = torch.device(task["device"]), time.perf_counter()
    flat = task["attention"].startswith("flash")
    collate = Collator(packed=True, pad=0, flat=flat)
    model = made(task)
    rows = packs(task["length"], model.config.vocab_size)
    batches = [tensors(collate([row]), device) for row in rows]
    exact = in_fp32(model, tensors(Collator(packed=True, pad=0)([rows[0]]), device))
    model.set_attn_implementation(task["attention"])
    model.config.use_cache = False
    config = TrainConfig("random", "", lora=LORA, gradient_checkpointing=task["checkpointing"])
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tuned = cast(tune(model, config, "", {}), torch.bfloat16).train()  # PEFT's adapters are fp32
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    first = of_tokens(tuned, batches[0])
    empty(device)
    made_in, began = time.perf_counter() - began, time.perf_counter()
    for batch in batches:
        step(tuned, batch, optimizer)
    wait(device)
    warm_in, began, steps = time.perf_counter() - began, time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < task["seconds"] or steps < PACKS:
        step(tuned, batches[steps % PACKS], optimizer)
        wait(device)
        steps += 1
    speed = steps * task["length"] / spent
    return {
        "tokens_per_second": speed, "share": share(tuned, rows, speed, device), "memory": peak(device),
        "steps": steps, "made_in": made_in, "warm_in": warm_in, "loss": float(first.mean()),
        "apart": None if exact is None else float((first - exact).abs().mean()),
        "loss_apart": None if exact is None else abs(float(first.mean() - exact.mean())),
    }  # fmt: skip


def packs(length: int, vocabulary: int) -> list[dict[str, Any]]:
    """Full packs of random sequences, all of whose tokens are trained."""
    rng, found = random.Random(0), []
    for number in range(PACKS):
        lengths: list[int] = []
        while (left := length - sum(lengths)) > 0:
            lengths.append(min(left, rng.randint(length // 16, length // 4)))
        ids = np.random.default_rng(number).integers(0, vocabulary, length)
        found.append(
            {"input_ids": ids, "labels": ids, "loss_weights": None, "seq_lens": lengths, "dataset": ["random"]}
        )
    return found


def in_fp32(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The losses of a batch with these weights in fp32; None where there is no memory for it."""
    try:
        with torch.no_grad():
            found: torch.Tensor | None = of_tokens(cast(model, torch.float32), batch)
    except torch.OutOfMemoryError:
        found = None
    cast(model, torch.bfloat16)  # they were bf16 numbers, so that nothing is lost
    return found


def of_tokens(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The losses of the trained tokens."""
    parts = loss_of(model, batch)
    return parts.losses[parts.weights > 0].cpu()


def cast(model: Any, dtype: torch.dtype) -> Any:
    """The model with parameters of this type, as DeepSpeed casts them: buffers, of which positions are made, stay."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def step(model: Any, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One step of one pack."""
    parts = loss_of(model, batch)
    (parts.loss_sum / parts.weight_sum).backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def share(model: Any, rows: list[dict[str, Any]], speed: float, device: torch.device) -> float | None:
    """The share of the device's peak in bf16; None where that is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if (most := throughput.peak_of(name)) is None:
        return None
    text = model.config
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    squares = sum(n * n for row in rows for n in row["seq_lens"]) / len(rows)
    attention = throughput.attention_flops(text.num_hidden_layers, width, squares)
    length = sum(rows[0]["seq_lens"])
    return throughput.step_flops(*throughput.multiplying(model, text), length, attention) * speed / length / most


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def empty(device: torch.device) -> None:
    """Count memory from here on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int | None:
    """The most bytes that tensors took."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


if __name__ == "__main__":
    main()
