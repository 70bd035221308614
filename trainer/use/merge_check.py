"""Whether a merged model holds every adapter, layer by layer: its weight is W + s*BA within the rounding of 32 bits.

What W + s*BA does to a vector of ones and minus ones is computed from the adapter's file, in 64 bits and without PEFT,
and compared with what the merged weight does to it. A missing adapter, another scaling or another base is seen in the
layer it is in, while predictions may hardly change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_ROUNDING = 2.0**-23
Tensor = torch.Tensor


class MergeCheck:
    """The expected effect of every merged weight, found before an adapter is merged."""

    def __init__(self, model: Any, adapter: Path, settings: dict[str, Any]) -> None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        named = {name.removeprefix("base_model.model."): tensor.double() for name, tensor in tensors.items()}
        # Beside an adapter of embeddings PEFT saves these too.
        self._saved = {name: tensor for name, tensor in named.items() if not re.search(r"\.(lora_|base_layer\.)", name)}
        self._expected: dict[str, tuple[Tensor, Tensor]] = {}
        if settings.get("use_dora"):  # it scales by norms of rows, which no single vector shows
            return
        rank = settings["r"]
        scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        for path, a, b in _pairs(named):
            layer = model.get_base_model().get_submodule(path)
            inner, parameter = layer.get_base_layer(), getattr(layer, "parameter_name", "weight")
            weight = getattr(inner, parameter).detach()
            if weight.dim() == 3:
                a, b = _of_experts(a, b, len(weight), rank)
                if getattr(inner, "is_transposed", False):
                    a, b = b.transpose(1, 2), a.transpose(1, 2)
            owner = path.removesuffix(".base_layer")  # of the first of two parameters of one module
            self._expected[f"{owner}.{parameter}"] = _effect(weight, a, b, scale)

    def differing(self, merged: Any) -> list[str]:
        """The names of weights that are not what they must be; those of layers that were trained whole, too."""
        found = []
        for name, (wanted, allowed) in self._expected.items():
            weight = merged.get_parameter(name).detach().double()
            if not bool(((weight @ _vector(weight.shape[-1]) - wanted).abs() <= allowed).all()):
                found.append(name)
        for name, tensor in self._saved.items():
            if not torch.equal(merged.get_parameter(name).detach().double(), tensor):
                found.append(name)
        return found


def _pairs(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (path, A, B) for every adapted layer; for an embedding as if it were a linear layer."""
    for name, tensor in tensors.items():
        if name.endswith(".lora_A.weight"):
            yield name.removesuffix(".lora_A.weight"), tensor, tensors[name.replace(".lora_A.", ".lora_B.")]
        elif name.endswith(".lora_embedding_A"):
            other = tensors[name.replace(".lora_embedding_A", ".lora_embedding_B")]
            yield name.removesuffix(".lora_embedding_A"), other.T, tensor.T


def _of_experts(a: Tensor, b: Tensor, experts: int, rank: int) -> tuple[Tensor, Tensor]:
    """A and B of every expert, [experts, rank, in] and [experts, out, rank]."""
    return a.reshape(experts, rank, -1), b.reshape(b.shape[0], rank, experts).permute(2, 0, 1)


def _vector(width: int) -> Tensor:
    drawn = torch.Generator().manual_seed(width)
    return torch.randint(0, 2, (width,), generator=drawn).double() * 2 - 1


def _effect(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(W + s*BA) x, and how far rounding each number of it to 32 bits can lead from that."""
    vector = _vector(weight.shape[-1])
    base, down = weight.double(), a @ vector
    effect = base @ vector + scale * (b @ down[..., None])[..., 0]
    sizes = base.abs().sum(-1) + (a.shape[-2] + 2) * scale * (b.abs() @ a.abs().sum(-1)[..., None])[..., 0]
    return effect, _ROUNDING * sizes + 1e-30
