"""The command line: parse, call, print, map errors to exit codes. Heavy imports stay inside the commands.

Exit codes: 0 ok, 1 a bug, 2 usage, 3 too many rejects, 4 integrity, 5 input/output, 6 locked, 130 interrupted,
141 broken pipe, 143 terminated.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # it was closed before: libraries that print expect one
        setattr(sys, _name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # until the process ends

_ended: list[Any] = []
"""The exit code of `run`, once it has ended."""


def _leave() -> None:
    """End the process without freeing its objects one by one: that takes a twentieth of a small compile.

    Not with torch, whose libraries may need the usual end, nor with coverage, whose handler would be called after this.
    """
    if _ended and isinstance(_ended[0], int | None) and sys.modules.keys().isdisjoint({"torch", "coverage"}):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(_ended[0] or 0)


atexit.register(_leave)  # before all others, so that it is called after them

PROJECT = "finetune-data-compiler"
_HERE = Path(__file__).resolve().parent
_PACKAGES = ("compiler", "trainer", "registry", "schemas")


def _stranger() -> str:
    """The message if another package has the name of one of ours and would run instead, else "".

    The names are common. A folder on PYTHONPATH can come before ours, and another distribution can be installed over
    ours: each of our packages has the project's name in its `__init__.py`.
    """
    for name in _PACKAGES:
        spec, ours = find_spec(name), _HERE / name
        places = [Path(place).resolve() for place in (spec and spec.submodule_search_locations) or ()]
        found = places[0] if places else Path(spec.origin).resolve() if spec and spec.origin else ours
        if found != ours:
            return f"{name}: expected the package in {_HERE}, found {found}{_owner(found)}\n  {_way_out(found.parent)}"
        start = ours / "__init__.py"
        if not start.is_file():
            what = "was removed together with another package of that name; install this project again"
            return f"{name}: expected {start}, found none\n  It {what}, {_ALONE}."
        if PROJECT not in start.read_text(encoding="utf-8", errors="replace"):
            what = f"expected the package of {PROJECT}, found another one installed over it{_owner(ours)}"
            return f"{name}: {what}\n  Install this project again, {_ALONE}."
    return ""


_ALONE = "in an environment of its own: with pipx install, with uv tool install, or in a new venv"


def _owner(found: Path) -> str:
    """The text " (distribution NAME VERSION)" if an installed distribution has the package, else ""."""
    from importlib.metadata import distributions  # 30 ms, and only for the message

    for installed in distributions():
        start = f"{found.name}/__init__.py"
        files = {str(file) for file in installed.files or ()} if installed.name != PROJECT else set()
        if start in files and Path(str(installed.locate_file(start))).resolve().parent == found:
            return f" (distribution {installed.name} {installed.version})"
    return ""


def _way_out(folder: Path) -> str:
    """What to do about a folder that Python searches before ours."""
    listed = [Path(place or ".").resolve() for place in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    if "PYTHONPATH" in os.environ and folder in listed:
        return f"PYTHONPATH has {folder}: run `env -u PYTHONPATH cli ...`, or take that folder out of it."
    if folder == Path.cwd():
        return "python -m looks into this folder first: run `cli ...`, or `torchrun --no-python cli ...`."
    return f"Install this project {_ALONE}."


if _message := _stranger():
    click.echo(f"error: {_message}", err=True)
    sys.exit(2)

import compiler.commands  # noqa: E402  # only now is it known whose package that is
import trainer.commands  # noqa: E402
from schemas.errors import BROKEN_PIPE, EXIT_CODES, INTERRUPTED, InputError, Problem, UsageError  # noqa: E402


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that is not UTF-8 shows escapes instead of failing
                stream.reconfigure(errors="backslashreplace")
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()  # while a reader that has gone is still an error of ours
        except KeyboardInterrupt:
            hint = _AFTER_INTERRUPT.get(ctx.invoked_subcommand or "")
            click.echo("\nerror: interrupted" + (f"\n  {hint}" if hint else ""), err=True)
            ctx.exit(INTERRUPTED)
        except click.UsageError as error:
            click.echo(f"error: {_one_line(error)}", err=True)
            ctx.exit(UsageError.exit_code)
        except Problem as problem:
            click.echo(f"error: {problem}", err=True)
            ctx.exit(problem.exit_code)
        except MemoryError:
            hint = "Allow it more; cli compile needs less with fewer --workers."
            click.echo(f"error: {InputError('memory', 'the process has none left', hint)}", err=True)
            ctx.exit(InputError.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:  # `cli inspect shards | head`: the reader has what it wanted
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                ctx.exit(BROKEN_PIPE)
            if error.errno is None:
                raise  # not the operating system's word on a file
            where = str(error.filename or "writing")
            click.echo(f"error: {InputError(where, error.strerror or str(error))}", err=True)
            ctx.exit(InputError.exit_code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from schemas.errors import nearest  # only for the message

            what = f"{args[0]}: no such command\n  {nearest(args[0], self.commands)}"
            raise click.UsageError(what, ctx) from None


_AFTER_INTERRUPT = {
    "compile": "What was compiled is in the cache: run the same command again.",
    "train": "Run the same command again with --resume yes; it goes on from the last checkpoint.",
}


def _one_line(error: click.UsageError) -> str:
    """Click's message in our form, with the nearest valid option or value."""
    from schemas.errors import nearest  # only for the message

    if isinstance(error, click.NoSuchOption):
        close = next(iter(error.possibilities or ()), "")
        return f"{error.option_name}: no such option" + (f"\n  did you mean {close!r}?" if close else "")
    message = error.format_message().rstrip(".")
    kind = getattr(getattr(error, "param", None), "type", None)
    if isinstance(kind, click.Choice) and (match := re.search(r"'([^']*)' is not (?:one of|')", message)):
        name = error.param.opts[0] if isinstance(error, click.BadParameter) and error.param else ""
        return f"{name} {match[1]}: no such value\n  {nearest(match[1], map(str, kind.choices))}"
    return message


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@click.version_option(package_name=PROJECT, message="%(version)s")
def main() -> None:
    """Compile chat and agent data into token ids and labels, inspect which tokens are trained, and fine-tune on them.

    \b
    Examples:
      cli compile --mix agent:1,bench:2 --self-cognition 3000
      cli compile chats.jsonl --tokenizer ./Qwen2.5-7B-Instruct -o shards
      cli inspect shards
      cli verify shards
    """


for _command in (*compiler.commands.COMMANDS, *trainer.commands.COMMANDS):
    main.add_command(_command)

if "_CLI_COMPLETE" in os.environ:  # a shell asks what can follow
    from compiler.commands import completion

    completion.register()


def run() -> None:
    """Call the command line, and end this process: what `cli` and `python -m cli` do."""
    try:
        main(prog_name="cli")
    except SystemExit as end:
        _ended.append(end.code)
        raise


if __name__ == "__main__":
    run()
