"""Datasets of the ModelScope and Hugging Face hubs: from a folder of the user's, or downloaded.

The core never opens a connection. Downloading needs the `[hub]` extra; without it, and without a local copy, the
error says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas import install
from schemas.errors import InputError, UsageError

KEYS = {"modelscope": "ms_hub_url", "huggingface": "hf_hub_url"}
"""The keys of dataset_info.json, by hub."""
_CLIENTS = {"modelscope": "modelscope", "huggingface": "huggingface_hub"}
"""The packages that download, by hub."""


def named(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a dataset_info.json names a hub; its other places are ignored then."""
    return any(key in entry for key in KEYS.values())


def find(name: str, hubs: Mapping[str, str], registries: Sequence[Path]) -> tuple[Path, str | None]:
    """Find a hub dataset: (folder, revision or None) of a local copy if there is one, else of a download."""
    for repository in hubs.values():
        for folder in registries:
            for candidate in (folder / repository, folder / repository.split("/")[-1], folder / name):
                if candidate.is_dir():
                    return candidate, None
    errors, missing = [], []
    for hub in _order(hubs):
        try:
            return _download(hub, hubs[hub])
        except ImportError:
            missing.append(_CLIENTS[hub])
        except Exception as error:  # noqa: BLE001  # each hub client has its own errors for no network, no such repository...
            errors.append(f"{hub}: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
    repository = next(iter(hubs.values()))
    if errors:
        raise InputError(
            f"dataset {name}",
            f"{repository} could not be downloaded ({'; '.join(errors)})",
            _advice(name, repository),
        )
    raise UsageError(
        f"dataset {name}",
        f"there is no local copy of {repository}, and {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} "
        "not installed",
        _advice(name, repository),
    )


def _advice(name: str, repository: str) -> str:
    return (
        f"Put its files into DIR/{repository} and add --registry DIR; or install the [hub] extra to download it "
        f"({install.extra('hub')}). The embedded samples are called agent and bench."
        if name.startswith("ms-")
        else f"Put its files into DIR/{repository} and add --registry DIR, or install the [hub] extra."
    )


def _order(hubs: Mapping[str, str]) -> list[str]:
    """The hubs to try, in order: Hugging Face first, unless the user prefers ModelScope."""
    first = "modelscope" if os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true") else "huggingface"
    return sorted(hubs, key=lambda hub: hub != first)


def _download(hub: str, repository: str) -> tuple[Path, str | None]:
    if hub == "huggingface":
        from huggingface_hub import snapshot_download  # an extra

        folder = Path(snapshot_download(repository, repo_type="dataset"))
        return folder, folder.name  # the cache keeps a snapshot in a folder named by its commit
    from modelscope.hub.snapshot_download import dataset_snapshot_download  # an extra

    return Path(dataset_snapshot_download(repository)), None


def tokenizer_folder(name: str) -> Path:
    """The folder of a tokenizer that is given as a folder or as a hub id."""
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(
            f"--tokenizer {name}",
            "no such folder",
            "Give a folder with a tokenizer.json, or a hub id like Qwen/Qwen2.5-7B-Instruct.",
        )
    try:
        from huggingface_hub import snapshot_download  # an extra
    except ImportError:
        raise UsageError(
            f"--tokenizer {name}", "no such folder, and huggingface_hub is not installed to download it",
            f"Give a folder with a tokenizer.json, or install it: {install.extra('hub')}",
        ) from None  # fmt: skip
    try:
        return Path(snapshot_download(name, allow_patterns=["tokenizer*", "special_tokens_map.json", "chat_template*"]))
    except Exception as error:  # each failure of the client is one thing to the user: it could not be downloaded
        raise InputError(f"--tokenizer {name}", f"could not be downloaded: {type(error).__name__}: {error}") from error
