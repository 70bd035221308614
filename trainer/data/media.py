"""The folder of a set's images, where the configuration names none: the one in which the compiler found them."""

from __future__ import annotations

from pathlib import Path

from schemas.errors import UsageError
from trainer.data.stream import TrainingSet


def find_folder(opened: TrainingSet, given: str | None, asked: str) -> tuple[str | None, list[str]]:
    """(the folder that image paths are relative to, remarks): the one `given`, else that of the set.

    `asked` is the key or option that gives one. UsageError if the folder is not there, or the set has several.
    """
    if given is not None:
        if not Path(given).is_dir():
            raise UsageError(f"{asked}: {given}", "no such folder", "Give the folder that image paths are relative to.")
        return given, []
    recorded = opened.manifest.get("run", {}).get("media", {})
    if not recorded or not isinstance(opened.folder, Path):
        return None, []
    found = {name: (opened.folder / folder).resolve() for name, folder in recorded.items()}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} in {folder}" for name, folder in found.items())
        hint = "Compile the set again with --media-dir of a folder that holds all, and paths that begin there."
        raise UsageError(asked, f"the images of the datasets are in several folders: {listed}", hint)
    folder = next(iter(found.values()))
    if not folder.is_dir():
        what = f"the images were in {folder} when the set was compiled, and there is no such folder now"
        raise UsageError(asked, what, "Give the folder that image paths are relative to.")
    return str(folder), [f"media_dir is {folder}, where the images were when the set was compiled"]
