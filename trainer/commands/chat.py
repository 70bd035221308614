"""`cli chat`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from schemas.errors import EXIT_CODES, Problem, UsageError
from schemas.stores import AnyPath, path_of
from trainer.commands import libraries


@click.command("chat", epilog=EXIT_CODES)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Put this LoRA or prefix checkpoint on MODEL, with the tokenizer and stop tokens it was trained with.",
)
@click.option("--set", "data", type=path_of, metavar="DIR", help="With --adapter: where its set is, if it has moved.")
@click.option(
    "--stop",
    "words",
    multiple=True,
    metavar="TEXT",
    help="Stop after this text and let the user write what follows. Can be repeated.",
)
@click.option("--system", default="", metavar="TEXT|@FILE", help="The system message.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    metavar="N",
    help="Longest reply; a note says when a reply is cut.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="T",
    help="Above 0: sample tokens instead of taking the most likely one.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    metavar="P",
    help="With --temperature: sample from the most likely tokens that together have this probability.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed for sampling.")
@click.option("--json", "as_json", is_flag=True, help="Print each finished reply as one JSON object.")
def chat_command(
    model: Path,
    adapter: Path | None,
    data: AnyPath | None,
    words: tuple[str, ...],
    system: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    as_json: bool,
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

    if data and not adapter:
        raise UsageError("--set", "it says where the set of an adapter is", "Add --adapter CHECKPOINT.")
    if top_p < 1 and not temperature:
        raise UsageError(f"--top-p {top_p:g}", "nothing is sampled at --temperature 0", "Add, say, --temperature 0.7.")
    drawn: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    chat = open_chat(model, adapter, data, words=words, **drawn)
    chat.system(Path(system[1:]).read_text(encoding="utf-8").strip() if system.startswith("@") else system)

    def show(text: str) -> None:
        if not as_json:
            click.echo(text, nl=False)

    def done(reply: ChatReply) -> None:
        if as_json:
            click.echo(json.dumps(vars(reply), ensure_ascii=False))
            return
        click.echo()
        if reply.ended == "length":
            click.echo(f"[cut after --max-new-tokens {max_new_tokens}]", err=True)

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
