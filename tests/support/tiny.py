"""Tiny random models, and batches of rows as a collator makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.set_num_threads(1)  # on more threads such small models are several times slower
Row = dict[str, Any]


def qwen2(vocabulary: int = 97, seed: int = 0, **settings: Any) -> Qwen2ForCausalLM:
    """A Qwen2 of 2 layers and 64 hidden units with random weights."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, intermediate_size=128, **sizes, **settings))


def lora(model: nn.Module, seed: int = 1, *, trained: bool = False, dropout: float = 0.0) -> PeftModel:
    """The model with a LoRA adapter on all linear layers. With `trained`, the adapter already changes the output."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout))
    if trained:
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
    return adapted


def strong_prefix(model: nn.Module, seed: int = 2) -> PeftModel:
    """The model with a random prefix that changes what it says."""
    prefixed = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    torch.manual_seed(seed)
    for name, parameter in prefixed.named_parameters():
        if "prompt_encoder" in name:
            nn.init.normal_(parameter, std=2.0)
    return prefixed.eval()


@torch.no_grad()
def greedy(model: nn.Module, ids: Sequence[int], count: int) -> list[int]:
    """The most likely next tokens, each from a forward pass over all before it."""
    found = torch.tensor([list(ids)])
    for _ in range(count):
        logits = model(input_ids=found, attention_mask=torch.ones_like(found), use_cache=False).logits
        found = torch.cat([found, logits[:, -1:].argmax(-1)], 1)
    return found[0, len(ids) :].tolist()


def row(ids: Sequence[int], prompt: int, weights: Sequence[float] | None = None, **more: Any) -> Row:
    """A row in which all tokens after the first `prompt` are trained."""
    labels = [-100] * prompt + list(ids[prompt:])
    return {"input_ids": list(ids), "labels": labels, "loss_weights": list(weights) if weights else None, **more}


def weights_of(given: Row) -> list[float]:
    return given["loss_weights"] or [float(label != -100) for label in given["labels"]]


def padded(rows: Sequence[Row], prefix: str = "", pad: int = 0) -> dict[str, Tensor]:
    """The batch of some rows, padded on the right."""
    longest = max(len(r["input_ids"]) for r in rows)

    def column(values: Sequence[Sequence[float]], fill: float) -> Tensor:
        return torch.tensor([[*v, *[fill] * (longest - len(v))] for v in values])

    return {
        f"{prefix}input_ids": column([r["input_ids"] for r in rows], pad),
        f"{prefix}labels": column([r["labels"] for r in rows], -100),
        f"{prefix}loss_weights": column([weights_of(r) for r in rows], 0.0),
        f"{prefix}position_ids": torch.arange(longest).repeat(len(rows), 1),
        f"{prefix}attention_mask": column([[1] * len(r["input_ids"]) for r in rows], 0),
    }


def packed(rows: Sequence[Row]) -> dict[str, Tensor]:
    """The batch of one pack of some rows."""
    return {
        "input_ids": torch.tensor([[i for r in rows for i in r["input_ids"]]]),
        "labels": torch.tensor([[i for r in rows for i in r["labels"]]]),
        "loss_weights": torch.tensor([[w for r in rows for w in weights_of(r)]]),
        "position_ids": torch.cat([torch.arange(len(r["input_ids"])) for r in rows])[None],
    }
