"""`cli chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from schemas.errors import EXIT_CODES, Problem
from schemas.printed import json_line
from trainer.commands import libraries
from trainer.commands.options import check, writes


@click.command("chat", epilog=EXIT_CODES)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--stop",
    "words",
    multiple=True,
    metavar="TEXT",
    help="Stop after this text and let the user write what follows. Can be repeated.",
)
@click.option("--system", default="", metavar="TEXT|@FILE", help="The system message.")
@writes
@click.option("--json", "as_json", is_flag=True, help="Print each finished reply as one JSON object.")
def chat_command(
    model: Path,
    words: tuple[str, ...],
    system: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Chat with MODEL, a folder written by cli export or Transformers, in its own chat template.

    With --stop Observation: an agent stops where a tool would answer; type the tool's answer, and it continues.
    /image PATH shows the next message a picture; /system TEXT and /clear start over, /exit or the end of the input
    quits; a line that ends in \\ continues on the next line.

    \b
    Examples:
      cli chat exported
      cli chat exported --stop Observation: --system @prompt.txt
      cli chat ./Qwen2.5-7B-Instruct --adapter output/checkpoint-600
      printf 'Is there a fire in a.jpg?\\n[{"on_fire": true}]\\n' | cli chat exported --stop Observation: --json
    """
    libraries.load("chat", "torch", "transformers", "peft")
    libraries.quiet()
    from trainer.use.chat import ChatReply, converse, open_chat

    check(**given)
    chat = open_chat(model, given.pop("adapter"), given.pop("data"), words=words, **given)
    chat.system(Path(system[1:]).read_text(encoding="utf-8").strip() if system.startswith("@") else system)

    def show(text: str) -> None:
        if not as_json:
            click.echo(text, nl=False)

    def done(reply: ChatReply) -> None:
        if as_json:
            click.echo(json_line(vars(reply)))
            return
        click.echo()
        if reply.ended == "length":
            click.echo(f"[cut after --max-new-tokens {given['max_new_tokens']}]", err=True)

    def wrong(problem: Problem) -> None:
        click.echo(str(problem), err=True)

    typed = sys.stdin.isatty()
    converse(chat, _typed(chat) if typed else sys.stdin, show, done, wrong if typed else None)


def _typed(chat: Any) -> Iterator[str]:
    import readline  # noqa: F401  # history and cursor keys for input()

    while True:
        try:
            yield input("Observation: " if chat.waits else ">>> ")
        except EOFError:
            return
