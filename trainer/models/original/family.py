"""What a family of models with code of its own declares, so that a native class can take its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from schemas.errors import UsageError, nearest

Original = Mapping[str, Any]
"""The `config.json` of an original folder."""
Cut = Callable[[Any, torch.Tensor], Sequence[torch.Tensor]]
"""(native configuration, original tensor) -> the native tensors, in the order of the part's native names."""
Join = Callable[[Any, Sequence[torch.Tensor]], torch.Tensor]
"""The way back."""


@dataclass(frozen=True)
class Part:
    """A module, or a tensor, under its original name and its native ones; `*` is the number of a layer."""

    original: str
    native: tuple[str, ...]
    cut: Cut = lambda _, tensor: (tensor,)
    join: Join = lambda _, tensors: tensors[0]


@dataclass(frozen=True)
class Family:
    """A family: how it is told, and what it becomes."""

    title: str
    """What people call its models."""
    is_one: Callable[[Original], bool]
    """Whether a `config.json` is one of the family's."""
    configure: Callable[[Original, Path], Any]
    """(config.json, folder) -> the native configuration; UsageError for a value that the native class cannot have."""
    native: str
    """The native class: its module and name."""
    parts: Callable[[Any], Sequence[Part]]
    """The parts of a model with this native configuration."""
    ignored: tuple[str, ...] = ("*.inv_freq",)
    """Original tensors that hold no weights: file name patterns."""
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The names of linear layers that users know -> the native names."""
    settle: Callable[[Any], None] = lambda _: None
    """What is left to do to a loaded model."""
    keeps_layout: bool = False
    """Whether Transformers has no class for it, so that an export has the original layout."""
    remark: str = ""
    """What the user should know of the native class."""

    def native_class(self) -> Any:
        """The class that takes the place of the original code."""
        module, _, name = self.native.rpartition(".")
        return getattr(import_module(module), name)


class Keys:
    """Reads a `config.json`: keys with defaults of the original code, and values that a native class requires."""

    def __init__(self, original: Original, folder: Path, title: str) -> None:
        self._original, self._where, self._title = original, str(folder / "config.json"), title

    def get(self, key: str, default: Any) -> Any:
        """The value of a key; the default of the original code where the key is missing."""
        return self._original.get(key, default)

    def need(self, key: str) -> Any:
        """The value of a key that no model is without."""
        if key not in self._original:
            raise UsageError(self._where, f"has no {key!r}, which {self._title} needs", nearest(key, self._original))
        return self._original[key]

    def require(self, wanted: Mapping[str, Any]) -> None:
        """Raise for the first key whose value is another one; a missing key has the wanted value."""
        for key, value in wanted.items():
            found = self._original.get(key, value)
            if found != value or (isinstance(value, bool) and not isinstance(found, bool)):
                raise self.refusal(key, f"expected {value!r}")

    def refusal(self, key: str, expected: str) -> UsageError:
        """The error for a value that the native class cannot have."""
        what = f"{expected}, found {self._original.get(key)!r}: the native class for {self._title} has nothing like it"
        return UsageError(f"{self._where}#/{key}", what, "A model that differs in this cannot be trained here.")


def code_of(folder: Path, name: str) -> str:
    """The code in a folder as text, which is never run; "" where there is none."""
    path = folder / name
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def llama_config(keys: Keys, **more: Any) -> Any:
    """The configuration of a Llama, by the keys that have the same names and defaults in InternLM2 and Baichuan."""
    from transformers import LlamaConfig

    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    defaults = {
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    given = {key: keys.need(key) for key in needed} | {key: keys.get(key, own) for key, own in defaults.items()}
    return LlamaConfig(**given, **more)


def heads_of(layer: str) -> tuple[str, ...]:
    """The native names of the queries, keys and values of a layer, which are one tensor in the original."""
    return tuple(f"{layer}.self_attn.{name}_proj" for name in "qkv")


def renamed(pairs: Mapping[str, str]) -> list[Part]:
    """Parts that only have another name."""
    return [Part(original, (native,)) for original, native in pairs.items()]


def rows(*sizes: int) -> tuple[Cut, Join]:
    """Cut a tensor into blocks of rows, and join them again."""

    def cut(_: Any, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        return torch.split(tensor, list(sizes))

    def join(_: Any, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(tensors))

    return cut, join
