"""Write a checkpoint as a Hugging Face folder that serves and chats as it was trained.

    model*.safetensors, config.json        the model, LoRA merged in
    tokenizer files, chat_template.jinja   from the set it was trained on
    generation_config.json                 with the template's stop tokens first
    provenance.json, README.md             which data, model and checkpoint it came from

The folder is written under another name and renamed: OUT is complete or absent.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from schemas import own
from schemas.checkpoint import digest
from schemas.digests import content_digest
from schemas.disk import flush
from schemas.errors import InputError, UsageError
from trainer.models.original import families
from trainer.models.original.family import Family
from trainer.models.pretrained import load_model, stored_dtype
from trainer.predict.generate import stop_ids
from trainer.use.checkpoint import PROVENANCE, TrainedModel, read_json
from trainer.use.merge import check_mergeable, merge
from trainer.use.tokenizer import copy_tokenizer

MADE_BY = "finetune-data-compiler export"


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export(
    trained: TrainedModel, out: Path, *, dtype: torch.dtype | None = None, layout: str | None = None
) -> dict[str, Any]:
    """Write the export to `out` and return its provenance.

    `dtype` and `layout` are those of the base model where they are None; a model that was trained whole keeps its
    dtype, and one that Transformers has a class for gets the layout of that.
    """
    out = out.resolve()  # "." has no name to write beside
    check_mergeable(trained)
    original = _is_original(trained, layout)
    _refuse_foreign(out)
    partial, old = (out.with_name(f".{out.name}.{kind}") for kind in ("partial", "old"))
    if not out.exists() and own.is_ours(old, PROVENANCE, MADE_BY):  # an export was killed as it replaced this one
        old.rename(out)
    for path in (partial, old):  # what a killed export left
        if not own.clear(path, PROVENANCE, MADE_BY):
            raise UsageError(str(path), "it is in the way, and no export made it", "Move it somewhere else.")
    try:
        own.make(partial, PROVENANCE, {"made_by": MADE_BY})
        provenance = _write(trained, partial, dtype, original=original)
        for path in (*partial.rglob("*"), partial):
            flush(path)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        own.clear(old, PROVENANCE, MADE_BY)
    except OSError as error:
        raise InputError(str(error.filename or out), f"cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            own.clear(partial, PROVENANCE, MADE_BY)
    return provenance


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(str(out), "expected a folder, found a file")
    inside = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    if not inside:
        return
    if not own.is_ours(out, PROVENANCE, MADE_BY):
        what = f"the folder is not empty and holds no export (found {inside[0]!r})"
        raise UsageError(str(out), what, "Choose a new folder; nothing in this one was changed.")
    exported = {PROVENANCE, *(read_json(out / PROVENANCE).get("files") or ())}
    if others := [name for name in inside if name not in exported]:
        what = f"{others[0]!r} is beside the export in it, which is not of the export"
        raise UsageError(str(out), what, "Move it, or choose a new folder; nothing in this one was changed.")


def _is_original(trained: TrainedModel, layout: str | None) -> bool:
    """Whether the export has the layout of its base; UsageError where the one that is asked for does not exist."""
    family = _family(trained)
    if layout == "original" and family is None:
        raise UsageError("--layout original", f"{trained.base} has the layout of Transformers", "Leave it out.")
    if layout == "transformers" and family is not None and family.keeps_layout:
        raise UsageError("--layout transformers", f"it has no class for {family.title}", "Leave it out.")
    return layout == "original" or (family is not None and family.keeps_layout)


def _family(trained: TrainedModel) -> Family | None:
    """The family of the base model; None where that is gone, which a model that was trained whole does not need."""
    if not trained.adapter and not (trained.base / "config.json").is_file():
        return None
    return families.family_of(trained.base)


def _write(trained: TrainedModel, folder: Path, dtype: torch.dtype | None, *, original: bool) -> dict[str, Any]:
    if not (trained.adapter or original or dtype):
        _copy_weights(trained.folder, folder)
    else:
        model = merge(trained, dtype) if trained.adapter else _trained_whole(trained, dtype)
        if original:
            families.save_original(model, trained.base, folder)
        else:
            model.save_pretrained(folder)
    for path in sorted(trained.base.glob("*processor_config.json")):  # image and video processors
        shutil.copyfile(path, folder / path.name)
    note = copy_tokenizer(trained, folder, original=original)
    _generation_config(trained, folder)
    provenance = _provenance(trained, folder, note)
    (folder / "README.md").write_text(_readme(provenance), encoding="utf-8")
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    provenance["files"] = {name: list(digest(path)) for name, path in paths.items() if name != PROVENANCE}
    text = json.dumps(provenance, ensure_ascii=False, indent=1) + "\n"
    (folder / PROVENANCE).write_text(text, encoding="utf-8")
    return provenance


def _trained_whole(trained: TrainedModel, dtype: torch.dtype | None) -> Any:
    family = _family(trained)
    if family is not None and family.keeps_layout:
        model = family.native_class().from_pretrained(trained.folder, dtype=dtype or "auto")
    else:
        model = load_model(trained.folder, dtype=dtype or "auto")
    model.config.use_cache = True  # training sets it to false
    return model


def _copy_weights(source: Path, folder: Path) -> None:
    names = [path.name for path in sorted(source.glob("model*.safetensors*"))]
    if not names or not (source / "config.json").is_file():
        raise InputError(str(source), "expected model*.safetensors and config.json, found neither or only one")
    for name in (*names, *(path.name for path in source.glob("*.py"))):  # code of its own, never run here
        shutil.copyfile(source / name, folder / name)
    config = read_json(source / "config.json") | {"use_cache": True}  # training sets it to false
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _generation_config(trained: TrainedModel, folder: Path) -> None:
    """Write the model's generation_config.json with the template's stop tokens first in eos_token_id."""
    sources = [trained.base] if trained.adapter else [trained.folder, trained.base]
    path = next((p for source in sources if (p := source / "generation_config.json").is_file()), None)
    config = read_json(path) if path else {}
    own = config.get("eos_token_id") or []
    ends = [*stop_ids(trained.manifest), *(own if isinstance(own, list) else [own])]
    tokenizer = trained.manifest["tokenizer"]
    pad = tokenizer["controls"].get(tokenizer["named_tokens"].get("pad_token", ""))
    config |= {"eos_token_id": list(dict.fromkeys(ends)), "pad_token_id": ends[0] if pad is None else pad}
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _provenance(trained: TrainedModel, folder: Path, note: str) -> dict[str, Any]:
    manifest, run = trained.manifest, trained.run
    named = run["model"]["model"]  # as in the configuration: a folder or a hub id
    keep = ("name", "format", "source", "share", "count", "target", "realized", "files", "sample")
    packages = ("finetune-data-compiler", "torch", "transformers", "peft")
    return {
        "made_by": MADE_BY,
        "base_model": Path(named).name if Path(named).is_absolute() else named,
        "base_revision": run["model"]["revision"],
        "base_digest": run.get("base_digest"),
        "checkpoint": trained.folder.name,
        "step": run["step"],
        "tuning": "lora, merged" if trained.adapter else "full",
        "dtype": str(stored_dtype(folder)).removeprefix("torch."),
        "layout": "original" if families.family_of(folder) else "transformers",
        "set": {
            "manifest_digest": manifest["digest"],
            "content_digest": content_digest(manifest),
            "kind": manifest["kind"],
            "seed": manifest["seed"],
            "splits": {
                name: {k: v for k, v in split.items() if k != "shards"} for name, split in manifest["splits"].items()
            },
            "datasets": [{key: value for key, value in entry.items() if key in keep} for entry in manifest["datasets"]],
            "options": manifest["options"],
            "tokenizer_digest": manifest["tokenizer"]["digest"],
            "template": {key: manifest["template"][key] for key in ("name", "digest", "provenance")},
            "stops": manifest["template"]["certificate"]["stops"],
            "versions": manifest["versions"],
        },
        "note": note,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _readme(provenance: dict[str, Any]) -> str:
    data, counted = provenance["set"], ("rows", "tokens", "trained_tokens")
    lines = [
        f"# {provenance['base_model']}, fine-tuned", "",
        f"{provenance['base_model']} after {provenance['step']:,} steps ({provenance['tuning']}); {data['kind']} data.",
        "",
        "| dataset | rows | tokens | trained tokens |", "|---|---|---|---|",
        *(f"| {d['name']} | " + " | ".join(f"{d['realized'][k]:,}" for k in counted) + " |" for d in data["datasets"]),
        "",
        f"The set is `{data['manifest_digest']}`. Replies end with {', '.join(f'`{stop}`' for stop in data['stops'])}. "
        f"{provenance['note']}", "",
        "`provenance.json` has the size and the digest (xxh3 of 128 bits) of every file, and the digests of the "
        "tokenizer and the template.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
