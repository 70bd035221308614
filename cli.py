"""The command line: parse, call, print, map errors to exit codes. Heavy imports stay inside the commands.

Exit codes: 0 ok, 1 a bug, 2 usage, 3 too many rejects, 4 integrity, 5 input/output, 6 locked, 130 interrupted.
"""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path
from typing import Any

import click

import compiler.commands
import trainer.commands
from schemas.errors import EXIT_CODES, INTERRUPTED, InputError, Problem, UsageError


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that is not UTF-8 shows escapes instead of failing
                stream.reconfigure(errors="backslashreplace")
        _check_names()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            how = "What was finished is kept: run the same command again (cli train: with --resume yes)."
            click.echo(f"\nerror: interrupted\n  {how}", err=True)
            ctx.exit(INTERRUPTED)
        except click.UsageError as error:
            click.echo(f"error: {_one_line(error)}", err=True)
            ctx.exit(UsageError.exit_code)
        except Problem as problem:
            click.echo(f"error: {problem}", err=True)
            ctx.exit(problem.exit_code)
        except OSError as error:
            if error.errno in (None, errno.EPIPE):
                raise  # not the operating system's word on a file; or the reader of a pipe has gone, which click knows
            where = str(error.filename or "writing")
            click.echo(f"error: {InputError(where, error.strerror or str(error))}", err=True)
            ctx.exit(InputError.exit_code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from schemas.errors import nearest  # only for the message

            raise click.UsageError(f"{error.message.rstrip('.')}; {nearest(args[0], self.commands)}", ctx) from None


def _one_line(error: click.UsageError) -> str:
    """Return click's message in our form, with the nearest valid value where it is about a choice."""
    from schemas.errors import nearest  # only for the message

    message = error.format_message().rstrip(".")
    kind = getattr(getattr(error, "param", None), "type", None)
    if isinstance(kind, click.Choice) and (match := re.search(r"'([^']*)' is not (?:one of|')", message)):
        name = error.param.opts[0] if isinstance(error, click.BadParameter) and error.param else ""
        return f"{name} {match[1]}: no such value\n  {nearest(match[1], map(str, kind.choices))}"
    return message


def _check_names() -> None:
    """Say so when another installed package shadows one of ours: its code would run instead."""
    import schemas

    here = Path(__file__).resolve().parent
    found = Path(schemas.__file__ or "").resolve().parent.parent
    if found != here:
        raise UsageError(
            "import", f"the package 'schemas' comes from {found}, expected {here}",
            "Another installed package or a folder on PYTHONPATH has the same name; use a fresh environment.",
        )  # fmt: skip


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@click.version_option(package_name="finetune-data-compiler", message="%(version)s")
def main() -> None:
    """Compile chat and agent data into token ids and labels, see what is trained, check that it is whole.

    \b
    Examples:
      cli compile --mix agent:1,bench:2 --self-cognition 3000
      cli compile chats.jsonl --tokenizer ./Qwen2.5-7B-Instruct -o shards
      cli inspect shards
      cli verify shards
    """


for _command in (*compiler.commands.COMMANDS, *trainer.commands.COMMANDS):
    main.add_command(_command)


if __name__ == "__main__":
    main()
