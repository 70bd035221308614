"""The folder of a model and its configuration; no weights are loaded."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas import hub
from schemas.checkpoint import COMPLETE
from schemas.checkpoint import check as check_checkpoint
from schemas.errors import UsageError
from trainer.config.config import TrainConfig
from trainer.models import demo, reading
from trainer.models.digest import digest_of
from trainer.models.original import families
from trainer.models.original.family import Family
from trainer.models.original.weights import files_of
from trainer.models.safetensors import need_safetensors


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk."""

    folder: Path
    config: Any
    """The Transformers configuration."""
    record: dict[str, Any]
    """For checkpoints: name, revision (of a hub, the commit), the hub, and digests of remote code if it is run."""
    family: Family | None = None
    """For a folder in the layout of code of its own: what it becomes."""

    @cached_property
    def digest(self) -> str:
        """What tells the model from others (digest.py); the files are read when it is first asked for."""
        return digest_of(self.folder)

    @property
    def text_config(self) -> Any:
        """The configuration of the language model in it."""
        return self.config.get_text_config()

    @property
    def auto_class(self) -> Any:
        """The Transformers class of the model, or the one that picks it."""
        if self.family is not None:
            return self.family.native_class()
        import transformers

        names = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        sees = self.config.model_type in names and hasattr(self.config, "vision_config")
        return transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM

    @property
    def sees_one_size(self) -> bool:
        """Whether it is a model whose pictures all have one size and one number of tokens."""
        return self.family is not None and hasattr(self.config, "vision_config")

    @property
    def tokens_of_a_picture(self) -> int:
        """The tokens of a picture where all have one number; else 0."""
        if not self.sees_one_size:
            return 0
        eyes = self.config.vision_config
        return int(eyes["image_size"] // eyes["patch_size"] // 2) ** 2

    def made(self, **settings: Any) -> Any:
        """A model of this configuration with new weights; on the meta device it has none.

        With `settings`, what is raised may be their fault; else it is that of the configuration, and a UsageError.
        """
        if settings:
            return self._made(settings)
        with reading.explained(str(self.folder / "config.json"), "no model can be made of it", UsageError):
            return self._made({})

    def _made(self, settings: dict[str, Any]) -> Any:
        config = copy.deepcopy(self.config) if settings else self.config  # Transformers writes settings into it
        if self.family is not None:
            return self.auto_class._from_config(config, **settings)
        return self.auto_class.from_config(config, **settings, trust_remote_code=self.record["trust_remote_code"])

    @property
    def module_names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of modules that users know -> those in the native class; empty for an ordinary model."""
        return self.family.modules if self.family is not None else {}


def find(config: TrainConfig) -> ModelFolder:
    """Find the model that a configuration names, or download it; UsageError if there is none."""
    import transformers

    name, revision, source = config.model_name_or_path, config.model_revision, None
    folder = Path(name)
    if not folder.is_dir() and name == demo.NAME:
        folder = demo.folder()
    elif not folder.is_dir():
        snapshot = _download(config)
        folder, revision, source = snapshot.folder, snapshot.commit, snapshot.hub
        if not any(folder.glob("*.safetensors")):
            fetch = "modelscope download" if source == hub.MODELSCOPE else "hf download"
            hint = f"Download it whole, and convert it: {fetch} {name} --local-dir DIR; cli safetensors DIR"
            raise UsageError(f"model_name_or_path: {name}", "it has no *.safetensors files", hint)
    if not (folder / "config.json").is_file():
        raise UsageError(str(folder), "no config.json: not the folder of a model", "Give the folder of a model.")
    if (folder / COMPLETE).is_file():  # a checkpoint of a whole model
        check_checkpoint(folder)
    need_safetensors(folder)
    files_of(folder)  # names a shard that is missing
    record: dict[str, Any] = {"model": name, "revision": revision, "trust_remote_code": config.trust_remote_code}
    if source is not None:
        record["hub"] = source
    if config.trust_remote_code:
        record["remote_code"] = {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.py"))
        }
    family = None if config.trust_remote_code else families.family_of(folder)
    if family is not None:
        return ModelFolder(folder, families.configuration(folder, family), record, family)
    hint = "If it comes with its own code and you trust that code, set trust_remote_code: true."
    with reading.explained(str(folder / "config.json"), "transformers does not know this model", UsageError, hint):
        loaded = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    return ModelFolder(folder, loaded, record)


def _download(config: TrainConfig) -> hub.Snapshot:
    name, revision = config.model_name_or_path, config.model_revision
    where = f"model_name_or_path: {name}"
    if not hub.is_id(name):
        raise UsageError(where, "no such folder", "Give the model's folder or a hub id.")
    repository, inside = hub.parse_id(name)
    if inside is not None:
        raise UsageError(
            where, "the revision has a key of its own", f"Write {repository}, and model_revision: {inside}."
        )
    chosen = hub.chosen(config.hub, "hub:") or hub.HUBS[0]
    pinned = hub.is_commit(revision)
    ignored = ["*.bin", "*.pt", "*.pth", "*.gguf", *([] if pinned else ["*.py"])]
    snapshot = hub.download(chosen, name, revision, "model", where, "Give the model's folder", without=ignored)
    folder = snapshot.folder
    # Many configurations trust code where a model has none; then there is nothing to pin.
    trusted = config.trust_remote_code and not pinned
    if trusted and (folder / "config.json").is_file() and "auto_map" in families.config_of(folder):
        what = f"{name} comes with code, and code from a hub is run only from a fixed commit"
        raise UsageError("model_revision", what, "Set it to the full hash of a commit that you have reviewed.")
    return snapshot
