"""The trained part of a model: LoRA, a prefix, or the parameters that are not frozen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from schemas.errors import UsageError, nearest
from schemas.limits import TimeLimitError, limited
from trainer.config.config import TrainConfig
from trainer.models import experts, initial, parts

_SECONDS = 5.0
"""Seconds of processor time that a pattern may take for a name."""
Names = Mapping[str, tuple[str, ...]]
"""Names of modules that users know -> those in the native class of the model."""


def tune(model: Any, config: TrainConfig, where: str, names: Names) -> nn.Module:
    """Add adapters or a prefix to a model, or freeze some of its parameters."""
    frozen = parts.frozen(model, config, where)
    if config.neftune_noise_alpha is not None:
        from trainer.models import noise

        noise.add(model, config.neftune_noise_alpha)
    if config.tuning == "full":
        _freeze(model, config, frozen, where)
        return model
    import peft

    if config.quantization_bit:
        prepare: Any = peft.prepare_model_for_kbit_training  # untyped
        model = prepare(model, use_gradient_checkpointing=False)
    if config.tuning == "lora":
        tuner: Any = _lora(model, config, frozen, where, names)
    else:
        tuner = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=config.prefix.num_virtual_tokens,
            prefix_projection=config.prefix.prefix_projection,
            encoder_hidden_size=model.config.get_text_config().hidden_size,
        )
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
    try:
        tuned = peft.get_peft_model(model, tuner)
    except ValueError as error:  # of a module that PEFT has no adapter for, before anything is changed
        raise UsageError(f"{where}#/{config.tuning}", f"PEFT refuses it: {str(error).splitlines()[0]}") from error
    if initial.changes_base(config):
        initial.remember(tuned)
    return tuned


def _freeze(model: nn.Module, config: TrainConfig, parts_frozen: list[str], where: str) -> None:
    names = [name for name, _ in model.named_parameters()]
    for key, patterns in (("freeze", config.freeze), ("trainable", config.trainable)):
        for pattern in patterns:
            if not any(_search(pattern, name, f"{where}#/{key}") for name in names):
                what = f"no parameter's name matches {pattern!r}"
                raise UsageError(f"{where}#/{key}", what, nearest(pattern, _parts(names)))
    for name, parameter in model.named_parameters():
        frozen = any(_search(pattern, name, f"{where}#/freeze") for pattern in config.freeze)
        frozen |= bool(config.trainable) and not any(
            _search(pattern, name, f"{where}#/trainable") for pattern in config.trainable
        )
        frozen |= any(re.fullmatch(pattern, name) for pattern in parts_frozen)
        parameter.requires_grad_(not frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"{where}#/freeze", "nothing is left to train", "Freeze fewer parameters.")


def _search(pattern: str, name: str, where: str) -> bool:
    try:
        with limited(_SECONDS):
            return re.search(pattern, name) is not None
    except TimeLimitError as error:
        what = f"{pattern!r} takes more than {_SECONDS:g} seconds for the name {name}"
        raise UsageError(where, what, "Write it without one repetition in another, as in (a+)+.") from error
    except re.error as error:
        raise UsageError(where, f"{pattern!r} is not a regular expression: {error}") from error


def _parts(names: list[str]) -> set[str]:
    return {part for name in names for part in name.split(".") if not part.isdigit()}


def _lora(model: Any, config: TrainConfig, parts_frozen: list[str], where: str, names: Names) -> Any:
    import peft

    asked, found = _asked(config), targets(model, config, where, names)
    if found and found.left and not found.modules + found.parameters:
        what = experts.remarks(found, config)[0]
        raise UsageError(f"{where}#/lora/target_modules", what, "Name other modules, or change that setting.")
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), None)
    skipped = [*parts_frozen, *([re.escape(head)] if head and head.rpartition(".")[2] not in asked else [])]
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM", "r": config.lora.r, "lora_alpha": config.lora.lora_alpha,
        "lora_dropout": config.lora.lora_dropout, "target_modules": found.modules if found else None,
        "target_parameters": found.parameters or None if found else None,
        "exclude_modules": "|".join(skipped) or None, "modules_to_save": config.lora.modules_to_save or None,
        "use_rslora": config.lora.use_rslora, "use_dora": config.lora.use_dora,
        "init_lora_weights": config.lora.init_lora_weights,
    }  # fmt: skip
    if found is None and model.config.model_type not in peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        what = f"PEFT has no default for {model.config.model_type} models"
        raise UsageError(f"{where}#/lora/target_modules", what, "Name the modules, or use all.")
    for name in config.lora.modules_to_save:
        if not any(path.rpartition(".")[2] == name for path, _ in model.named_modules()):
            known = {path.rpartition(".")[2] for path, _ in model.named_modules()}
            raise UsageError(f"{where}#/lora/modules_to_save", f"no module is called {name!r}", nearest(name, known))
    return peft.LoraConfig(**settings)


def _asked(config: TrainConfig) -> list[str]:
    asked = config.lora.target_modules
    return [asked] if isinstance(asked, str) else list(asked)


def targets(model: Any, config: TrainConfig, where: str, names: Names) -> experts.Targets | None:
    """What of a model LoRA adapts; None = what PEFT chooses."""
    asked = _asked(config)
    if asked == ["default"]:
        return None
    modules = {name for one in asked for name in _targets(model, one, where, names)}
    return experts.targets(model, config, asked, modules)


def _targets(model: Any, asked: str, where: str, names: Names) -> Iterator[str]:
    """Yield module names for one element of target_modules."""
    yield from names.get(asked, ())
    if asked in names and not any(path.endswith(f".{asked}") for path, _ in model.named_modules()):
        return
    linear = {path.rpartition(".")[2] for path, module in model.named_modules() if _is_linear(module)}
    if asked == "all":
        head = model.get_output_embeddings()
        # PEFT matches every module whose path ends with a name: "proj" may be a linear layer here, a convolution there
        others = {path.rpartition(".")[2] for path, module in model.named_modules() if not _is_linear(module)}
        for path, module in model.named_modules():
            if _is_linear(module) and module is not head:
                name = path.rpartition(".")[2]
                yield path if name in others or name.isdigit() else name
    elif asked == "embeddings":
        embeddings = model.get_input_embeddings()
        yield next(path.rpartition(".")[2] for path, module in model.named_modules() if module is embeddings)
    elif any(path == asked or path.endswith(f".{asked}") for path, _ in model.named_modules()):
        yield asked
    elif asked not in experts.FUSED or not experts.found(model):
        pointer = f"{where}#/lora/target_modules"
        raise UsageError(pointer, f"no module is called {asked!r}", nearest(asked, linear | {"all", "embeddings"}))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)  # the layers of bitsandbytes are subclasses


def count(model: nn.Module) -> tuple[int, int]:
    """(parameters, trained parameters), with those that ZeRO-3 has sharded counted in full."""
    sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
