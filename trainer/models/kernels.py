"""What makes the layers of a model faster: Liger's kernels in place of its own, and torch.compile.

The loss stays the trainer's own, so that the weight of every token counts as without them.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from schemas.errors import UsageError
from trainer.config.config import TrainConfig
from trainer.device import Device

AUTO = "auto"
_PARTS = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""What of Liger is left out: the loss, of which its kernels would make a plain mean."""


@dataclass(frozen=True)
class Kernels:
    """What the layers of a model are made of."""

    liger: bool
    compiled: bool
    why: str
    """Why Liger's kernels are not used; empty where they are."""

    @property
    def in_words(self) -> str:
        """For a line of the log."""
        layers = "Liger's norms, rotations and gated layers" if self.liger else f"the model's own layers ({self.why})"
        return f"{layers}{', compiled by torch' if self.compiled else ''}"

    def record(self) -> dict[str, Any]:
        """The contents of run.json about them."""
        return asdict(self)


def choose(config: TrainConfig, source: Any, device: Device, stage: int, where: str) -> Kernels:
    """The kernels that are asked for; UsageError for those that cannot be had here."""
    asked = config.use_liger_kernel
    lack = "use_liger_kernel is false" if asked is False else _lacks(source, device)
    if asked is True and lack:
        raise UsageError(f"{where}#/use_liger_kernel", lack, "Leave it out: the model's own layers do the same.")
    if config.torch_compile and (what := _cannot_compile(device, stage)):
        raise UsageError(f"{where}#/torch_compile", what, "Set it to false.")
    if again := {name for name in config.gradient_checkpointing_kwargs if name != "use_reentrant"}:
        _check_again(again, config, device, f"{where}#/gradient_checkpointing_kwargs")
    return Kernels(liger=not lack, compiled=config.torch_compile, why=lack or "")


def _lacks(source: Any, device: Device) -> str | None:
    if device.kind == "cpu":
        return "Liger's kernels are Triton's, which a CPU does not run"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    try:
        from liger_kernel.transformers import monkey_patch
    except ImportError as error:  # without triton
        return f"liger-kernel cannot be imported: {error}"
    kind = source.config.model_type
    return (
        None
        if kind in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN
        else f"Liger has no kernels for models of the type {kind}"
    )


def _cannot_compile(device: Device, stage: int) -> str | None:
    if stage == 3:
        return "ZeRO-3 gathers weights between the layers' parts, which torch.compile does not see"
    if device.kind == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "for a CPU torch compiles with g++, which is not installed"
    if device.kind == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch compiles for CUDA with triton, which is not installed"
    return None


def _check_again(asked: set[str], config: TrainConfig, device: Device, where: str) -> None:
    """Raise for what cannot be asked of layers that are computed again."""
    import transformers

    if not hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable"):
        what = f"Transformers {transformers.__version__} does not have it"
        raise UsageError(f"{where}/{min(asked)}", what, "Upgrade transformers, or leave it out.")
    if config.gradient_checkpointing_kwargs.get("offload") and device.kind == "cpu":
        raise UsageError(f"{where}/offload", "on a CPU all is in the host's memory already", "Leave it out.")


def replace(model: nn.Module) -> None:
    """Put Liger's kernels into a Transformers model, before it is wrapped."""
    from transformers.integrations.liger import apply_liger_kernel

    apply: Any = apply_liger_kernel  # untyped
    apply(model, _PARTS)


def compile_layers(model: nn.Module, config: TrainConfig) -> None:
    """Compile each layer in place: all have one shape, so that one compilation serves them.

    What has no layers of Transformers' kind is compiled as a whole.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers or [model]:
        layer.compile(backend=config.torch_compile_backend, mode=config.torch_compile_mode)
