"""The speed of a run: tokens, arithmetic as a share of the device's peak, memory, and waiting for rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

import registry
from trainer.device import Device
from trainer.run.estimate import ModelShape
from trainer.run.plan import RunPlan

_EXPERTS = re.compile(r"\.experts\.")


def step_flops(parameters: float, trained: float, tokens: float, attention: float) -> float:
    """The operations of a step: multiplications and additions, each counted as one.

    A weight takes 2 for each token in the forward pass, 2 in the backward pass for the gradient of its input, and 2
    more if it is trained (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). LoRA trains few, so that a step takes
    little more than 4 for each weight, where a full one takes 6. `parameters` are those that multiply every token: all
    but the input embeddings, and of experts as many as a token has. `attention` is added as it is. Layers that are
    computed again are not counted.
    """
    return (4 * parameters + 2 * trained) * tokens + attention


def attention_flops(layers: int, width: int, squares: float) -> float:
    """The operations of attention, with `squares` the sum of the squared lengths of sequences.

    The two products take 4 x width (heads x size of a head) for each pair of a token and one before it, of which a
    sequence has half its squared length, and the backward pass twice as many: 6 x layers x width x length^2 (Chowdhery
    et al. 2022, arXiv 2204.02311, appendix B, where all pairs are counted).
    """
    return 6.0 * layers * width * squares


def peak_of(name: str) -> float | None:
    """The operations a second that a device can do at most in half precision; None for one not in the table."""
    words = set(re.split(r"[^0-9A-Za-z]+", name))
    found = (one["tflops"] * 1e12 for one in registry.devices() if words.issuperset(one["words"]))
    return next(found, None)


def multiplying(model: nn.Module, config: Any) -> tuple[float, float]:
    """(parameters that multiply every token, those of them that are trained), of a model that may be split."""
    text = config.get_text_config()
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    share = getattr(text, "num_experts_per_tok", experts) / experts if experts else 1.0
    tied = getattr(config, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False)
    inside = set() if tied else {id(p) for p in _looked_up(model)}  # tied ones multiply, as the head
    total = trained = 0.0
    for name, parameter in model.named_parameters():
        if id(parameter) in inside:
            continue
        # A weight of 4 bits holds two numbers in a byte.
        size = float(getattr(parameter, "ds_numel", parameter.numel())) * _packed(parameter)
        size *= share if _EXPERTS.search(name) else 1.0
        total += size
        trained += size if parameter.requires_grad else 0.0
    return total, trained


def _looked_up(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters(recurse=False)


def _packed(parameter: nn.Parameter) -> int:
    return 2 if type(parameter).__name__ == "Params4bit" else 1


@dataclass
class Throughput:
    """The speed of a run in its first process, step by step."""

    parameters: float
    trained: float
    layers: int
    width: int
    peak: float | None
    """Operations a second of all devices together; None = unknown."""
    device: Device
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    saving: float = 0.0
    flops: float = 0.0

    @classmethod
    def of(cls, plan: RunPlan, model: nn.Module) -> Throughput:
        """The meter of a run with this model."""
        shape = ModelShape.of(plan.source.text_config)
        given = plan.config.peak_tflops
        half = plan.bf16 or plan.fp16
        peak = given * 1e12 if given else peak_of(plan.device.name) if half else None
        world = plan.device.world
        return cls(
            *multiplying(model, plan.source.config), shape.layers, shape.queries,
            None if peak is None else peak * world, plan.device,
        )  # fmt: skip

    def step(self, tokens: int, trained: int, squares: float, seconds: float, waited: float) -> dict[str, Any]:
        """Add a step; return what log.jsonl says about it."""
        flops = step_flops(self.parameters, self.trained, tokens, attention_flops(self.layers, self.width, squares))
        self.tokens += tokens
        self.trained_tokens += trained
        self.seconds += seconds
        self.waited += waited
        self.flops += flops
        times = {"seconds": round(seconds, 4), "data_seconds": round(waited, 4)}
        return self._said(tokens, trained, flops, seconds) | times

    def summary(self) -> dict[str, Any]:
        """What the summary of the run says; nothing of a run without steps."""
        if not self.seconds:
            return {}
        said = self._said(self.tokens, self.trained_tokens, self.flops, self.seconds)
        times = {"seconds": self.seconds, "data_seconds": self.waited, "save_seconds": self.saving}
        return said | {name: round(value, 3) for name, value in times.items()}

    def _said(self, tokens: int, trained: int, flops: float, seconds: float) -> dict[str, Any]:
        said: dict[str, Any] = {
            "tokens_per_second": round(tokens / seconds, 1),
            "trained_tokens_per_second": round(trained / seconds, 1),
            "memory_peak": self.device.memory_peak(),
        }
        if self.peak:
            said["share_of_peak"] = round(flops / seconds / self.peak, 4)
        return said


def in_words(record: dict[str, Any]) -> str:
    """The numbers of a record that a line has beside the tokens a second."""
    said = [f"({record['trained_tokens_per_second']:,.0f} trained)"]
    if "share_of_peak" in record:
        said.append(f"{record['share_of_peak']:.1%} of peak")
    said.append(f"{record['memory_peak'] / 2**30:.1f} GiB")
    if record["data_seconds"] > record["seconds"] / 10:
        said.append(f"waited {record['data_seconds']:.1f} s for rows")
    return "  ".join(said)
