"""Completion in bash, zsh and fish: names where they are known, files everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def names(load: Callable[[], Iterable[str]]) -> Complete:
    """Complete a parameter by names that are loaded when they are asked for."""
    return lambda _ctx, _param, typed: [name for name in load() if name.startswith(typed)]


def format_names() -> list[str]:
    """The names of the source formats."""
    from compiler.formats import FORMATS

    return list(FORMATS)


def inspect_formats() -> list[str]:
    """What `cli inspect --format` takes: of a set, or of files."""
    return ["text", "sanity", *format_names()]


def template_names() -> list[str]:
    """The names of the template cards, and auto."""
    import registry

    return ["auto", *registry.template_names()]


def weights_names() -> list[str]:
    """The names of the weights policies, and auto."""
    import registry

    return ["auto", *registry.weights_names()]


class _Files(ShellComplete):
    """Offers files where click offers nothing, because its scripts switch the shell's own completion off."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What click offers, or a request for files."""
        found = super().get_completions(args, incomplete)
        return found if found or incomplete.startswith("-") else [CompletionItem(incomplete, type="file")]


def register() -> None:
    """Let every shell complete files, too."""
    for shell in (BashComplete, ZshComplete, FishComplete):
        add_completion_class(type(shell.__name__, (_Files, shell), {}))
