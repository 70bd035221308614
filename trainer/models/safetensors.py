"""Weights from files of pickles (`pytorch_model.bin`, `*.pt`) as safetensors, shard by shard, with nothing in them run.

torch reads the files with `weights_only`: a file that asks for anything but tensors is refused before it can act.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from schemas import own
from schemas.disk import is_inside
from schemas.errors import InputError, IntegrityError, UsageError

INDEX = "pytorch_model.bin.index.json"
SUFFIXES = (".bin", ".pt", ".pth")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states).*")
"""Files that trainers leave beside weights."""
_PARTIAL, _MARK, _MADE_BY = ".safetensors.partial", ".made-by", "finetune-data-compiler safetensors"


@dataclass(frozen=True)
class Converted:
    """What was written."""

    folder: Path
    files: list[str]
    tensors: int
    bytes: int
    copied: int
    """Tensors that shared memory with others, and are now stored on their own."""


def pickled(folder: Path) -> list[Path]:
    """The files of pickled weights in a folder: those of its index, or all; InputError for a missing one."""
    index = folder / INDEX
    if not index.is_file():
        found = [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES and not _NO_WEIGHTS.fullmatch(p.name)]
        usual = [path for path in found if path.name.startswith("pytorch_model")]
        return usual or found
    paths = [folder / name for name in sorted(set(weight_map(index).values()))]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing:
        raise InputError(str(missing), f"is missing, and {INDEX} lists it", "Download it again.")
    return paths


def need_safetensors(folder: Path) -> None:
    """Raise for a folder without safetensors files, saying how it gets them."""
    if any(folder.glob("*.safetensors")):
        return
    if found := pickled(folder):
        what = f"no *.safetensors; the weights are in {found[0].name}, which could run code when it is read"
        raise UsageError(str(folder), what, f"Convert them; nothing in them is run: cli safetensors {folder}")
    raise UsageError(str(folder), "no *.safetensors; there are no weights", "Download the model again.")


def convert(folder: Path, out: Path | None = None) -> Converted:
    """Write the weights of a folder as safetensors beside them, or into `out` with all other files of the folder."""
    if not (folder / "config.json").is_file():
        what = "no such folder" if not folder.is_dir() else "no config.json: not the folder of a model"
        raise InputError(str(folder), what, "Give the folder of a model.")
    target = out or folder
    partial = target / _PARTIAL
    if not own.clear(partial, _MARK, _MADE_BY):  # what a killed run left
        raise UsageError(str(partial), "it is in the way, and no conversion made it", "Move it somewhere else.")
    if any(target.glob("*.safetensors")) or (out and out.is_dir() and any(out.iterdir())):
        raise UsageError(str(target), "it has files of weights already" if out is None else "it is not empty", "")
    paths = pickled(folder)
    if not paths:
        raise UsageError(str(folder), f"no weights to convert: no {', '.join(SUFFIXES)} files", "")
    try:
        own.make(partial, _MARK, {"made_by": _MADE_BY})
        done = _write(paths, partial, target)
        for path in folder.iterdir() if out else ():
            if path.is_file() and path.suffix not in SUFFIXES and path.name != INDEX:
                shutil.copyfile(path, target / path.name)
        made = [path for path in partial.iterdir() if path.name != _MARK]
        for path in sorted(made, key=lambda path: path.suffix):  # the index first: without the rest it fails
            path.rename(target / path.name)
    except SafetensorError as error:
        raise InputError(str(target), f"cannot be written: {error}", "Make room.") from error
    except OSError as error:
        raise InputError(str(error.filename or target), f"cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            own.clear(partial, _MARK, _MADE_BY)
    return done


def _write(paths: list[Path], partial: Path, target: Path) -> Converted:
    found: dict[str, str] = {}
    total = copied = 0
    names = []
    for number, path in enumerate(paths, 1):
        tensors, more = _alone(_read(path))
        twice = next((name for name in tensors if name in found), None)
        if twice:
            raise IntegrityError(str(path), f"the tensor {twice!r} is in another file too", "Remove one of them.")
        name = f"model-{number:05}-of-{len(paths):05}.safetensors" if len(paths) > 1 else "model.safetensors"
        save_file(tensors, partial / name, {"format": "pt"})
        names.append(name)
        found |= dict.fromkeys(tensors, name)
        total, copied = total + sum(t.nbytes for t in tensors.values()), copied + more
    index = paths[0].parent / INDEX
    lost = sorted(set(weight_map(index)) - found.keys()) if index.is_file() else []
    if lost:
        raise IntegrityError(str(index), f"it lists {lost[0]!r}, which no file has", "Download the model again.")
    if len(paths) > 1:
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": found}, indent=2, sort_keys=True)
        (partial / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
    return Converted(target, names, len(found), total, copied)


def weight_map(index: Path) -> dict[str, str]:
    """The files of an index of weights by the names of tensors; a Problem for a file that is not beside the index."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(str(index), f"is not an index of weights: {error}", "Download it again.") from error
    if wrong := next((name for name in names.values() if not is_inside(name)), None):
        raise IntegrityError(str(index), f"lists {wrong!r}, which leads out of the folder", "Download it again.")
    return names


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a file, as views of the mapped file where it is of the layout of torch 1.6 and later."""
    settings: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            loaded = torch.load(path, mmap=True, **settings)
        except RuntimeError:  # an older layout, which cannot be mapped
            loaded = torch.load(path, **settings)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it asks for more than tensors"
        hint = "Nothing of it was run. Get the weights as safetensors from the model's makers."
        raise IntegrityError(str(path), f"{what}, and weights need nothing but tensors", hint) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        what = f"cannot be read: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        raise InputError(str(path), what, "Download it again.") from error
    entries = loaded.items() if isinstance(loaded, Mapping) else [("", loaded)]
    wrong = next(((name, value) for name, value in entries if not isinstance(value, torch.Tensor)), None)
    if wrong:
        what = f"expected a tensor under every name, found {type(wrong[1]).__name__} under {wrong[0]!r}"
        raise IntegrityError(str(path), what, "It holds no plain weights; save model.state_dict() alone.")
    return dict(entries)


def _alone(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors with memory of their own, as safetensors need it, and how many had to be copied for sharing it."""
    found, seen, copied = {}, set[int](), 0
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        shared = memory.data_ptr() in seen
        seen.add(memory.data_ptr())
        copied += shared
        whole = tensor.is_contiguous() and memory.nbytes() == tensor.nbytes
        found[name] = tensor if whole and not shared else tensor.clone(memory_format=torch.contiguous_format)
    return found, copied
