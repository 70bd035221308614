"""`cli export`: a checkpoint becomes a Hugging Face folder that serves and chats as it was trained.

    model*.safetensors, config.json        the model, LoRA merged in
    tokenizer files, chat_template.jinja   those of the set it was trained on
    generation_config.json                 ends where the template's replies end
    provenance.json, README.md             which data, model and checkpoint it came from

Written beside OUT under another name and renamed: OUT is whole or not there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import registry
from schemas.disk import flush
from schemas.errors import InputError, IntegrityError, UsageError
from schemas.manifest import files_of, read_manifest
from schemas.stores import AnyPath, path_of
from trainer.data.store import store_of
from trainer.data.stream import Set
from trainer.models.pretrained import load_model
from trainer.objectives import evaluating
from trainer.predict.generate import stop_ids
from trainer.run.checkpoints import COMPLETE, RUN

PROVENANCE = "provenance.json"
ADAPTER = "adapter_config.json"
MADE_BY = "finetune-data-compiler export"
_PROBED = 64
"""Tokens of a trained row on which the merged model must say what the model with its adapter says."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, the set it was trained on and, for an adapter, the model it belongs to."""

    folder: Path
    run: dict[str, Any]
    set: AnyPath
    manifest: dict[str, Any]
    base: Path
    adapter: dict[str, Any] | None


def open_checkpoint(folder: Path, *, data: AnyPath | None = None, base: Path | None = None) -> Checkpoint:
    """Return the checkpoint in `folder`; `data` and `base` say where set and model are if they have moved."""
    if not (folder / RUN).is_file():
        what = "no such folder" if not folder.is_dir() else f"no {RUN} in it: not a checkpoint"
        raise InputError(str(folder), what, "Give a folder OUTPUT_DIR/checkpoint-N.")
    if not (folder / COMPLETE).is_file():
        raise IntegrityError(
            str(folder), f"no {COMPLETE} mark: it was not written to its end", "Use an earlier checkpoint."
        )
    run = _json(folder / RUN)
    where = data or path_of(run["provenance"]["out"])
    try:
        manifest = read_manifest(where)
    except InputError as error:
        raise InputError(error.where, error.what, "Say with --set where the compiled set is now.") from None
    if manifest["digest"] != run["set"]:
        raise IntegrityError(
            str(where), f"expected the set {run['set'][:16]} the checkpoint was trained on, "
            f"found {manifest['digest'][:16]}", "Say with --set where that is.",
        )  # fmt: skip
    adapter = _json(folder / ADAPTER) if (folder / ADAPTER).is_file() else None
    return Checkpoint(folder, run, where, manifest, base or Path(run["base_model"]), adapter)


