"""Commands around training: export, chat, doctor. Parse, call, print; heavy imports stay inside."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from schemas import install
from schemas.errors import EXIT_CODES, UsageError
from schemas.stores import AnyPath, path_of


def _need_torch() -> None:
    """Raise a UsageError where what the trainer stands on cannot be imported."""
    try:
        import peft  # noqa: F401
        import torch  # noqa: F401
        import transformers
    except (ImportError, RuntimeError, OSError) as error:  # a broken device extension is a RuntimeError of torch
        raise UsageError(
            "the trainer", f"it needs torch, transformers and peft: {str(error).strip().splitlines()[0]}",
            f"{install.extra('train')}; cli doctor says what is missing or broken.",
        ) from error  # fmt: skip
    warnings.filterwarnings("ignore", category=FutureWarning)  # what libraries say to each other about their future
    if not sys.stderr.isatty():
        said: Any = transformers.utils.logging  # untyped
        said.disable_progress_bar()


@click.command("export", epilog=EXIT_CODES)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--set", "data", type=path_of, metavar="DIR", help="Where the compiled set is, if it has moved.")
@click.option(
    "--model", "base", type=click.Path(path_type=Path), metavar="DIR", help="Where the base model is, if it has moved."
)
@click.option("--json", "as_json", is_flag=True, help="Print the provenance as JSON.")
def export_command(checkpoint: Path, out: Path, data: AnyPath | None, base: Path | None, as_json: bool) -> None:
    """Make a Hugging Face folder OUT of CHECKPOINT: LoRA merged in, tokenizer, chat template, stops, provenance.

    OUT is written whole or not at all. An export that is there is replaced; any other folder is left alone.

    \b
    Examples:
      cli export output/checkpoint-600 exported
      cli export output/checkpoint-600 exported --model /models/Qwen2.5-7B-Instruct --set /data/shards
    """
    _need_torch()
    from trainer.use.export import export, open_checkpoint

    provenance = export(open_checkpoint(checkpoint, data=data, base=base), out)
    if as_json:
        click.echo(json.dumps(provenance, ensure_ascii=False))
        return
    names = ", ".join(entry["name"] for entry in provenance["set"]["datasets"])
    click.echo(f"{out}: {provenance['base_model']} after {provenance['step']:,} steps on {names}")
    click.echo(provenance["note"])


@click.command("chat", epilog=EXIT_CODES)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="A checkpoint of a LoRA or prefix to put on MODEL; tokenizer and stops are those it was trained with.",
)
@click.option("--set", "data", type=path_of, metavar="DIR", help="With --adapter: where its set is, if moved.")
@click.option(
    "--stop",
    "words",
    multiple=True,
    metavar="TEXT",
    help="Stop after this text and let the user write what follows it. May be given again.",
)
@click.option("--system", default="", metavar="TEXT|@FILE", help="The system message.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    metavar="N",
    help="Longest reply; one that is cut says so.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="T",
    help="Above 0: draw tokens instead of taking the most likely one.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    metavar="P",
    help="With --temperature: draw from the most likely tokens that have this share.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Decides what is drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a reply, when it is complete.")
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
    """Talk with MODEL, a folder as cli export or Transformers writes it, in its own chat template.

    With --stop Observation: an agent stops where a tool would answer; type the answer, and it goes on. /system TEXT and
    /clear begin anew, /exit or the end of the input ends; a line that ends in \\ goes on in the next one.

    \b
    Examples:
      cli chat exported
      cli chat exported --stop Observation: --system @prompt.txt
      cli chat ./Qwen2.5-7B-Instruct --adapter output/checkpoint-600
      printf 'Is there a fire in a.jpg?\\n[{"on_fire": true}]\\n' | cli chat exported --stop Observation: --json
    """
    _need_torch()
    import torch

    from trainer.models.pretrained import load_model, load_tokenizer
    from trainer.predict.generate import stop_ids
    from trainer.use.chat import Chat, Reply, converse
    from trainer.use.export import card_template, copy_tokenizer, open_checkpoint

    if data and not adapter:
        raise UsageError("--set", "it says where the set of an adapter is", "Add --adapter CHECKPOINT.")
    if top_p < 1 and not temperature:
        raise UsageError(f"--top-p {top_p:g}", "nothing is drawn at --temperature 0", "Add --temperature 0.7, say.")
    opened = open_checkpoint(adapter, data=data, base=model) if adapter else None
    loaded = load_model(model, adapter)
    with TemporaryDirectory() as copy:  # a set may be in an object store
        if opened:
            copy_tokenizer(opened, Path(copy))
        tokenizer = load_tokenizer(Path(copy) if opened else model)
    if opened and (text := card_template(opened.manifest)[0]) is not None:
        tokenizer.chat_template = text
    ends = stop_ids(opened.manifest) if opened else loaded.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    if not ends:
        raise UsageError(str(model), "no eos_token_id in its generation_config.json: replies would not end")
    if torch.accelerator.is_available():
        loaded.to(torch.accelerator.current_accelerator())
    torch.manual_seed(seed)
    chat = Chat(loaded, tokenizer, ends, words, max_new_tokens, temperature, top_p)
    chat.system(Path(system[1:]).read_text(encoding="utf-8").strip() if system.startswith("@") else system)

    def show(text: str) -> None:
        if not as_json:
            click.echo(text, nl=False)

    def done(reply: Reply) -> None:
        if as_json:
            click.echo(json.dumps(vars(reply), ensure_ascii=False))
            return
        click.echo()
        if reply.ended == "length":
            click.echo(f"[cut after --max-new-tokens {max_new_tokens}]", err=True)

    converse(chat, _typed(chat) if sys.stdin.isatty() else sys.stdin, show, done)


def _typed(chat: Any) -> Iterator[str]:
    import readline  # noqa: F401  # history and cursor keys for input()

    while True:
        try:
            yield input("Observation: " if chat.waits else ">>> ")
        except EOFError:
            return


@click.command("doctor", epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help='Print {"ready": ..., "findings": [...]} as JSON.')
def doctor_command(as_json: bool) -> None:
    """Say what this machine has and lacks for training: devices, packages and whether they import, memory, disk.

    Ends with exit code 0 whatever it finds; "ready" in its JSON says whether training can start.

    \b
    Examples:
      cli doctor
      cli doctor --json
    """
    from trainer.commands import doctor

    findings = doctor.examine()
    if as_json:
        click.echo(doctor.as_json(findings))
        return
    for line in doctor.lines(findings):
        click.echo(line)


"""What cli.py adds to its own."""
