"""The tensors of an original folder under native names, and native tensors under original names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from schemas.errors import InputError, UsageError
from trainer.models.original.family import Family, Part
from trainer.models.safetensors import weight_map


def read(folder: Path, family: Family, config: Any, *, shapes_alone: bool = False) -> dict[str, torch.Tensor]:
    """The state dict of the native model. Tensors are views of the mapped files as far as no row changes its place.

    With ZeRO-3 only the first process reads values: others need the shapes alone.
    """
    parts = [(_pattern(part.original), part) for part in family.parts(config)]
    found: dict[str, torch.Tensor] = {}
    for name, values in _tensors(folder):
        tensor = values.to("meta") if shapes_alone else values
        if any(fnmatch(name, pattern) for pattern in family.ignored):
            continue
        match, part = _part(parts, name)
        if match is None or part is None:
            what = f"the tensor {name!r} is no part of a {family.title} model"
            raise UsageError(str(folder), what, "Is config.json the one that belongs to these weights?")
        pieces = part.cut(config, tensor)
        found |= {_native(native, match): piece for native, piece in zip(part.native, pieces, strict=True)}
    return found


def ignored(folder: Path, family: Family) -> dict[str, torch.Tensor]:
    """The tensors of an original folder that hold no weights."""
    return {
        name: tensor for name, tensor in _tensors(folder) if any(fnmatch(name, pattern) for pattern in family.ignored)
    }


def original_names(family: Family, config: Any, native: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Native tensors under the names of the original folder, joined as they were there."""
    found: dict[str, torch.Tensor] = {}
    for part in family.parts(config):
        first = _pattern(part.native[0])
        for name in native:
            match = first.fullmatch(name)
            if match is not None:
                tensors = [native[_native(other, match)] for other in part.native]
                found[_native(part.original, match)] = part.join(config, tensors).contiguous()
    return found


def _pattern(name: str) -> re.Pattern[str]:
    body = re.escape(name).replace(r"\*", r"(?P<layer>\d+)")
    return re.compile(rf"{body}(?P<end>|\.weight|\.bias)")


def _part(parts: list[tuple[re.Pattern[str], Part]], name: str) -> tuple[re.Match[str] | None, Part | None]:
    found = ((pattern.fullmatch(name), part) for pattern, part in parts)
    return next(((match, part) for match, part in found if match is not None), (None, None))


def _native(name: str, match: re.Match[str]) -> str:
    return name.replace("*", match.groupdict().get("layer") or "") + match["end"]


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of all safetensors files of a folder."""
    from safetensors import SafetensorError, safe_open

    for path in files_of(folder):
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(str(path), f"cannot be read: {error}", "Download it again.") from error


def files_of(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those of its index, or all; InputError for one that is missing or cut off."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return list(map(_whole, sorted(folder.glob("*.safetensors"))))
    names = sorted(set(weight_map(index).values()))
    if not names:
        raise InputError(str(index), "lists no file", "Download it again.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(str(folder / missing[0]), "is missing, and the index lists it", "Download it again.")
    return [_whole(folder / name) for name in names]


def _whole(path: Path) -> Path:
    """The path of a safetensors file, if its header fits its length; the numbers in it have no digest."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(str(path), "is no regular file", "Download it again.")
    try:
        with safe_open(str(path), framework="pt"):
            return path
    except (SafetensorError, OSError) as error:
        raise InputError(str(path), f"cannot be read: {error}", "Download it again.") from error
