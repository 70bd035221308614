"""What the estimate of memory needs to know of a plan: the parameters, the settings, the largest micro batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from trainer.config import zero
from trainer.models import tune
from trainer.models.wrappers import transformers_model
from trainer.run import attention, estimate, probe
from trainer.run.plan import LOOKED_AT, RunPlan


@dataclass(frozen=True)
class Counts:
    """Parameters of a model, as it is trained."""

    all: int
    trained: int
    linear: int
    """Those in frozen linear layers but the head: quantization_bit quantizes them."""
    head_norms: bool
    """Whether queries and keys are normalised."""


def count(plan: RunPlan) -> Counts:
    """Count the parameters of the plan's model without loading its weights."""
    lora = replace(plan.config.lora, init_lora_weights=True)
    bare = replace(plan.config, quantization_bit=None, lora=lora)
    with torch.device("meta"):
        model = tune.tune(plan.source.made(), bare, plan.where, plan.source.module_names)
    head = transformers_model(model).get_output_embeddings()
    layers = [one.weight for one in model.modules() if isinstance(one, nn.Linear) and one is not head]
    total, trained = tune.count(model)
    return Counts(
        total, trained, sum(weight.numel() for weight in layers if not weight.requires_grad),
        any(name.endswith("q_norm.weight") for name, _ in model.named_parameters()),
    )  # fmt: skip


def memory(plan: RunPlan, counts: Counts) -> dict[str, int]:
    """The estimate of a plan's memory on each device, in bytes by part, and their sum, `all`."""
    shape = estimate.ModelShape.of(plan.source.text_config, head_norms=counts.head_norms)
    return estimate.estimate(shape, use(plan, counts))


def use(plan: RunPlan, counts: Counts) -> estimate.Use:
    """What the estimate of a plan's memory is made of."""
    c, section = plan.config, plan.deepspeed.get("zero_optimization", {})
    (tokens, trained), rows = _largest(plan), plan.micro
    bits, again = c.quantization_bit, c.gradient_checkpointing_kwargs if c.gradient_checkpointing else {}
    return estimate.Use(
        parameters=counts.all, trained=counts.trained,
        tokens=rows * tokens, trained_tokens=rows * trained,
        longest=rows * tokens if plan.flat else tokens // len(_sides(plan)),
        weight_bytes=plan.dtype.itemsize, tuning=c.tuning,
        dropout=c.tuning == "lora" and c.lora.lora_dropout > 0,
        quantized=counts.linear if bits else 0,
        bits=16 if not bits else estimate.BITS_TWICE if c.bnb_4bit_use_double_quant else estimate.BITS[bits],
        processes=plan.device.world, zero_stage=zero.stage(plan.deepspeed),
        bucket=_elements(section, "reduce_bucket_size", _bucket(plan, counts), plan),
        live=_elements(section, "stage3_max_live_parameters", estimate.LIVE, plan),
        accumulates=plan.accumulation > 1, recomputed=again.get("every_n_layers", 1) if c.gradient_checkpointing else 0,
        masked=attention.mask_bytes(plan, 1) > 0, eager=plan.attention.name == "eager",
        whole_logits=_whole_logits(plan), activations_on_host=again.get("offload", False),
        state_bytes=2 if "8bit" in plan.optimizer else 8,
        optimizer_on_host=_on_host(section, "offload_optimizer"), weights_on_host=_on_host(section, "offload_param"),
        update_bytes=0 if plan.optimizer != "adamw_torch" else 8 if plan.device.kind == "cpu" else 4,
    )  # fmt: skip


def _whole_logits(plan: RunPlan) -> bool:
    """Whether the logits of a pass are not computed in chunks (trainer/run/probe.py)."""
    return zero.stage(plan.deepspeed) == 3 or not probe.wants_chunks(plan)


def _sides(plan: RunPlan) -> tuple[str, ...]:
    """The sides of a row that its length counts."""
    return tuple(side for side in plan.objective.sides if side != "kl_")


def _largest(plan: RunPlan) -> tuple[int, int]:
    """(tokens, trained tokens) of the longest row and of the one with most trained tokens, among the first rows."""
    count = min(len(plan.train), LOOKED_AT)
    last, inside = plan.train.find(count - 1)
    trained = [plan.train.batch(number).column("num_trained").to_numpy() for number in range(last + 1)]
    trained[-1] = trained[-1][: inside + 1]
    return plan.longest_row, max(int(one.max()) for one in trained)


def _bucket(plan: RunPlan, counts: Counts) -> int:
    """DeepSpeed's bucket where its configuration sets none (trainer/run/deepspeed.py)."""
    return estimate.BUCKET if zero.stage(plan.deepspeed) == 3 else min(estimate.BUCKET, counts.trained)


def _elements(section: dict[str, Any], key: str, default: int, plan: RunPlan) -> int:
    """A size of the DeepSpeed configuration; auto is the square of the hidden size, as the trainer fills it in."""
    given = section.get(key, default)
    return int(getattr(plan.source.text_config, "hidden_size", 4096)) ** 2 if given == zero.AUTO else int(given)


def _on_host(section: dict[str, Any], key: str) -> bool:
    """Whether DeepSpeed's configuration moves something off the device."""
    return (section.get(key) or {}).get("device", "none") != "none"
