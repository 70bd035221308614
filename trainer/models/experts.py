"""LoRA on fused experts: in a model of many experts they are parameters of three dimensions, and no linear layers.

PEFT adapts them as `target_parameters`: one adapter for all gates and inputs of a layer's experts (`gate_up_proj`), one
for their outputs (`down_proj`), of rank r for every expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from trainer.config.config import TrainConfig

FUSED = {
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "gate_up_proj": "gate_up_proj", "down_proj": "down_proj",
    "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj",
}  # fmt: skip
"""Names of an expert's layers -> the parameter that holds those of all experts."""
_TAKEN = {*FUSED, "gate"}
"""Names that PEFT takes for those of experts and routers, so that layers of these names have to be parameters too."""


@dataclass(frozen=True)
class Targets:
    """What of a model gets an adapter."""

    modules: list[str]
    """Names of layers, or paths."""
    parameters: list[str]
    """Paths of parameters."""
    left: list[str]
    """Paths of parameters that were asked for and get none."""


def found(model: nn.Module) -> list[str]:
    """The paths of fused experts: parameters of three dimensions in a module called `experts`."""
    return [
        path
        for path, parameter in model.named_parameters()
        if path.split(".")[-2:-1] == ["experts"] and len(getattr(parameter, "ds_shape", parameter.shape)) == 3
    ]


def targets(model: nn.Module, config: TrainConfig, asked: Iterable[str], modules: Iterable[str]) -> Targets:
    """Layers and parameters to adapt: `modules`, and the experts that the names of `asked` mean."""
    fused, asked = found(model), set(asked)
    if not fused:
        return Targets(sorted(modules), [], [])
    wanted = set(FUSED.values()) if "all" in asked else {FUSED[name] for name in asked & FUSED.keys()}
    parameters = [path for path in fused if path.rpartition(".")[2] in wanted]
    taken = {name for name in modules if name.rpartition(".")[2] in _TAKEN}
    weights = list(_weights(model, taken))
    kept = sorted(set(modules) - taken)
    if _obstacle(config):
        return Targets(kept, [], parameters + weights)
    if config.quantization_bit:  # experts are not, layers are
        return Targets(kept, parameters, weights)
    return Targets(kept, parameters + weights, [])


def _weights(model: nn.Module, names: set[str]) -> Iterator[str]:
    for path, module in model.named_modules():
        if hasattr(module, "weight") and (path in names or path.rpartition(".")[2] in names):
            yield f"{path}.weight"


def _obstacle(config: TrainConfig) -> str | None:
    """The setting with which PEFT adapts no parameters; None = it does."""
    if config.lora.lora_dropout:
        return "lora.lora_dropout"
    return "lora.use_dora" if config.lora.use_dora else None


def remarks(targets: Targets, config: TrainConfig) -> list[str]:
    """What the user should know of the adapters of experts."""
    said = []
    if targets.parameters:
        said.append(
            f"the experts are adapted: {_names(targets.parameters)}, as parameters, with rank {config.lora.r} for each "
            "expert (gate and up together)" + (", and not quantized" if config.quantization_bit else "")
        )
    if targets.left:
        why = "quantized layers with names of experts, for which PEFT has no adapter"
        why = f"PEFT adapts parameters only without {_obstacle(config)}" if _obstacle(config) else why
        said.append(f"not adapted: {_names(targets.left)}; {why}")
    return said


def _names(paths: Iterable[str]) -> str:
    """The paths of parameters, shortened: their last parts, in the order of their first layers."""
    return ", ".join(dict.fromkeys(".".join(path.removesuffix(".weight").split(".")[-2:]) for path in paths))
