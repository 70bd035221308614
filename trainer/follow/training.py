"""What a call trains: its settings, its model, and the file that holds its configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import registry
from schemas import yaml
from schemas.errors import UsageError
from trainer.config import call as calls
from trainer.config import dialects
from trainer.config import load as configs
from trainer.config.call import ToolCall
from trainer.config.shell import Asked

_ARGUMENTS = "finetune.py DATA MODEL CONFIG [yes|N]"


@dataclass(frozen=True)
class Training:
    """What a call asks a trainer for."""

    table: str
    """The table in registry/train_configs that its keys are of."""
    found: dict[str, Any]
    """Its settings by dotted key, in the tool's own names."""
    config: configs.Loaded
    file: Path | None
    """The file with its settings, if `cli train` can take it as it is."""
    raw: dict[str, Any]
    """Its settings for `cli train`, without those that are for `cli compile` alone."""
    data: Path | None = None
    """The folder of its data files, if the call names one."""
    model: str | None = None
    """The model, if its settings do not name it."""
    resume: str | None = None


def of(call: ToolCall, model: str | None = None) -> Training:
    """What a call asks for, with `model` in place of its own if that is given.

    UsageError for a call that is incomplete, or that mixes those of two tools.
    """
    given, loose = calls.options(call.words)
    if call.tool == "chatglm3" and (loose or not given):
        return _of_documents(call, given, loose, model)
    file: Path | None = None
    raw = given
    if loose:
        file, changes = _file(call, loose)
        raw = yaml.read(file) | changes | given
        file = None if changes or given else file
    return _made(call, raw, file, model)


def _of_documents(call: ToolCall, given: dict[str, Any], words: Sequence[str], model: str | None = None) -> Training:
    """The training of CogAgent's and ChatGLM3's `finetune.py DATA MODEL CONFIG [yes|N]`."""
    if given:
        what = f"it takes {_ARGUMENTS}, or options such as --train_file, and this call has both: --{next(iter(given))}"
        raise UsageError("finetune.py", what, "Use one of the two.")
    if not 3 <= len(words) <= 4:
        raise UsageError("finetune.py", f"expected {_ARGUMENTS}, found {len(words)} arguments", "Name all of them.")
    data, file = Path(words[0]), Path(words[2])
    resume = words[3] if len(words) == 4 and words[3] else None
    if resume not in (None, "yes") and not str(resume).isdigit():
        what = f"the fourth argument is {resume!r}; expected yes, or the number of a checkpoint"
        raise UsageError("finetune.py", what, "Leave it out to start anew.")
    if not data.is_dir():
        raise UsageError(words[0], "no such folder", f"{_ARGUMENTS}: DATA is the folder of the data files.")
    made = _made(call, yaml.read(file), file, model or words[1])
    if made.table != "seq2seq":
        title = registry.train_config(made.table)["title"] if made.table != dialects.OWN else "cli train"
        what = f"it is a file of {title}, not one of CogAgent or ChatGLM3, whose finetune.py is called"
        raise UsageError(str(file), what, "Call the tool that the file is for.")
    return replace(made, data=data, resume=resume)


def _file(call: ToolCall, loose: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """(the settings file that a call names, the KEY=VALUE behind it)."""
    file, *others = loose
    changes: dict[str, Any] = {}
    for word in others:
        key, sign, value = word.partition("=")
        if not sign or call.tool != "llamafactory":
            raise UsageError(word, "is neither an option nor KEY=VALUE", f"Look at the call: {call.command} {file}")
        changes[key] = yaml.parse(value)
    return Path(file), changes


def _made(call: ToolCall, raw: dict[str, Any], file: Path | None, model: str | None) -> Training:
    tables = call.tables if call.tool != "chatglm3" or file is None else ()
    table = dialects.recognise(raw, tables)
    keys = registry.train_config(table)["keys"]
    found = dict(dialects.flat(raw, keys))
    where = str(file) if file else "finetune.py" if call.tool == "chatglm3" else f"{call.tool} {call.command}"
    # What only cli compile reads is no setting of a training; cli train would refuse some of it.
    entries = {key: dialects.entry_of(keys, key) or {} for key in found}
    ours = {key for key, entry in entries.items() if "compile" in entry and "to" not in entry}
    kept = {key: value for key, value in raw.items() if key not in ours}
    refused = any("remark" not in entries[key] for key in ours)
    rest = kept if file is None or refused else raw
    named = [f"model_name_or_path={json.dumps(model)}"] if model else []
    config = configs.of(Asked(rest, (table,), call.defaults, []), where, named)
    done = {f"{key} has no effect" for key in ours}
    remarks = tuple(said for said in config.remarks if said.partition(":")[0] not in done)
    return Training(table, found, replace(config, remarks=remarks), None if refused else file, rest, model=model)
