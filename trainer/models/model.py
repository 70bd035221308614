"""The model: transformers' own class, safetensors only, with what is to be trained made trainable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from schemas.errors import InputError, UsageError, nearest
from trainer.config.config import TrainConfig
from trainer.device import Device

VISION = ("visual", "vision", "vision_tower", "vision_model")
"""What the vision tower's module is called, in one model or another."""


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk."""

    folder: Path
    config: Any
    """transformers' configuration."""
    record: dict[str, Any]
    """What a checkpoint says of it: name, revision, and the digest of remote code where that is run."""

    @property
    def text_config(self) -> Any:
        """The configuration of the language model in it."""
        return self.config.get_text_config()


def find(config: TrainConfig) -> ModelFolder:
    """Return the model that a configuration names, nothing of its weights loaded; UsageError where there is none."""
    import transformers

    name, revision = config.model_name_or_path, config.model_revision
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(name, revision, config.trust_remote_code)
    if not (folder / "config.json").is_file():
        raise UsageError(
            str(folder), "there is no config.json: not a model's folder", "Point at the folder of a model."
        )
    if not any(folder.glob("*.safetensors")):
        other = next((p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")), None)
        what = f"its weights are in {other}, which can run code when it is read" if other else "there are no weights"
        hint = "Convert it: model.save_pretrained(DIR, safe_serialization=True) in an environment you trust."
        raise UsageError(str(folder), f"no *.safetensors; {what}", hint if other else "Download the model again.")
    record: dict[str, Any] = {"model": name, "revision": revision, "trust_remote_code": config.trust_remote_code}
    if config.trust_remote_code:
        record["remote_code"] = {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.py"))
        }
    try:
        loaded = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(
            str(folder / "config.json"), f"transformers does not know this model: {str(error).splitlines()[0]}",
            "If it comes with its own code and you trust that: trust_remote_code: true.",
        ) from error  # fmt: skip
    return ModelFolder(folder, loaded, record)


def _download(name: str, revision: str | None, remote_code: bool) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(f"model_name_or_path: {name}", "no such folder", "Give the model's folder, or a hub id.")
    if remote_code and not re.fullmatch("[0-9a-f]{40}", revision or ""):
        what = "code from a hub is run only from a fixed commit"
        raise UsageError("model_revision", what, "Set it to the full hash of a commit you have looked at.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf"]))
    except Exception as error:  # each failure of the client is one thing to the user
        raise InputError(
            f"model_name_or_path: {name}", f"no such folder, and not downloaded: {str(error).splitlines()[0]}",
            "Give the model's folder.",
        ) from error  # fmt: skip


def load(source: ModelFolder, config: TrainConfig, device: Device, dtype: torch.dtype, where: str) -> nn.Module:
    """Return the model in training form: adapters added or parameters frozen, gradient checkpointing as asked."""
    torch.manual_seed(config.seed)  # new weights: adapters and prefixes
    settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.trust_remote_code, "use_safetensors": True}
    if config.attn_implementation:
        settings["attn_implementation"] = config.attn_implementation
    if config.quantization_bit:
        settings |= _bits(config.quantization_bit, dtype, device)
    try:
        model = auto_class(source).from_pretrained(source.folder, **settings)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(str(source.folder), f"cannot be loaded: {str(error).splitlines()[0]}") from error
    model.config.use_cache = False
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            what = f"{type(model).__name__} has none"
            raise UsageError(f"{where}#/gradient_checkpointing", what, "Leave it out.")
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return tune(model, config, where)


def auto_class(source: ModelFolder) -> Any:
    """Return transformers' class that knows the class of this model."""
    import transformers

    names = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    sees = source.config.model_type in names and hasattr(source.config, "vision_config")
    return transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM


def _bits(bits: int, dtype: torch.dtype, device: Device) -> dict[str, Any]:
    import transformers

    where = f"quantization_bit: {bits}"
    try:
        import bitsandbytes
    except ImportError:
        what = "bitsandbytes is not installed"
        raise UsageError(where, what, "pip install bitsandbytes, or leave quantization_bit out.") from None
    supported = getattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    if device.kind not in supported:
        what = f"bitsandbytes {bitsandbytes.__version__} does not support {device.kind}"
        raise UsageError(where, what, "Leave it out, or train on one of: " + ", ".join(sorted(supported)))
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    kind: Any = transformers.BitsAndBytesConfig  # untyped
    quantization = kind(**(four if bits == 4 else {"load_in_8bit": True}))
    return {"quantization_config": quantization, "device_map": {"": device.torch}}


# -- what is trained --


