"""Which data a call reads, and how much of it: as files, a mix and splits of `cli compile`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from schemas import hub
from schemas.errors import InputError, UsageError
from trainer.follow.training import Training


@dataclass
class Data:
    """What is compiled."""

    files: list[str] = field(default_factory=list)
    mix: list[str] = field(default_factory=list)
    """NAME, NAME:SHARE or NAME#ROWS."""
    options: list[str] = field(default_factory=list)
    hubs: set[str | None] = field(default_factory=set)
    """The hubs of its datasets; None is the call's own."""
    notes: list[str] = field(default_factory=list)


def of(training: Training) -> Data:
    """The data of a call; UsageError if it names none, or what cannot be had."""
    made = TOOLS[training.table](training)
    if not made.files and not made.mix and "--self-cognition" not in made.options:
        raise UsageError(training.config.where, "it names no data", "A call that trains names its dataset.")
    return made


def _seq2seq(training: Training) -> Data:
    """CogAgent's and ChatGLM3's: `data_config` names files below the folder of the call."""
    assert training.data is not None
    paths = {}
    for split in ("train", "val", "test"):
        if name := training.found.get(f"data_config.{split}_file"):
            paths[split] = training.data / name
    if "train" not in paths:
        raise UsageError(f"{training.config.where}#/data_config/train_file", "it names no file", "Name one.")
    for split, path in paths.items():
        if not path.is_file():
            where = f"{training.config.where}#/data_config/{split}_file"
            raise UsageError(where, f"{path}: no such file", "Put it there, or take the line out.")
    made = Data([str(paths["train"])])
    for split in ("val", "test"):
        if path := paths.get(split):
            seen = [str(one) for name, one in paths.items() if name != split]
            made.options += [f"--{split}", f"{split}={path}" if str(path) in seen else str(path)]
    return made


def _chatglm3(training: Training) -> Data:
    """The scripts of ChatGLM3: one file."""
    if not (file := training.found.get("train_file")):
        raise UsageError("finetune.py", "it names no --train_file", "Name one.")
    card = "chatglm3_prompt_response" if training.found.get("train_format") == "input-output" else "chatglm3"
    return Data([str(file)], options=["--template", card])


def _llama_factory(training: Training) -> Data:
    """LLaMA-Factory's: entries of the dataset_info.json in dataset_dir, all of each or mixed by their odds."""
    found, config = training.found, training.config.config
    folder = Path(found.get("dataset_dir") or "data")
    names = list(config.expect.datasets or ())
    made = Data(mix=list(names), options=["--registry", str(folder)])
    strategy = found.get("mix_strategy") or "concat"
    if strategy not in ("concat", "interleave_under"):
        what = f"{strategy!r} repeats rows until the longest dataset is used up; cli compile mixes without repeats"
        hint = "Use interleave_under, or compile with --mix, --total and --max-repeats."
        raise UsageError(f"{training.config.where}#/mix_strategy", what, hint)
    if strategy != "concat":
        odds = _listed(found.get("interleave_probs")) or ["1"] * len(names)
        if len(odds) != len(names):
            what = f"{len(odds)} numbers for {len(names)} datasets"
            raise UsageError(f"{training.config.where}#/interleave_probs", what, "Give one for each.")
        made.mix = [f"{name}:{share}" for name, share in zip(names, odds, strict=True)]
    for name in _listed(found.get("eval_dataset")):
        made.options += ["--val", f"{name}={_entry_file(folder, name, training.config.where)}"]
    return made


def _entry_file(folder: Path, name: str, where: str) -> Path:
    """The file of an entry of a dataset_info.json whose rows need no names of their own."""
    path = folder / "dataset_info.json"
    entry = read_json(path).get(name)
    if not isinstance(entry, dict) or "file_name" not in entry:
        what = f"{name!r} is no entry with a file_name in {path}"
        raise UsageError(f"{where}#/eval_dataset", what, "Name such an entry, or use val_size.")
    return folder / entry["file_name"]


