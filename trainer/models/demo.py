"""The embedded model `demo`, for trying things out: a configuration here, weights from a seed at its first use."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import registry

NAME = "demo"
ABOUT = "the model demo has two layers and random weights: it is for trying out the commands, and learns little"


def folder() -> Path:
    """The folder of the embedded model, with the demo tokenizer; made in the user's cache if it is not there."""
    import platformdirs

    files = sorted([*registry.DEMO_MODEL.iterdir(), *registry.DEMO_TOKENIZER.iterdir()])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    made = Path(platformdirs.user_cache_dir("finetune-data-compiler")) / "models" / f"{NAME}-{digest[:16]}"
    if not made.is_dir():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent, prefix=".") as partial:
            _make(Path(partial) / NAME, files)
            with suppress(OSError):  # another process was faster
                (Path(partial) / NAME).rename(made)
    return made


def _make(target: Path, files: list[Path]) -> None:
    import torch
    import transformers

    target.mkdir()
    for path in files:
        shutil.copyfile(path, target / path.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto: Any = transformers.AutoModelForCausalLM  # untyped
        model = auto.from_config(transformers.AutoConfig.from_pretrained(target))
    model.save_pretrained(target)