def tune(model: Any, config: TrainConfig, where: str) -> nn.Module:
    """Return the model with adapters, a prefix, or some parameters frozen."""
    vision = sorted({path for name, _ in model.named_modules() if (path := _vision_path(name))})
    if config.freeze_vision and not vision:
        raise UsageError(f"{where}#/freeze_vision", f"{type(model).__name__} has no vision tower", "Leave it out.")
    if config.tuning == "full":
        _freeze(model, config, vision, where)
        return model
    import peft

    if config.quantization_bit:
        prepare: Any = peft.prepare_model_for_kbit_training  # untyped
        model = prepare(model, use_gradient_checkpointing=False)
    if config.tuning == "lora":
        tuner: Any = _lora(model, config, vision, where)
    else:
        tuner = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=config.prefix.num_virtual_tokens,
            prefix_projection=config.prefix.prefix_projection,
            encoder_hidden_size=model.config.get_text_config().hidden_size,
        )
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
    return peft.get_peft_model(model, tuner)


def _vision_path(name: str) -> str | None:
    """Return the path of the vision tower that a module or parameter belongs to."""
    parts = name.split(".")
    found = next((i for i, part in enumerate(parts) if part in VISION), None)
    return None if found is None else ".".join(parts[: found + 1])


def _freeze(model: nn.Module, config: TrainConfig, vision: list[str], where: str) -> None:
    names = [name for name, _ in model.named_parameters()]
    for key, patterns in (("freeze", config.freeze), ("trainable", config.trainable)):
        for pattern in patterns:
            if not any(_search(pattern, name, f"{where}#/{key}") for name in names):
                what = f"no parameter's name matches {pattern!r}"
                raise UsageError(f"{where}#/{key}", what, nearest(pattern, _parts(names)))
    for name, parameter in model.named_parameters():
        frozen = any(re.search(pattern, name) for pattern in config.freeze)
        frozen |= bool(config.trainable) and not any(re.search(pattern, name) for pattern in config.trainable)
        frozen |= config.freeze_vision and any(name.startswith(f"{path}.") for path in vision)
        parameter.requires_grad_(not frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"{where}#/freeze", "nothing is left to train", "Freeze less.")


def _search(pattern: str, name: str, where: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UsageError(where, f"{pattern!r} is not a regular expression: {error}") from error


def _parts(names: list[str]) -> set[str]:
    return {part for name in names for part in name.split(".") if not part.isdigit()}


def _lora(model: Any, config: TrainConfig, vision: list[str], where: str) -> Any:
    import peft

    asked = config.lora.target_modules
    asked = [asked] if isinstance(asked, str) else list(asked)
    targets: list[str] | None = None
    if asked != ["default"]:
        targets = sorted({name for one in asked for name in _targets(model, one, where)})
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), None)
    skipped = [f"{re.escape(path)}\\..*" for path in vision] if config.freeze_vision else []
    skipped += [re.escape(head)] if head and head.rpartition(".")[2] not in asked else []
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM", "r": config.lora.r, "lora_alpha": config.lora.lora_alpha,
        "lora_dropout": config.lora.lora_dropout, "target_modules": targets,
        "exclude_modules": "|".join(skipped) or None, "modules_to_save": config.lora.modules_to_save or None,
        "use_rslora": config.lora.use_rslora, "use_dora": config.lora.use_dora,
    }  # fmt: skip
    if targets is None and model.config.model_type not in peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        what = f"PEFT has no default for {model.config.model_type}"
        raise UsageError(f"{where}#/lora/target_modules", what, "Name them, or use all.")
    for name in config.lora.modules_to_save:
        if not any(path.rpartition(".")[2] == name for path, _ in model.named_modules()):
            known = {path.rpartition(".")[2] for path, _ in model.named_modules()}
            raise UsageError(f"{where}#/lora/modules_to_save", f"no module is called {name!r}", nearest(name, known))
    return peft.LoraConfig(**settings)


def _targets(model: Any, asked: str, where: str) -> Iterator[str]:
    """Yield module names for one element of target_modules."""
    linear = {path.rpartition(".")[2] for path, module in model.named_modules() if _is_linear(module)}
    if asked == "all":
        head = model.get_output_embeddings()
        # PEFT takes a name for every module that ends so: "proj" would be a linear layer and a convolution
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
    else:
        pointer = f"{where}#/lora/target_modules"
        raise UsageError(pointer, f"no module is called {asked!r}", nearest(asked, linear | {"all", "embeddings"}))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)  # bitsandbytes' layers are subclasses


def count(model: nn.Module) -> tuple[int, int]:
    """Return (parameters, those that are trained), shards of ZeRO-3 counted whole."""
    sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
