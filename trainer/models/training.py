"""Load a model for training, from safetensors only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from schemas.errors import UsageError
from trainer.config.config import TrainConfig
from trainer.device import Device
from trainer.models import kernels, reading
from trainer.models.folder import ModelFolder
from trainer.models.original import families
from trainer.models.tune import tune


def load(
    source: ModelFolder, config: TrainConfig, device: Device, dtype: torch.dtype, where: str,
    attention: str | None = None, *, liger: bool = False,
) -> nn.Module:  # fmt: skip
    """Load a model, with adapters added or parameters frozen and gradient checkpointing as configured.

    `attention` is what computes it, in the names of Transformers; None leaves it to the model. `liger`: with
    its kernels.
    """
    torch.manual_seed(config.seed)  # new weights: adapters and prefixes
    settings: dict[str, Any] = {"dtype": dtype}
    if not reading.in_parts():
        settings |= device.device_map
    if attention:
        settings["attn_implementation"] = attention
    if config.quantization_bit:
        settings |= _bits(config, config.quantization_bit, dtype, device)
    with reading.explained(str(source.folder), "cannot be loaded", UsageError):
        if source.family is not None:
            model = families.load(source.folder, source.family, **settings)
        else:
            settings |= {"trust_remote_code": config.trust_remote_code, "use_safetensors": True}
            model = reading.complete(source.auto_class, source.folder, **settings)
    if config.quantization_bit == 4:
        _keep_unpacked(model)
    if liger:
        kernels.replace(model)
    model.config.use_cache = False
    model.name_or_path = str(source.folder.absolute())  # PEFT writes it into the adapter's configuration
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            what = f"{type(model).__name__} does not support it"
            raise UsageError(f"{where}#/gradient_checkpointing", what, "Set it to false.")
        more = {k: v for k, v in config.gradient_checkpointing_kwargs.items() if k != "use_reentrant"}
        model.gradient_checkpointing_enable({"use_reentrant": False}, **more)
    return tune(model, config, where, source.module_names)


def _bits(config: TrainConfig, bits: int, dtype: torch.dtype, device: Device) -> dict[str, Any]:
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
    four = {
        "load_in_4bit": True, "bnb_4bit_quant_type": config.bnb_4bit_quant_type, "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_use_double_quant": config.bnb_4bit_use_double_quant,
    }  # fmt: skip
    kind: Any = transformers.BitsAndBytesConfig  # untyped
    quantization = kind(**(four if bits == 4 else {"load_in_8bit": True}))
    return {"quantization_config": quantization, "device_map": {"": device.torch}}


def _keep_unpacked(model: nn.Module) -> None:
    """Keep weights of 4 bits as they are while a model is evaluated on a CPU.

    On a CPU with AVX512-BF16 bitsandbytes 0.50 packs them anew in the first pass of an evaluation, for a kernel that
    has no gradient, and does not unpack them for the training after it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
