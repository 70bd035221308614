"""The options of the commands that let a model write: which model, where it stops, and how tokens are chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from schemas.errors import UsageError
from schemas.stores import path_of

_OPTIONS = (
    click.option(
        "--adapter",
        type=click.Path(path_type=Path),
        metavar="CHECKPOINT",
        help="Put this LoRA or prefix checkpoint on MODEL, with the tokenizer and stop tokens it was trained with.",
    ),
    click.option(
        "--set", "data", type=path_of, metavar="DIR", help="With --adapter: where its set is, if it has moved."
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(1),
        default=512,
        show_default=True,
        metavar="N",
        help="Longest reply; a note says when a reply is cut.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(0),
        default=0.0,
        show_default=True,
        metavar="T",
        help="Above 0: sample tokens instead of taking the most likely one.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        show_default=True,
        metavar="P",
        help="With --temperature: sample from the most likely tokens that together have this probability.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed for sampling."),
)


def writes(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check(*, adapter: Path | None, data: Any, temperature: float, top_p: float, **_: object) -> None:
    """Raise a UsageError where an option would have no effect."""
    if data and not adapter:
        raise UsageError("--set", "it says where the set of an adapter is", "Add --adapter CHECKPOINT.")
    if top_p < 1 and not temperature:
        raise UsageError(f"--top-p {top_p:g}", "nothing is sampled at --temperature 0", "Add, say, --temperature 0.7.")
