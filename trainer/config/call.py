"""A call that trains, in its parts: what is set for it, what starts it, what it calls, and its arguments.

`OMP_NUM_THREADS=1 torchrun --nproc_per_node=8 finetune.py data model lora.yaml` sets a variable, is started by
torchrun, and calls ChatGLM3's or CogAgent's `finetune`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ASSIGNED = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
"""NAME=VALUE."""
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_PROGRAMS = {"swift": "swift", "llamafactory-cli": "llamafactory", "lmf": "llamafactory"}
"""Commands that have subcommands, with their tool."""
_SCRIPTS = {
    "finetune.py": ("chatglm3", "finetune"), "finetune_hf.py": ("chatglm3", "finetune"),
    "llm_sft.py": ("swift", "sft"), "sft.py": ("swift", "sft"), "pt.py": ("swift", "pt"), "rlhf.py": ("swift", "rlhf"),
    "src/train.py": ("llamafactory", "train"),
}  # fmt: skip
"""By the name of a script: its tool, and the command that it is."""
_LAUNCHERS = ("python", "python3", "torchrun", "deepspeed", "accelerate")
_TRAINING = {
    ("swift", "sft"): "sft", ("swift", "pt"): "pretrain", ("swift", "rlhf"): "dpo", ("chatglm3", "finetune"): None,
    ("llamafactory", "train"): None,
}  # fmt: skip
"""By tool and command that trains: the objective, if no option says another one."""
_TABLES = {"swift": ("ms_swift", "ms_swift_1"), "chatglm3": ("chatglm3",), "llamafactory": ("llama_factory",)}
"""By tool: the tables in registry/train_configs that its options may be of."""


class ToolCall(NamedTuple):
    """A call of another tool."""

    environment: dict[str, str]
    """What is set for it in front of it."""
    launcher: tuple[str, ...]
    """What starts it, with its options: torchrun, python; () if it starts itself."""
    tool: str
    """swift, llamafactory or chatglm3 (CogAgent's finetune.py has the same arguments)."""
    command: str
    words: tuple[str, ...]
    """Its arguments."""

    @property
    def trains(self) -> bool:
        """Whether it trains a model."""
        return (self.tool, self.command) in _TRAINING

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables in registry/train_configs that its options may be of."""
        return _TABLES[self.tool]

    @property
    def defaults(self) -> dict[str, Any]:
        """What the name of the command says, in our names."""
        objective = _TRAINING.get((self.tool, self.command))
        return {"objective": objective} if objective else {}


def parse(words: Sequence[str]) -> ToolCall | None:
    """The call that words make; None if it is none of a tool that is known here."""
    environment: dict[str, str] = {}
    while words and (assigned := ASSIGNED.fullmatch(words[0])):
        environment[assigned[1]] = assigned[2]
        words = words[1:]
    if not words:
        return None
    first = Path(words[0]).name
    if first in _PROGRAMS:
        return ToolCall(environment, (), _PROGRAMS[first], words[1], tuple(words[2:])) if len(words) > 1 else None
    for place, word in enumerate(words):
        name = "src/train.py" if word.endswith("src/train.py") else Path(word).name
        if name in _SCRIPTS and (place == 0 or first in _LAUNCHERS):
            launcher = tuple(words[:place]) if first not in ("python", "python3") or place > 1 else ()
            return ToolCall(environment, launcher, *_SCRIPTS[name], tuple(words[place + 1 :]))
    return None


def options(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(values by option, words that belong to none): `--a 1 --b x y --c` is a: 1, b: [x, y], c: true."""
    found: dict[str, list[str]] = {}
    loose: list[str] = []
    name: str | None = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, sign, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = [value] if sign else []
        elif name is None:
            loose.append(word)
        else:
            found[name].append(word)
    values = {key: [_typed(one) for one in some] for key, some in found.items()}
    return {key: some[0] if len(some) == 1 else some or True for key, some in values.items()}, loose


def _typed(text: str) -> Any:
    """A word of a command line as the value it stands for."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if len(text) < 400 and _NUMBER.fullmatch(text):
        return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text) if text[:1] in ("{", "[") else text
    return text
