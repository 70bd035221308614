"""The calls of `cli compile` and `cli train` that do what a call of another tool does."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml as pyyaml

import registry
from schemas import hub
from schemas.errors import UsageError
from trainer.config import call as calls
from trainer.config import shell
from trainer.config.call import ToolCall
from trainer.follow import data, options, start, training
from trainer.follow.data import Data, read_json
from trainer.follow.training import Training

WRITTEN = "# Written by cli follow. Its source: "
"""How a file begins that cli follow may write again."""
_KNOWN = (
    "finetune.py DATA MODEL CONFIG [yes|N], llamafactory-cli train FILE.yaml, swift sft|pt|rlhf ..., or a shell file "
    "such as finetune_pt.sh"
)
_OTHERS = {
    r"\bswift infer\b|\bllm_infer\.py|\bllamafactory-cli chat\b|\binference(_hf)?\.py|\bcli_demo": (
        "cli chat MODEL [--adapter CHECKPOINT] [--stop Observation:] to talk with a model, or cli predict MODEL SET to "
        "let it answer data"
    ),
    r"\bstreamlit run\b|\bllamafactory-cli webchat\b|\bswift app\b": "cli chat MODEL [--adapter CHECKPOINT]",
    r"\bswift deploy\b|\bllamafactory-cli api\b": "cli serve MODEL [--stop Observation:]",
    r"\bllamafactory-cli export\b|\bswift export\b|\bswift merge-lora\b": "cli export CHECKPOINT OUT",
    r"format_tool_alpaca\.py|format_advertise_gen\.py": "cli compile on the file itself: its format is known",
}
"""Calls that do not train, and what to type for them."""


@dataclass(frozen=True)
class Plan:
    """Two calls."""

    environment: dict[str, str]
    """What is set for both."""
    compile: tuple[str, ...]
    """The arguments of cli."""
    launcher: tuple[str, ...]
    """What starts the second; () if it starts itself."""
    train: tuple[str, ...]
    file: tuple[Path, str] | None
    """The configuration that is written first, and its text."""
    notes: tuple[str, ...]
    """What has no equivalent or no effect, each with its reason."""
    remarks: tuple[str, ...]
    """What cli train will say of the configuration."""

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        found = dataclasses.asdict(self) | {"file": None}
        return found | {"file": {"path": str(self.file[0]), "text": self.file[1]}} if self.file else found

    def lines(self) -> list[str]:
        """The two calls as one types them."""
        words = [f"{name}={value}" for name, value in self.environment.items()]
        return [shlex.join([*words, "cli", *self.compile]), shlex.join([*words, *self.launcher, "cli", *self.train])]


def of(
    words: Sequence[str], out: str, file: Path, model: str | None = None, more_compile: str = "", more_train: str = ""
) -> Plan:
    """The plan for a call that writes its set to `out`, and its configuration, if it has no file, to `file`.

    `model` takes the place of the call's own.
    """
    call, notes = _call(words)
    began = start.of(call)
    asked = training.of(call, model)
    others, without = options.of(asked.table, asked.found)
    found = data.of(asked)
    card, why = _template(asked, found.options + shlex.split(more_compile))
    made = [*found.files, *(["--mix", ",".join(found.mix)] if found.mix else []), *found.options, *others]
    made += [*_from(asked, found, began.environment), *(["--template", card] if card else [])]
    made += [*_expected(asked, card, made), *shlex.split(more_compile), "-o", out]
    where, written = (str(asked.file), None) if asked.file else (str(file), (file, _text(asked, words)))
    trained = [out, where, *(["--model", asked.model] if asked.model else [])]
    trained += ["--resume", asked.resume] if asked.resume else []
    said = (*notes, *began.notes, *found.notes, *without, *why)
    return Plan(
        began.environment, ("compile", *made), began.launcher, ("train", *trained, *shlex.split(more_train)), written,
        tuple(said), asked.config.remarks,
    )  # fmt: skip


def _call(words: Sequence[str]) -> tuple[ToolCall, list[str]]:
    """(the call that words make, or that the shell file makes which they name; notes on what of it is left out)."""
    named = words[1:] if words and words[0] in ("bash", "sh", "source", ".") else words
    if named and len(named) == 1 and shell.is_shell(Path(named[0])):
        found = shell.find(Path(named[0]))
        rest = [f"what follows the call is not run: {found.rest.strip()}"] if found.rest.strip() else []
        return found.call, [*found.remarks, *rest]
    call = calls.parse(words)
    if call is not None and call.trains:
        return call, []
    text = shlex.join(words)
    other = next((ours for theirs, ours in _OTHERS.items() if re.search(theirs, text)), "")
    what = "it does not train, and is followed by hand" if other else "it is no call that is known here"
    raise UsageError(text[:200], what, f"Type {other}." if other else f"Known are {_KNOWN}.")


def _from(asked: Training, found: Data, environment: Mapping[str, str]) -> list[str]:
    """The options that name the model's tokenizer, and the hub of what is from one."""
    config = asked.config.config
    name, hubs = config.model_name_or_path, set(found.hubs)
    made = ["--tokenizer", name]
    if not Path(name).is_dir() and hub.is_id(name):
        made = ["--tokenizer", f"{name}@{config.model_revision}" if config.model_revision else name]
        hubs.add(None)
    around = hub.of_environment({**os.environ, **environment})
    own = around or config.hub or registry.train_config(asked.table)["defaults"].get("hub")
    wanted = sorted({one or own or hub.HUBS[0] for one in hubs})
    if len(wanted) > 1:
        what = "the model and the datasets are from two hubs, and a compile asks one"
        raise UsageError(" and ".join(wanted), what, "Download one of them, and give its folder or files.")
    return [*made, *(["--hub", wanted[0]] if wanted and wanted[0] != around and (own or None not in hubs) else [])]


