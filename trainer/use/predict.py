"""The replies of a model to the rows of a set, beside those that the rows have; of two models, side by side."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from schemas.errors import InputError, IntegrityError, UsageError
from schemas.manifest import CONVERTED, Manifest
from trainer.data.images import Images, images_of
from trainer.data.media import find_folder
from trainer.data.stream import SplitRows, TrainingSet
from trainer.data.vision.find import eyes_of
from trainer.models.pretrained import load_model, tokenizer_of
from trainer.predict.generate import Prediction, ReplyPrompt, predict, prompts, stop_ids, stop_words, write_lines
from trainer.predict.metrics import score
from trainer.use.checkpoint import check_base, check_whole

CLI = Path(__file__).parents[2] / "cli.py"


@dataclass(frozen=True)
class Predicted:
    """One model's predictions and their scores."""

    model: str
    predictions: list[Prediction]
    scores: dict[str, float]


def compiled(source: Path, model: Path, folder: Path) -> Path:
    """Compile raw rows for a model into `folder`, with all defaults; the compiler's own error if it cannot."""
    command = [sys.executable, str(CLI), "compile", str(source), "--tokenizer", str(model), "-o", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().rpartition("error: ")[2] or "cli compile failed"
        raise InputError(str(source), f"cannot be compiled for {model}: {said}", "Compile it first: cli compile.")
    return folder


def wanted(split: SplitRows, limit: int | None) -> list[ReplyPrompt]:
    """The prompts of a split's rows, pictures included, the first `limit` of them."""
    if split.opened.kind == "pretrain":
        raise UsageError(
            str(split.opened.folder), "it is of kind pretrain: documents have no replies", "Use another set."
        )
    found: Iterator[ReplyPrompt] = (
        prompt for number in range(len(split)) for prompt in prompts(split.row(number), sees=True)
    )
    return list(islice(found, limit))


def replies(
    model: Path, adapter: Path | None, opened: TrainingSet, asked: Sequence[ReplyPrompt], words: Sequence[str],
    media_dir: str | None, progress: Callable[[int, int], object], **settings: Any,
) -> Predicted:  # fmt: skip
    """The model's predictions for prompts of a set; `settings` are those of `predict`.

    Pictures of the rows are in `media_dir`, or where they were when the set was compiled.
    """
    manifest = opened.manifest
    check_whole(model)
    _check_tokenizer(manifest, model)
    if adapter:
        check_base(adapter, model)
    loaded = load_model(model, adapter)
    if torch.accelerator.is_available():
        loaded.to(torch.accelerator.current_accelerator())
    found = predict(
        loaded, tokenizer_of(opened, model), asked, stops=stop_ids(manifest), words=[*stop_words(manifest), *words],
        progress=progress, eyes=_eyes(opened, loaded.config, model, media_dir), **settings,
    )  # fmt: skip
    name = f"{model} with {adapter}" if adapter else str(model)
    return Predicted(name, found, score([one.prediction for one in found], [one.reference for one in found]))


def _eyes(opened: TrainingSet, config: Any, model: Path, media_dir: str | None) -> Images | None:
    if not opened.has_media:
        return None
    folder, _ = find_folder(opened, media_dir, "--media-dir")
    return images_of(opened, eyes_of(config, model), folder)


def _check_tokenizer(manifest: Manifest, model: Path) -> None:
    """Raise unless the model's tokenizer is the set's, by the file that decides ids; a chat template may differ."""
    for name in ("tokenizer.json", "tokenizer.model"):
        path, files = model / name, manifest["files"]
        known = {files[place] for place in (f"tokenizer/{name}", f"{CONVERTED}/{name}") if place in files}
        if path.is_file() and known:
            if hashlib.sha256(path.read_bytes()).hexdigest() in known:
                return
            hint = f"Compile the rows with --tokenizer {model}, or give the file of rows itself."
            raise IntegrityError(str(path), "not the tokenizer that the set was compiled with", hint)


def check_out(path: Path) -> None:
    """Raise a UsageError for a file that holds anything but predictions: it would be replaced."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"-o {path}", "expected a file, found something else", "Choose another -o.")
    try:
        with path.open("rb") as file:
            line = file.readline(2**24)
        known = not line or {one.name for one in fields(Prediction)} <= json.loads(line).keys()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", "Choose another -o.") from error
    except (ValueError, AttributeError, RecursionError):
        known = False
    if not known:
        what = "it is there already, and holds no predictions"
        raise UsageError(f"-o {path}", what, "Choose another -o; nothing was changed.")


def write(found: Sequence[Predicted], path: Path) -> None:
    """Write a line for each prompt, completely or not at all; the other model's reply is `compared`."""
    lines = []
    for first, *others in zip(*(one.predictions for one in found), strict=True):
        lines.append(asdict(first))
        for other in others:
            lines[-1] |= {"compared": other.prediction, "compared_stopped": other.stopped}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(lines, path)
    except OSError as error:
        raise InputError(str(path), f"cannot be written: {error.strerror or error}", "Choose another -o.") from error
