"""Checkpoints: the folder `checkpoint-N`. It counts only with its file COMPLETE, which is written last.

It is written as `.checkpoint-N.partial` and renamed.

adapter_model.safetensors + adapter_config.json, or model*.safetensors + config.json
tokenizer files of the model, unchanged
deepspeed/    DeepSpeed's state, for resuming
run.json      configuration, set, model, step, seed, provenance of the data
COMPLETE      written when everything else is on disk
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from schemas.disk import flush
from schemas.errors import InputError, UsageError
from trainer.models import initial

COMPLETE = "COMPLETE"
RUN, STATE, TAG = "run.json", "deepspeed", "state"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    run: dict[str, Any]


def folder(output: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return output / f"checkpoint-{step}"


def complete(output: Path) -> list[Checkpoint]:
    """The complete checkpoints, in the order in which they were written.

    The last one may not have the highest step: after `--resume 600`, a checkpoint of step 900 belongs to the abandoned
    run.
    """
    found = [read(path) for path in output.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return sorted(found, key=lambda one: (one.run["resumes"], one.step))


def find(output: Path, resume: str) -> Checkpoint | None:
    """The checkpoint for `--resume`: "yes" is the last complete one (None if there is none), "N" that of step N."""
    known = complete(output)
    if resume == "yes":
        return known[-1] if known else None
    if not resume.isdigit():
        raise UsageError(f"--resume {resume}", "expected yes or the number of a checkpoint", "--resume yes")
    for one in known:
        if one.step == int(resume):
            return one
    path = folder(output, int(resume))
    what = "it was never completed" if path.exists() else "there is no such checkpoint"
    steps = ", ".join(str(one.step) for one in known) or "none"
    raise UsageError(str(path), what, f"Complete ones: {steps}. --resume yes takes the last of them.")


def read(path: Path) -> Checkpoint:
    """Read the checkpoint in a folder."""
    try:
        run = json.loads((path / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(path / RUN), f"cannot be read: {error}", "Remove the checkpoint.") from error
    return Checkpoint(path, int(run["step"]), run)


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
    if first:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
        partial.mkdir(parents=True)
    torch.distributed.barrier()
    try:
        _write(wrapped, partial, run, model_files, first)
    except (OSError, RuntimeError) as error:  # for a full disk torch's archive writer raises a RuntimeError
        raise _unwritten(output, path, partial, error) from error
    torch.distributed.barrier()
    if first:
        try:
            _publish(partial, path)
        except OSError as error:
            raise _unwritten(output, path, partial, error) from error
        for old in _too_many(complete(output), run, keep, best):
            remove(old.path)
    torch.distributed.barrier()
    return path


def _publish(partial: Path, path: Path) -> None:
    """Mark a checkpoint as complete and give it its name; one that has the name is moved aside first."""
    for file in partial.rglob("*"):
        flush(file)
    (partial / COMPLETE).touch()
    flush(partial)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a checkpoint, its mark first: a half-removed one must not count."""
    (path / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(path)


def _too_many(found: list[Checkpoint], run: dict[str, Any], keep: int | None, best: int | None) -> list[Checkpoint]:
    """The checkpoints to remove: those of a replaced run, and the oldest of this one beyond `keep`."""
    replaced = [one for one in found if one.run["resumes"] < run["replaces"]]
    own = [one for one in found if one not in replaced]
    kept = [one for one in own if one is own[-1] or one.step == best]
    others = [one for one in own if one not in kept]
    return replaced + (others[: max(0, len(own) - max(keep, len(kept)))] if keep else [])


def _write(wrapped: Any, path: Path, run: dict[str, Any], model_files: dict[str, bytes], first: bool) -> None:
    wrapped.save_checkpoint(
        str(path / STATE), tag=TAG, client_state={"universal_checkpoint_info": {}}, exclude_frozen_parameters=True
    )
    _save_weights(wrapped, path, first)
    if first:
        for name, data in model_files.items():
            (path / name).write_bytes(data)
        (path / RUN).write_text(json.dumps(run, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _unwritten(output: Path, path: Path, partial: Path, error: Exception) -> Exception:
    """The Problem to raise for a checkpoint that could not be written; other errors are bugs and are returned as is."""
    space = shutil.disk_usage(output).free
    if not isinstance(error, OSError) and not re.search("inline_container|PytorchStreamWriter|iostream", str(error)):
        return error
    shutil.rmtree(partial, ignore_errors=True)
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
    found, _ = wrapped.load_checkpoint(str(state), tag=TAG, load_module_strict=False)
    if found is None:
        raise InputError(str(state), "DeepSpeed's state is missing", "Use another checkpoint.")


def convert(checkpoint: Checkpoint, target: Path) -> None:
    """Convert a checkpoint's state for any number of processes (DeepSpeed's universal checkpoint), into `target`."""
    shutil.rmtree(target, ignore_errors=True)
    source = checkpoint.path / STATE / TAG
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source), "--output_folder", str(target / TAG)]
    done = subprocess.run(
        [*command, "--num_extract_workers", "1", "--num_merge_workers", "1"],
        capture_output=True, text=True, check=False, env=os.environ | {"DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        hint = f"Resume with {checkpoint.run['world']} processes."
        raise InputError(str(source), f"cannot be converted for another number of processes: {last[0]}", hint)