def _template(asked: Training, given: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the card for --template, notes); None where the tokenizer's own chat template is right, or one is given."""
    if "--template" in given:
        return None, []
    config, folder = asked.config.config, Path(asked.config.config.model_name_or_path)
    original: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        original = read_json(folder / "config.json")
    names = [Path(str(name)).name.lower() for name in (folder.resolve().name, original.get("_name_or_path", ""))]
    cards = {name: registry.template(name).get("models", ()) for name in registry.template_names()}
    for name in names:
        if card := next((card for card, some in cards.items() if any(fnmatchcase(name, one) for one in some)), None):
            return card, []
    if asked.table == "seq2seq" and original.get("model_type") == "chatglm":
        return "cogagent" if "vision_config" in original else "chatglm3", []
    theirs = config.expect.template
    if theirs and original and theirs in cards and not _has_template(folder):
        return theirs, []
    return None, [f"template {theirs}: the chat template of the model's own tokenizer is used"] if theirs else []


def _has_template(folder: Path) -> bool:
    """Whether the tokenizer of a model's folder has a chat template."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and "chat_template" in read_json(path)


def _expected(asked: Training, card: str | None, given: Sequence[str]) -> list[str]:
    """The options for what `cli train` expects of the set: lengths, packs, numbers of rows, validation rows."""
    expect, made = asked.config.config.expect, []
    if expect.max_length is not None:
        eyes = _tokens_of_a_picture(card) if card else 0
        made += ["--pack" if expect.packing else "--max-length", str(expect.max_length + eyes)]
    if expect.max_samples is not None:
        made += ["--limit", str(expect.max_samples)]
    if expect.val_size and "--val" not in given:
        made += ["--val-size", f"{expect.val_size:g}"]
    return made


def _tokens_of_a_picture(card: str) -> int:
    """The tokens of a picture where all have one number, which come on top of the lengths of a document; else 0."""
    vision = registry.template(card).get("vision")
    image = registry.vision(vision)["image"]["defaults"] if vision else {}
    return int(image["grid_height"] * image["grid_width"] // image["merge_size"] ** 2) if image else 0


def _text(asked: Training, words: Sequence[str]) -> str:
    """The configuration of a call that has no file, in the names of its tool."""
    text = pyyaml.safe_dump(asked.raw, allow_unicode=True, sort_keys=False)
    return f"{WRITTEN}{shlex.join(words)[:500]}\n{text}"
