"""The folder of a set's images, where the configuration names none: the one in which the compiler found them."""

from __future__ import annotations

from pathlib import Path

from schemas.errors import UsageError
from trainer.config.config import TrainConfig
from trainer.data.stream import TrainingSet

MEDIA_DIR = "media_dir"


def find_folder(opened: TrainingSet, config: TrainConfig, where: str) -> tuple[str | None, list[str]]:
    """(the folder that image paths are relative to, remarks); UsageError if the set's own folders cannot serve."""
    recorded = opened.manifest.get("run", {}).get("media", {})
    if config.media_dir is not None or not recorded or not isinstance(opened.folder, Path):
        return config.media_dir, []
    found = {name: (opened.folder / folder).resolve() for name, folder in recorded.items()}
    pointer = f"{where}#/{MEDIA_DIR}"
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} in {folder}" for name, folder in found.items())
        hint = "Compile the set again with --media-dir of a folder that holds all, and paths that begin there."
        raise UsageError(pointer, f"the images of the datasets are in several folders: {listed}", hint)
    folder = next(iter(found.values()))
    if not folder.is_dir():
        what = f"the images were in {folder} when the set was compiled, and there is no such folder now"
        raise UsageError(pointer, what, "Set media_dir to the folder that image paths are relative to.")
    return str(folder), [f"media_dir is {folder}, where the images were when the set was compiled"]
