"""What is set for a call, and what starts it, as the same for `cli train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from schemas.errors import UsageError
from trainer.config.call import ToolCall

_PIXELS = ("MAX_PIXELS", "MIN_PIXELS", "SIZE_FACTOR", "FPS", "FPS_MAX_FRAMES", "VIDEO_MAX_PIXELS", "NFRAMES")
_RENDEZVOUS = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


class Start(NamedTuple):
    """How `cli train` is started."""

    environment: dict[str, str]
    launcher: tuple[str, ...]
    """torchrun or deepspeed with its options, up to the program; () for one process."""
    notes: list[str]


def of(call: ToolCall, around: Mapping[str, str] = os.environ) -> Start:
    """How the processes of a call are started; `around` is the environment that it is made in."""
    environment, notes = dict(call.environment), []
    for name in ("PYTHONPATH", *_PIXELS):
        if name in environment:
            environment.pop(name)
            why = "the model's own processor settings are compiled" if name in _PIXELS else "no code of that tool runs"
            notes.append(f"{name} is not set: {why}")
    launcher = list(call.launcher)
    if launcher[:1] == ["accelerate"]:
        what = "cli train is started by torchrun or deepspeed"
        raise UsageError("accelerate launch", what, "Write torchrun --nproc-per-node N in its place.")
    given = {**around, **environment}
    forced = call.tool == "llamafactory" and given.get("FORCE_TORCHRUN", "").lower() in ("1", "true", "y")
    if not launcher and (forced or (call.tool == "swift" and "NPROC_PER_NODE" in given)):
        launcher = ["torchrun", f"--nproc-per-node={given.get('NPROC_PER_NODE', 'auto')}"]
        launcher += [f"--{name.lower().replace('_', '-')}={given[name]}" for name in _RENDEZVOUS if name in given]
        for name in ("FORCE_TORCHRUN", "NPROC_PER_NODE", *_RENDEZVOUS):
            environment.pop(name, None)
    if launcher:
        own = ["--no_python", "--no_local_rank"] if launcher[0] == "deepspeed" else ["--no-python"]
        launcher += own
    return Start(environment, tuple(launcher), notes)
