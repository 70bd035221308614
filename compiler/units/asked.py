"""What processes are asked beside compiling units: to load what units need, and to prove that it is right."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from compiler.proof.certificate import certificate_of
from compiler.proof.encoders import Choice, Trial, agree, judge, try_fast
from compiler.tokenizer.tokenizer import Sample
from compiler.units.task import Setup
from compiler.units.unit import tools_of
from schemas.arrow import leave_pandas
from schemas.errors import Problem
from schemas.memory import trim_memory


def load_tools(setup: Setup) -> None:
    """Load the tokenizer and the template. What is wrong with them is for the first unit to say."""
    leave_pandas()
    with suppress(Problem):
        tools_of(setup)


def load_fast(setup: Setup) -> str:
    """Load the fast encoder too, and let go of the reference; return why there is no fast one, or ""."""
    with suppress(Problem):
        return tools_of(setup)[0].load_fast()
    return ""


def let_go() -> None:
    """Return memory to the system that is free in this process: what units needed, shards need again in other sizes."""
    trim_memory()
    pa.default_memory_pool().release_unused()


def trial(setup: Setup) -> Trial:
    """Try the fast encoder of this process on awkward texts."""
    return try_fast(tools_of(setup)[0])


def judged(setup: Setup, cache: str, found: Trial) -> Choice:
    """Compare a trial with the reference; the cache keeps the verdict."""
    return judge(Path(cache), tools_of(setup)[0], found)


def agreed(setup: Setup, samples: list[Sample]) -> bool:
    """Whether the reference gives the same ids for texts that the fast encoder of another process encoded."""
    return agree(tools_of(setup)[0], samples)


def certified(setup: Setup, cache: str) -> None:
    """Check the template, unless the cache has its certificate; it is there then. Raises what is wrong with it."""
    tokenizer, template = tools_of(setup)
    certificate_of(template, tokenizer, setup.options.special_text, Path(cache))
