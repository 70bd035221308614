"""What a process that compiles units does before the first one."""

from __future__ import annotations

from contextlib import suppress

from compiler.proof.encoders import Trial, try_fast
from compiler.units.task import Setup
from compiler.units.unit import tools_of
from schemas.errors import Problem


def warm_up(setup: Setup) -> None:
    """Load what units with this setup will need, in the process that will compile them.

    What is wrong with it is for the first unit to say.
    """
    with suppress(Problem):
        tokenizer, _ = tools_of(setup)
        tokenizer.load_fast()


def trial(setup: Setup) -> Trial:
    """Try the fast encoder of this process on awkward texts."""
    return try_fast(tools_of(setup)[0])
