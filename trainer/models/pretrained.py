"""A model and its tokenizer from folders, for use after training: safetensors only, nothing downloaded, no code run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.errors import InputError, UsageError


def load_model(folder: Path, adapter: Path | None = None) -> Any:
    """Return the model in `folder` in evaluation mode, with the PEFT adapter in `adapter` on it."""
    import safetensors
    import transformers

    if (folder / "adapter_config.json").is_file():
        raise UsageError(
            str(folder), "this is an adapter, and the model it belongs to is elsewhere",
            "cli export makes one model of both; to look at it as it is: cli chat MODEL --adapter CHECKPOINT.",
        )  # fmt: skip
    if not (folder / "config.json").is_file():
        what = "no such folder" if not folder.is_dir() else "no config.json in it: not a model"
        raise InputError(str(folder), what, "Give a folder as Transformers saves it.")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        name = (config.architectures or ["?"])[0]
        found = getattr(transformers, name, None)
        if found is None:
            raise UsageError(
                str(folder / "config.json"), f"transformers {transformers.__version__} has no class {name}"
            )
        model = found.from_pretrained(folder, dtype="auto", use_safetensors=True, local_files_only=True)
        if adapter is not None:
            import peft

            model = peft.PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        where = folder if adapter is None else f"{folder} with {adapter}"
        raise InputError(str(where), f"cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """Return the Transformers tokenizer in `folder`."""
    import transformers

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        # Transformers makes an empty one for some models
        raise InputError(str(folder), "there is no tokenizer in it", "Chat with an exported folder: cli export.")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            str(folder), f"Transformers reads no tokenizer from it: {str(error).strip().splitlines()[0]}",
            "It needs a tokenizer.json, or a tokenizer class of Transformers itself.",
        ) from error  # fmt: skip


def can_cache(model: Any) -> bool:
    """Return whether the model may generate with a cache, which is faster.

    Not with a prefix: PEFT 0.21 hands it over as `past_key_values`, and where `generate` has a cache Transformers
    5.24 ignores that, so that the base model would write, with a warning about names at most.
    """
    return not getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
