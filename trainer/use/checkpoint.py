"""A checkpoint with the set it was trained on and the model it belongs to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas import checkpoint as files
from schemas.checkpoint import COMPLETE, RUN
from schemas.digests import content_digest
from schemas.errors import InputError, IntegrityError
from schemas.manifest import Manifest, read_manifest
from schemas.stores import AnyPath, path_of
from trainer.models.digest import digest_of

ADAPTER, PROVENANCE = "adapter_config.json", "provenance.json"
"""The file of an adapter, and the file of an export."""


@dataclass(frozen=True)
class TrainedModel:
    """A complete checkpoint, its set and, for an adapter, its base model."""

    folder: Path
    run: dict[str, Any]
    set: AnyPath
    manifest: Manifest
    base: Path
    adapter: dict[str, Any] | None


def open_checkpoint(folder: Path, *, data: AnyPath | None = None, base: Path | None = None) -> TrainedModel:
    """Open the checkpoint in `folder`; `data` and `base` say where set and model are if they have moved."""
    run = _run_of(folder)
    where = data or path_of(run["provenance"]["out"])
    try:
        manifest = read_manifest(where)
    except InputError as error:
        raise InputError(error.where, error.what, "Use --set to say where the compiled set is now.") from None
    if (found := content_digest(manifest)) != run["set"]:
        raise IntegrityError(
            str(where), f"expected the set {run['set'][:16]} the checkpoint was trained on, "
            f"found {found[:16]}", "Use --set to say where the right set is.",
        )  # fmt: skip
    adapter = read_json(folder / ADAPTER) if (folder / ADAPTER).is_file() else None
    trained = TrainedModel(folder, run, where, manifest, base or Path(run["base_model"]), adapter)
    if adapter:
        _check_base(folder, run, trained.base)
    return trained


def _run_of(folder: Path) -> dict[str, Any]:
    """The run.json of a complete checkpoint, of which all but the state for a resume is as it was written."""
    if not (folder / RUN).is_file():
        what = "no such folder" if not folder.is_dir() else f"no {RUN} in it: not a checkpoint"
        raise InputError(str(folder), what, "Give a folder OUTPUT_DIR/checkpoint-N.")
    if not (folder / COMPLETE).is_file():
        what = f"no {COMPLETE} file: the checkpoint is unfinished"
        raise IntegrityError(str(folder), what, "Use an earlier checkpoint.")
    files.check(folder)
    return files.read_run(folder)


def check_whole(model: Path) -> None:
    """Raise if the folder of a model is a checkpoint with damage: one of a whole model can be used as it is."""
    if (model / COMPLETE).is_file():
        files.check(model)


def check_base(adapter: Path, base: Path) -> None:
    """Raise unless a checkpoint is whole, and a base model the one that its adapter was trained on."""
    _check_base(adapter, _run_of(adapter), base)


def _check_base(adapter: Path, run: dict[str, Any], base: Path) -> None:
    """Raise unless a base model is the one that an adapter was trained on, as far as its digest tells."""
    wanted = run["base_digest"]
    if not (base / "config.json").is_file():  # then it cannot be loaded, which is said later
        return
    if (found := digest_of(base)) != wanted:
        what = f"expected the model {wanted[:16]} that {adapter} was trained on, found {found[:16]}"
        if (base / PROVENANCE).is_file():
            what += " (an export: it may hold the adapter already)"
        raise IntegrityError(str(base), what, f"It was {run['base_model']}. Give the folder it is in now.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a checkpoint or model; IntegrityError if it is not one."""
    try:
        loaded = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise IntegrityError(str(path), f"not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise IntegrityError(str(path), "expected a JSON object")
    return loaded
