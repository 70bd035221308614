"""The attention of a run: the fastest kernel that the device, the model and the precision can have, and why it is that.

Packs decide most: FlashAttention is told where sequences begin, flex attention leaves out the blocks between them, and
`sdpa` takes a mask of T x T numbers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from schemas.errors import UsageError
from trainer.device import Device
from trainer.models.folder import ModelFolder
from trainer.run.estimate import ModelShape

if TYPE_CHECKING:
    from trainer.run.plan import RunPlan

AUTO = "auto"
FLASH = {
    "flash_attention_2": ("flash-attn", 8, 99),
    "flash_attention_3": ("flash-attn-3", 9, 9),
    "flash_attention_4": ("flash-attn-4", 9, 99),
}
"""Name -> its package, and the first and last major compute capability of CUDA devices that it is for."""
_HEAD = 256
"""Numbers that a head may have at most, by the README of flash-attn."""
NOTED = 2**28
"""Bytes of a mask from which on a note says how large it is: that of 16,384 x 16,384 positions."""


@dataclass(frozen=True)
class Attention:
    """What computes attention."""

    name: str
    """As Transformers calls it."""
    why: str
    asked: str | None
    """What the model is loaded with; None = what the model takes by itself, which has the name."""

    @property
    def is_flash(self) -> bool:
        """Whether it is FlashAttention, which is told where the sequences of a flat batch begin."""
        from transformers.utils.generic import is_flash_attention_requested

        return bool(is_flash_attention_requested(None, self.name))

    @property
    def in_words(self) -> str:
        """Its name and the reason."""
        return f"{self.name}: {self.why}"

    def record(self) -> dict[str, Any]:
        """The contents of run.json about it."""
        return {"name": self.name, "why": self.why}


def choose(source: ModelFolder, asked: str, device: Device, where: str, *, half: bool, packed: bool) -> Attention:
    """The attention that is asked for, or of `auto` the first that can be had.

    UsageError for one that this machine, model or precision cannot have; it names the nearest that can be.
    """
    if asked != AUTO:
        if (lack := lacks(asked, device, half=half)) or (lack := _refused(source, asked)):
            nearest = choose(source, AUTO, device, where, half=half, packed=packed)
            hint = f"Leave it out (auto is {nearest.name} here), or provide what it needs."
            raise UsageError(f"{where}#/attn_implementation", f"{asked!r} cannot be used: {lack}", hint)
        return Attention(asked, "as the configuration asks", asked)
    passed: list[str] = []
    for name in _candidates(device, packed=packed):
        if not (lack := lacks(name, device, half=half)) and not (lack := _refused(source, name)):
            return Attention(name, "; ".join([_WHY[name], *passed]), name)
        passed.append(f"{name} cannot be used: {lack}")
    with torch.device("meta"):
        own = source.made().config._attn_implementation
    why = "; ".join(passed) or ("the fastest that trains on a CPU" if own == "sdpa" else "the model has no other")
    return Attention(own, why, None)


def _candidates(device: Device, *, packed: bool) -> Iterator[str]:
    if device.kind == "cuda":
        yield from ("flash_attention_3", "flash_attention_2")
        if packed:
            yield "flex_attention"
    if device.kind == "npu":
        yield "flash_attention_2"


_WHY = {
    "flash_attention_2": "FlashAttention reads no padding and needs no mask",
    "flash_attention_3": "FlashAttention reads no padding and needs no mask",
    "flex_attention": "it leaves out the blocks between the sequences of a pack, where sdpa takes a mask of T x T",
}


def lacks(name: str, device: Device, *, half: bool) -> str | None:
    """What the machine or the precision lacks for a kernel; None = nothing that can be seen before it is tried."""
    if name.startswith("flash_attention") or "/" in name:
        if device.kind == "cpu":
            return "it has no kernel for a CPU"
        if not half:
            return "it computes in bf16 or fp16, and this run in 32 bits"
    if name == "flex_attention":
        if device.kind != "cuda":
            return f"on {device.kind} it has no backward pass, and training needs one"
        if importlib.util.find_spec("triton") is None:
            return "torch compiles it, and triton is not installed"
    if device.kind == "cuda" and name in FLASH:
        package, first, last = FLASH[name]
        found = torch.cuda.get_device_capability(device.local_rank)[0]
        if not first <= found <= last:
            return f"{device.name} has compute capability {found}, and it is for {first}"
        # With the package `kernels` Transformers would download one from the hub, which only its own name asks for.
        if not _is_installed(name):
            return f"{package} is not installed (a kernel of the hub is used if its name is given)"
    return None


def _is_installed(name: str) -> bool:
    from transformers.utils import import_utils as libraries

    found = getattr(libraries, f"is_flash_attn_{name[-1]}_available", None)  # an earlier version knows fewer
    return found is not None and bool(found())


def _refused(source: ModelFolder, name: str) -> str | None:
    """Why a model cannot have a kind of attention, most often by Transformers; None if it can."""
    size = ModelShape.of(source.text_config).head_dim
    if name in FLASH and size > _HEAD:
        return f"the model's heads have {size} numbers, and it takes {_HEAD} at most"
    try:
        with torch.device("meta"):
            source.made(attn_implementation=name)
    except (ImportError, ValueError, OSError) as error:
        return str(error).strip().splitlines()[0]
    return None


def mask_bytes(plan: RunPlan, positions: int) -> int:
    """Bytes of the mask of a pass with rows of so many positions; 0 where none is made."""
    needs = plan.attention.name in ("sdpa", "eager") and (plan.set.is_packed or plan.micro > 1)
    return plan.micro * positions * positions if needs else 0