def _ms_swift(training: Training) -> Data:
    """ms-swift's today: files and datasets of a hub, each with a number of rows; swift/self-cognition is the pool."""
    found, made = training.found, Data()
    given = [_Source.of(word) for word in _words(found.get("dataset"))]
    for one in given:
        if one.name == "swift/self-cognition":
            if one.rows is None:
                hint = "Write swift/self-cognition#500."
                raise UsageError(one.word, "cli compile draws a number of rows from its pool, and none is given", hint)
            made.options += ["--self-cognition", str(one.rows)]
        elif one.is_file:
            made.files.append(one.name)
            made.mix.append(f"{_stem(one.name)}#{one.rows}" if one.rows else _stem(one.name))
        else:
            made.mix.append(f"{one.name}#{one.rows}" if one.rows else one.name)
            made.hubs.add(one.hub)
    if found.get("interleave_prob"):
        odds = _words(found["interleave_prob"])
        if len(odds) != len(made.mix) or any(one.rows for one in given):
            raise UsageError("--interleave_prob", "one number for each dataset without a number of rows was expected")
        made.mix = [f"{name}:{share}" for name, share in zip(made.mix, odds, strict=True)]
    elif made.files and not any("#" in name for name in made.mix) and len(made.files) == len(made.mix):
        made.mix = []  # files alone need no mix
    for word in _words(found.get("val_dataset")):
        one = _Source.of(word)
        if not one.is_file or one.rows:
            what = "only whole files can be held out by name"
            raise UsageError(f"--val_dataset {word}", what, "Give a file, or use --split_dataset_ratio.")
        made.options += ["--val", one.name]
    return made


_HUBS = {"HF::": hub.HUGGING_FACE, "MS::": hub.MODELSCOPE}


class _Source(NamedTuple):
    """A dataset as ms-swift names it: `HF::ORG/NAME:SUBSET#ROWS` or `FILE#ROWS`."""

    word: str
    name: str
    rows: int | None
    hub: str | None = None
    """The hub, if the name says which."""

    @property
    def is_file(self) -> bool:
        return Path(self.name).exists() or "." in Path(self.name).name or self.name.startswith(("/", "."))

    @classmethod
    def of(cls, word: str) -> _Source:
        name, sign, rows = word.rpartition("#")
        if not (sign and rows.isdigit()):
            name, rows = word, ""
        mark = name[:4] if name[:4] in _HUBS else ""
        made = cls(word, name.removeprefix(mark), int(rows) if rows else None, _HUBS.get(mark))
        name = made.name
        if ":" in name and not made.is_file:
            what = "subsets of a hub dataset are not told apart"
            raise UsageError(f"--dataset {word}", what, "Download it, and give the files of the subset.")
        return made


def _ms_swift_1(training: Training) -> Data:
    """ms-swift 1's: datasets by name, and another one mixed in, train_dataset_mix_ratio rows for each row."""
    found, made = training.found, Data()
    names = _words(found.get("dataset"))
    files = _words(found.get("custom_train_dataset_path"))
    rows, ratio = int(found.get("train_dataset_sample", -1)), float(found.get("train_dataset_mix_ratio") or 0)
    counted = rows >= 0
    every = [*names, *map(_stem, files)]
    if ratio and len(every) > 1:
        what = "ms-swift mixes so many rows for each row of all datasets together, and a share is one dataset's"
        raise UsageError("--train_dataset_mix_ratio", what, "Give shares: cli compile --mix A:1,B:1,ms-bench:4")
    made.files = list(files)
    if counted:
        made.mix = [f"{name}#{rows}" for name in every]
    else:
        made.mix = [f"{name}:1" for name in every] if ratio else every if names else []
        if "train_dataset_sample" not in found:
            made.notes.append("all rows are read; ms-swift 1 takes 20,000 unless --train_dataset_sample says otherwise")
    if ratio:
        other = found.get("train_dataset_mix_ds") or "ms-bench"
        made.mix.append(f"{other}#{round(rows * ratio)}" if counted else f"{other}:{ratio:g}")
    for file in _words(found.get("custom_val_dataset_path")):
        made.options += ["--val", file]
    if "custom_val_dataset_path" not in found and "dataset_test_ratio" not in found:
        made.options += ["--val-size", "0.01"]  # its default
    return made


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            str(path), f"cannot be read: {error}", "The call reads it; mend it, or put it there."
        ) from error
    if not isinstance(found, dict):
        raise InputError(str(path), "expected a JSON object", "The call reads it; mend it.")
    return found


def _words(value: Any) -> list[str]:
    """The words of an option that takes several."""
    return [] if value in (None, "") else [str(one) for one in (value if isinstance(value, list) else [value])]


def _listed(value: Any) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for word in _words(value) for part in word.split(",") if part.strip()]


def _stem(file: str) -> str:
    """The name that cli compile gives a file."""
    return Path(file).name.split(".")[0]


TOOLS: dict[str, Callable[[Training], Data]] = {
    "seq2seq": _seq2seq, "chatglm3": _chatglm3, "llama_factory": _llama_factory, "ms_swift": _ms_swift,
    "ms_swift_1": _ms_swift_1,
}  # fmt: skip
"""By the table that the keys of a call are of."""
