"""A command whose help lists its options under headings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import click


class SectionedCommand(click.Command):
    """A command with `sections`: heading -> options, all of its options, in the order of its help."""

    def __init__(
        self, name: str, *, sections: Mapping[str, Sequence[click.Option]], params: list[click.Parameter], **given: Any
    ) -> None:
        options = [option for section in sections.values() for option in section]
        super().__init__(name, params=[*params, *options], **given)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options section by section, and --help at the end of the last."""
        *_, last = self.sections
        for heading, options in self.sections.items():
            shown = [*options, self.get_help_option(ctx)] if heading == last else options
            records = [option.get_help_record(ctx) for option in filter(None, shown)]
            with formatter.section(heading):
                formatter.write_dl([(names, _without_range(text)) for names, text in filter(None, records)])


def _without_range(text: str) -> str:
    """Leave out what click says about numbers, such as "1<=x<=1000000": an error says it when it matters."""
    text = re.sub(r"; (?:\d+<=)?x[<>]=\d+\]", "]", text)
    return re.sub(r"\s+\[(?:\d+<=)?x[<>]=\d+\]", "", text)
