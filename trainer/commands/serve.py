"""`cli serve`."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import click

from schemas.errors import EXIT_CODES, InputError
from schemas.printed import json_line
from trainer.commands import libraries
from trainer.commands.options import check, writes


@click.command("serve", epilog=EXIT_CODES)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--stop",
    "words",
    multiple=True,
    metavar="TEXT",
    help="End every reply after this text, beside the stop texts of requests. Can be repeated.",
)
@writes
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="N",
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the name of the model and the address as JSON.")
def serve_command(model: Path, words: tuple[str, ...], host: str, port: int, as_json: bool, **given: Any) -> None:
    """Serve MODEL to clients of OpenAI's chat API, in its own chat template, until Ctrl-C.

    A last message of the assistant is continued, so that an agent can send its reply with the observation in it. A
    reply includes the stop text that ended it. What a request cannot have is refused. API keys are not checked.

    \b
    Examples:
      cli serve exported --stop Observation:
      cli serve ./Qwen2.5-7B-Instruct --adapter output/checkpoint-600 --port 8001
    """
    libraries.load("serve", "torch", "transformers", "peft")
    libraries.load("serve", "starlette", "uvicorn", extra="serve")
    libraries.quiet()
    import uvicorn

    from trainer.use.chat import open_chat
    from trainer.use.serve import serve

    check(**given)
    name = model.resolve().name
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}", error.strerror or str(error), "Give another port.") from error
    with listening:
        chat = open_chat(model, given.pop("adapter"), given.pop("data"), words=words, **given)
        server = uvicorn.Server(
            uvicorn.Config(serve(chat, name), log_level="warning", lifespan="off", timeout_graceful_shutdown=5)
        )
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/v1"
        click.echo(json_line({"model": name, "address": address}) if as_json else f"serving {name} at {address}")
        if not host.startswith("127.") and host not in ("localhost", "::1"):
            click.echo("note: everyone who reaches this address can use the model; no key is checked", err=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
