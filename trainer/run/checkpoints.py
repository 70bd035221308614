"""Checkpoints: the folder `checkpoint-N`. It counts only with its file COMPLETE, which is written last.

It is written as `.checkpoint-N.partial` and renamed; to be removed it is renamed to `.checkpoint-N.removed` first.

run.json      configuration, set, model, step, seed, provenance of the data, and the trainer's mark; written first
adapter_model.safetensors + adapter_config.json, or model*.safetensors + config.json
tokenizer files of the model, unchanged
deepspeed/    DeepSpeed's state, for resuming
COMPLETE      sizes and digests of all files, when they are on disk
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from schemas import checkpoint as files
from schemas import own
from schemas.checkpoint import COMPLETE, MADE_BY, RUN, STATE
from schemas.disk import flush
from schemas.errors import InputError, IntegrityError, UsageError
from trainer.models import initial
from trainer.run import unpickle

TAG = "state"
AT_ONCE = 4
"""Files of a checkpoint that a process brings to the disk, and reads for their digests, at the same time."""
_OF_RANK = re.compile(r"(?:pp_rank_|/rank)(\d+)")
"""What names of DeepSpeed's files have if a process other than the first wrote them."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    run: dict[str, Any]


def folder(output: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return output / f"checkpoint-{step}"


def complete(output: Path, damaged: dict[Path, str] | None = None) -> list[Checkpoint]:
    """The complete checkpoints, in the order in which they were written.

    The last one may not have the highest step: after `--resume 600`, a checkpoint of step 900 belongs to the abandoned
    run. Those in `damaged` are left out, and those whose run.json is damaged get into it.
    """
    found, damaged = [], {} if damaged is None else damaged
    for path in output.glob("checkpoint-*"):
        if (path / COMPLETE).is_file() and path not in damaged:
            try:
                found.append(read(path))
            except (InputError, IntegrityError) as error:
                damaged[path] = f"{error.where.removeprefix(f'{path}/')}: {error.what}"
    return sorted(found, key=lambda one: (one.run["resumes"], one.step))


def find(output: Path, resume: str, remarks: list[str], known_damage: Mapping[Path, str]) -> Checkpoint | None:
    """The checkpoint for `--resume`: "yes" is the last whole one (None if there is none), "N" that of step N."""
    damaged = dict(known_damage)
    known = complete(output, damaged)
    steps = ", ".join(str(one.step) for one in known) or "none"
    if resume == "yes":
        if damaged and not known:
            path, what = next(iter(damaged.items()))
            raise IntegrityError(str(path), what, "No checkpoint is whole. Start again in another output_dir.")
        remarks += [f"{path}: {what}; the run goes on from {known[-1].path}" for path, what in damaged.items()]
        return known[-1] if known else None
    if not (resume.isascii() and resume.isdigit() and len(resume) < 20):
        raise UsageError(f"--resume {resume}", "expected yes or the number of a checkpoint", "--resume yes")
    hint = f"Complete ones: {steps}. --resume yes takes the last of them."
    for one in reversed(known):
        if one.step == int(resume):
            return one
    path = folder(output, int(resume))
    if path in damaged:
        raise IntegrityError(str(path), damaged[path], hint)
    raise UsageError(str(path), "it was never completed" if path.exists() else "there is no such checkpoint", hint)


def read(path: Path) -> Checkpoint:
    """Read the checkpoint in a folder."""
    run = files.read_run(path)
    return Checkpoint(path, run["step"], run)


def damage(checkpoint: Checkpoint) -> str:
    """What is wrong in a checkpoint, "" if it is whole; processes call it together, and each reads a part of it."""
    several = torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if several else (0, 1)
    found = [files.damage(checkpoint.path, part=rank, parts=world)]
    if several:
        found = [found[0] for _ in range(world)]
        torch.distributed.all_gather_object(found, found[0])
    return next((one for some in found for one in some), "")


def save(
    wrapped: Any,
    output: Path,
    run: dict[str, Any],
    model_files: dict[str, bytes],
    *,
    keep: int | None,
    best: int | None,
) -> Path:
    """Write the checkpoint of `run["step"]` and return its folder; then remove those that are too many.

    All processes call it. Earlier checkpoints stay untouched until the new one is complete. Of more than `keep`, the
    oldest go, but not that of step `best`; so do those of a run that this one replaces.
    """
    path = folder(output, run["step"])
    partial = path.with_name(f".{path.name}.partial")
    first = torch.distributed.get_rank() == 0
    try:
        if first:
            _clear(partial)
            own.make(partial, RUN, run)
        torch.distributed.barrier()
        _write(wrapped, partial, model_files, first)
        mine = _digests(partial)
    except (OSError, RuntimeError) as error:  # for a full disk torch's archive writer raises a RuntimeError
        raise _unwritten(output, path, partial, error) from error
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, mine)
    if first:
        try:
            _publish(partial, path, files.sealed(run["run"], {k: v for one in gathered for k, v in one.items()}))
        except OSError as error:
            raise _unwritten(output, path, partial, error) from error
        for old in _too_many(complete(output), run, keep, best):
            remove(old.path)
    torch.distributed.barrier()
    return path


