"""Load a model and its tokenizer for use after training: safetensors only, no downloads, no remote code."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from schemas.errors import InputError, IntegrityError, UsageError
from schemas.manifest import CONVERTED
from schemas.reader import CompiledSet
from trainer.models import reading
from trainer.models.original import families
from trainer.models.original.weights import files_of
from trainer.models.safetensors import need_safetensors

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""By their names in safetensors files."""


def load_model(folder: Path, adapter: Path | None = None, dtype: Any = "auto") -> Any:
    """Load the model in `folder`, in evaluation mode, with the PEFT adapter in `adapter`."""
    if (folder / "adapter_config.json").is_file():
        raise UsageError(
            str(folder), "this is an adapter, without the model that it belongs to",
            "cli export merges both into one model; to use it unmerged: cli chat MODEL --adapter CHECKPOINT.",
        )  # fmt: skip
    if not (folder / "config.json").is_file():
        what = "no such folder" if not folder.is_dir() else "no config.json in it: not a model"
        raise InputError(str(folder), what, "Give a folder saved by Transformers.")
    need_safetensors(folder)
    files_of(folder)  # names a file that is missing or cut off
    where = folder if adapter is None else f"{folder} with {adapter}"
    with reading.explained(str(where), "cannot be loaded", InputError):
        family = families.family_of(folder)
        model = _native(folder, dtype) if family is None else families.load(folder, family, dtype=dtype)
        if family is not None and (folder / "generation_config.json").is_file():
            import transformers

            model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        if adapter is not None:
            import peft

            if json.loads((adapter / "adapter_config.json").read_bytes()).get("megatron_config"):
                what = "megatron_config names a module to import, and none is imported here"
                raise IntegrityError(str(adapter / "adapter_config.json"), what, "Use another checkpoint.")
            model = peft.PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    return model.eval()


def _native(folder: Path, dtype: Any) -> Any:
    import transformers

    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # None would ask on stdin
    config = transformers.AutoConfig.from_pretrained(folder, **settings)
    name = (config.architectures or ["?"])[0]
    found = getattr(transformers, name, None)
    if found is None:
        raise UsageError(str(folder / "config.json"), f"transformers {transformers.__version__} has no class {name}")
    return reading.complete(found, folder, dtype=dtype, use_safetensors=True, **settings)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the weights in a folder: that of its first tensor of floats."""
    from safetensors import safe_open

    for path in files_of(folder):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                dtype = file.get_slice(name).get_dtype()
                if dtype in _DTYPES:
                    return _DTYPES[dtype]
    raise InputError(str(folder), "its weights are of no dtype that a model is trained in", "Use another model.")


def load_tokenizer(folder: Path) -> Any:
    """Load the Transformers tokenizer in `folder`."""
    import transformers

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        # for some models Transformers would make an empty one
        raise InputError(str(folder), "there is no tokenizer in it", "Chat with an exported folder: cli export.")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,  # None would ask on stdin
        )
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            str(folder), f"Transformers cannot load its tokenizer: {str(error).strip().splitlines()[0]}",
            "It needs a tokenizer.json, or a tokenizer class that Transformers has.",
        ) from error  # fmt: skip


def tokenizer_of(opened: CompiledSet, model: Path) -> Any:
    """The tokenizer of a set: the model's, or the set's own where Transformers cannot load that without its code."""
    names = [name for name in opened.manifest["files"] if name.startswith(f"{CONVERTED}/")]
    if not names:
        return load_tokenizer(model)
    with TemporaryDirectory() as copy:  # the set may be in an object store
        for name in names:
            (Path(copy) / Path(name).name).write_bytes(opened.read_file(name))
        return load_tokenizer(Path(copy))