def export(checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
    """Write the export to `out` and return its provenance."""
    out = out.resolve()  # "." has no name to write beside
    _refuse_adapter(checkpoint)
    _refuse_foreign(out)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        provenance = _write(checkpoint, partial)
        for path in (*partial.rglob("*"), partial):
            flush(path)
        _replace(out, partial)
    except OSError as error:
        raise InputError(str(error.filename or out), f"cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return provenance


def _refuse_adapter(checkpoint: Checkpoint) -> None:
    kind = checkpoint.adapter["peft_type"] if checkpoint.adapter else "LORA"
    if kind == "LORA":
        return
    why = "cannot be merged into weights"
    if kind == "PREFIX_TUNING":
        why = "is keys and values put in front of every layer's own, which no weight of a model can hold"
    raise UsageError(
        str(checkpoint.folder),
        f"a {kind} checkpoint {why}",
        "Use it beside its model: cli chat MODEL --adapter CHECKPOINT.",
    )


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(str(out), "expected a folder, found a file")
    if out.is_dir() and any(out.iterdir()) and not _is_ours(out / PROVENANCE):
        found = min(path.name for path in out.iterdir())
        raise UsageError(
            str(out), f"the folder is not empty and holds no export (found {found!r})",
            "Choose a new folder; nothing in this one was touched.",
        )  # fmt: skip


def _is_ours(mark: Path) -> bool:
    try:
        found = json.loads(mark.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("made_by") == MADE_BY


def _write(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    source = checkpoint.base if checkpoint.adapter else checkpoint.folder
    if checkpoint.adapter:
        _merge(checkpoint, folder)
    else:
        _copy_weights(source, folder)
    for path in sorted(checkpoint.base.glob("*processor_config.json")):
        shutil.copyfile(path, folder / path.name)  # of images and videos
    note = copy_tokenizer(checkpoint, folder)
    _generation_config(checkpoint, source, folder)
    provenance = _provenance(checkpoint, note)
    (folder / "README.md").write_text(_readme(provenance), encoding="utf-8")
    text = json.dumps(provenance, ensure_ascii=False, indent=1) + "\n"
    (folder / PROVENANCE).write_text(text, encoding="utf-8")
    return provenance


def _merge(checkpoint: Checkpoint, folder: Path) -> None:
    model = load_model(checkpoint.base, checkpoint.folder)
    probe = torch.tensor([_first_row(checkpoint)[:_PROBED]])
    before = _log_probs(model, probe)
    _untie(model)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # not a number somewhere in the adapter
        raise IntegrityError(str(checkpoint.folder), f"cannot be merged: {error}") from error
    allowed = 1e-3 if merged.dtype == torch.float32 else 0.3  # log-probabilities; bfloat16 has three digits
    apart = (before - _log_probs(merged, probe)).abs().max().item()
    if not apart <= allowed:
        raise IntegrityError(
            str(checkpoint.folder),
            f"merged, the model does not say what it says with its adapter: log-probabilities differ by {apart:.3g}",
            "Use it beside its model: cli chat MODEL --adapter CHECKPOINT.",
        )
    merged.config.use_cache = True
    merged.save_pretrained(folder)


def _untie(model: Any) -> None:
    """Give the output layer weights of its own where the adapter changes those it shares with the embeddings."""
    base = model.get_base_model()
    layers = base.get_input_embeddings(), base.get_output_embeddings()
    inner = [getattr(layer, "base_layer", layer) for layer in layers]
    adapted = any(one is not layer for one, layer in zip(inner, layers, strict=True))
    if adapted and inner[1] is not None and inner[0].weight is inner[1].weight:
        inner[1].weight = torch.nn.Parameter(inner[1].weight.detach().clone())
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False


def _first_row(checkpoint: Checkpoint) -> list[int]:
    where, manifest = checkpoint.set, checkpoint.manifest
    name = next(name for name, split in manifest["splits"].items() if split["rows"])
    row = Set(str(where), manifest, store_of(where, manifest)).split(name).row(0)
    return [int(token) for token in row["input_ids"]]


def _log_probs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with evaluating(model):
        return torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), -1)


def _copy_weights(source: Path, folder: Path) -> None:
    names = [path.name for path in sorted(source.glob("model*.safetensors*"))]
    if not names or not (source / "config.json").is_file():
        raise InputError(str(source), "expected model*.safetensors and config.json, found neither or only one")
    for name in names:
        shutil.copyfile(source / name, folder / name)
    config = _json(source / "config.json") | {"use_cache": True}  # training goes without
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> str:
    """Copy the set's tokenizer files, checked, with the chat template of a card; return what must be known of them."""
    for name, digest in checkpoint.manifest["files"].items():
        if name.startswith("tokenizer/"):
            source = files_of(checkpoint.set, checkpoint.manifest) / name
            data = source.read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise IntegrityError(str(source), "is damaged or was edited", "Compile the set again.")
            target = folder / name.removeprefix("tokenizer/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    text, note = card_template(checkpoint.manifest)
    if text:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return note


def card_template(manifest: dict[str, Any]) -> tuple[str | None, str]:
    """Return the chat template to use in place of the tokenizer's own, and what to know of it.

    None: the tokenizer's own it is; "": there is none.

    A card's Jinja becomes one of Transformers' by leaving out its marks where texts are cut before they are encoded.
    """
    name = manifest["template"]["name"]
    if name == "document":
        return None, "It was trained on documents, without a chat template."
    if name == "auto":
        return None, "The chat template is the tokenizer's own."
    text = registry.template_source(registry.template(name)["chat_template"])
    if "python_arguments" in text:
        return (
            "",
            f"No chat template was written: {name} lays calls out as Python, which Transformers' templates cannot.",
        )
    plain = text.replace("{{ cut }}", "")
    cut = " A text that begins with a line break may be encoded otherwise than in training." if plain != text else ""
    return plain, f"The chat template is the card {name}.{cut}"


def _generation_config(checkpoint: Checkpoint, source: Path, folder: Path) -> None:
    """Write the model's own generation_config.json with the template's stops put first among its ends."""
    path = next(
        (p for p in (source / "generation_config.json", checkpoint.base / "generation_config.json") if p.is_file()),
        None,
    )
    config = _json(path) if path else {}
    own = config.get("eos_token_id") or []
    ends = [*stop_ids(checkpoint.manifest), *(own if isinstance(own, list) else [own])]
    tokenizer = checkpoint.manifest["tokenizer"]
    pad = tokenizer["controls"].get(tokenizer["named_tokens"].get("pad_token", ""))
    config |= {"eos_token_id": list(dict.fromkeys(ends)), "pad_token_id": ends[0] if pad is None else pad}
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _provenance(checkpoint: Checkpoint, note: str) -> dict[str, Any]:
    manifest, run = checkpoint.manifest, checkpoint.run
    named = run["model"]["model"]  # as the configuration names it: a folder, or a hub's id
    keep = ("name", "format", "source", "share", "count", "target", "realized", "files", "sample")
    packages = ("finetune-data-compiler", "torch", "transformers", "peft")
    return {
        "made_by": MADE_BY,
        "base_model": Path(named).name if Path(named).is_absolute() else named,
        "base_revision": run["model"]["revision"],
        "checkpoint": checkpoint.folder.name,
        "step": run["step"],
        "tuning": "lora, merged" if checkpoint.adapter else "full",
        "set": {
            "manifest_digest": manifest["digest"],
            "kind": manifest["kind"],
            "seed": manifest["seed"],
            "splits": {
                name: {k: v for k, v in split.items() if k != "shards"} for name, split in manifest["splits"].items()
            },
            "datasets": [{key: entry[key] for key in keep if key in entry} for entry in manifest["datasets"]],
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
        "`provenance.json` has the digests of every file, of the tokenizer and of the template.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _replace(out: Path, partial: Path) -> None:
    """Put the new folder in the place of the old one; that is removed last."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_bytes())
    except ValueError as error:
        raise IntegrityError(str(path), f"not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise IntegrityError(str(path), "expected a JSON object")
    return loaded