def _digests(path: Path) -> dict[str, files.Entry]:
    """The digests of the files that this process has written, when they are on disk.

    Others may still be writing theirs: the first process writes the model last.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    owners = {name: int(of[1]) % world if (of := _OF_RANK.search(name)) else 0 for name in files.files(path)}
    mine = [name for name, owner in owners.items() if owner == rank]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(mine, pool.map(_digest, [path / name for name in mine]), strict=True))


def _digest(path: Path) -> files.Entry:
    flush(path)
    return files.digest(path)


def _publish(partial: Path, path: Path, sealed: bytes) -> None:
    """Mark a checkpoint as complete and give it its name; one that has the name counts until then, and is removed."""
    (partial / COMPLETE).write_bytes(sealed)
    for place in (partial / COMPLETE, *(one for one in partial.rglob("*") if one.is_dir()), partial):
        flush(place)
    old = path.with_name(f"{path.name}.old")
    if path.exists():
        if old.exists():  # of a run that was killed here
            remove(old)
        _need_ours(path)
        path.rename(old)
    partial.rename(path)
    flush(path.parent)
    if old.exists():
        remove(old)


def remove(path: Path) -> None:
    """Remove a checkpoint of this trainer. It is renamed first: a half-removed one must not count."""
    _need_ours(path)
    gone = path.with_name(f".{path.name}.removed")
    _clear(gone)
    path.rename(gone)
    _clear(gone)


def _need_ours(path: Path) -> None:
    if not files.is_ours(path):
        what = "it is in the way, and was not made by this trainer"
        raise UsageError(str(path), what, "Move it somewhere else.")


def _clear(path: Path) -> None:
    """Remove what a run has left or is done with, by either mark; UsageError for what this trainer did not make."""
    if not any(own.clear(path, mark, MADE_BY) for mark in (RUN, COMPLETE)):
        _need_ours(path)


def clear_leftovers(output: Path) -> list[Path]:
    """Remove what killed runs have left half written or half removed; return what this trainer did not make."""
    found = [*output.glob(".checkpoint-*.partial"), *output.glob(".checkpoint-*.removed"), *output.glob(".universal-*")]
    return [path for path in found if not any(own.clear(path, mark, MADE_BY) for mark in (RUN, COMPLETE))]


def _too_many(found: list[Checkpoint], run: dict[str, Any], keep: int | None, best: int | None) -> list[Checkpoint]:
    """The checkpoints to remove: those of a replaced run, and the oldest of this one beyond `keep`."""
    replaced = [one for one in found if one.run["resumes"] < run["replaces"]]
    mine = [one for one in found if one not in replaced and one.run["run"] == run["run"]]
    kept = [one for one in mine if one is mine[-1] or one.step == best]
    others = [one for one in mine if one not in kept]
    return replaced + (others[: max(0, len(mine) - max(keep, len(kept)))] if keep else [])


def _write(wrapped: Any, path: Path, model_files: dict[str, bytes], first: bool) -> None:
    wrapped.save_checkpoint(
        str(path / STATE), tag=TAG, client_state={"universal_checkpoint_info": {}}, exclude_frozen_parameters=True
    )
    _save_weights(wrapped, path, first)
    if first:
        for name, data in model_files.items():
            (path / name).write_bytes(data)


def _unwritten(output: Path, path: Path, partial: Path, error: Exception) -> Exception:
    """The Problem to raise for a checkpoint that could not be written; other errors are bugs and are returned as is."""
    space = shutil.disk_usage(output).free
    if not isinstance(error, OSError) and not re.search("inline_container|PytorchStreamWriter|iostream", str(error)):
        return error
    with contextlib.suppress(OSError):
        own.clear(partial, RUN, MADE_BY)
    kept = complete(output)
    last = f"The last complete one is {kept[-1].path}." if kept else "There is no earlier one."
    reason = getattr(error, "strerror", None) or "a file could not be finished"
    what = f"the checkpoint could not be written: {reason} ({space / 2**30:.1f} GiB are free)"
    return InputError(str(path), what, f"{last} Make room (save_total_limit keeps fewer), then --resume yes.")


def _save_weights(wrapped: Any, path: Path, first: bool) -> None:
    """Write the weights as PEFT or Transformers do, gathered from all processes; of an adapter only its own."""
    import peft

    model = wrapped.module
    adapter = isinstance(model, peft.PeftModel)
    weights = dict(_gathered(model, only_trained=adapter, keep=first))
    if not first:
        return
    if adapter:
        model.save_pretrained(path, state_dict=weights, save_embedding_layers=False)  # trained ones are in `weights`
        initial.fit_base(model, path)
    else:
        weights |= {name: value.cpu() for name, value in _buffers(model)}
        model.save_pretrained(path, state_dict=weights)


def _gathered(model: Any, *, only_trained: bool, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
    import deepspeed

    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not only_trained:
            sharded = [parameter] if hasattr(parameter, "ds_id") else []
            with deepspeed.zero.GatheredParameters(sharded):
                if keep:
                    yield name, parameter.detach().cpu().clone()


def _buffers(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what is saved with a model beside its parameters."""
    for path, module in model.named_modules():
        for name, value in module._buffers.items():
            if value is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, value


def load(wrapped: Any, state: Path) -> None:
    """Restore the wrapped model from a state folder: that of a checkpoint, or a converted one."""
    with unpickle.tensors_only(state):
        found, _ = wrapped.load_checkpoint(str(state), tag=TAG, load_module_strict=False)
    if found is None:
        raise InputError(str(state), "DeepSpeed's state is missing", "Use another checkpoint.")
