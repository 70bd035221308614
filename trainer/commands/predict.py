"""`cli predict`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from schemas.errors import EXIT_CODES, UsageError
from schemas.printed import json_line
from schemas.stores import AnyPath, path_of
from trainer.commands import libraries
from trainer.progress import Heartbeat

if TYPE_CHECKING:
    from trainer.use.predict import Predicted


@click.command("predict", epilog=EXIT_CODES)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=path_of, metavar="SET|FILE")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="The split of SET.  [default: test, else val, else train]",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Put this LoRA or prefix checkpoint on MODEL.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="MODEL2",
    help="Ask this model too, and show both side by side.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default="predictions.jsonl", show_default=True, metavar="FILE",
    help="One line for each reply: prompt, prediction, reference, and where the row is from.",
)  # fmt: skip
@click.option(
    "--stop", "words", multiple=True, metavar="TEXT", help="End a reply after this text too. Can be repeated."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=512, show_default=True, metavar="N", help="Longest reply."
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, metavar="N", help="Prompts at once."
)
@click.option(
    "--media-dir",
    metavar="DIR",
    help="Folder of the rows' pictures, if it is another one than when they were compiled.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N replies.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def predict_command(
    model: Path,
    data: AnyPath,
    split: str | None,
    adapter: Path | None,
    compare: Path | None,
    out: Path,
    words: tuple[str, ...],
    max_new_tokens: int,
    batch_size: int,
    media_dir: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Let MODEL write every trained reply of a compiled SET, and score it against the reply that the row has.

    A FILE of rows is compiled for MODEL first. Each reply is written after the context that the row has before it. A
    ReAct reply is several: one for each step of the agent. The most likely token is taken every time.

    \b
    Examples:
      cli predict exported shards --split test
      cli predict ./Qwen2.5-7B-Instruct shards --adapter output/checkpoint-600 --limit 20
      cli predict exported questions.jsonl -o answers.jsonl --compare ./Qwen2.5-7B-Instruct
    """
    libraries.load("predict", "torch", "transformers", "peft")
    libraries.quiet()
    from trainer.data.stream import TrainingSet
    from trainer.use import predict

    predict.check_out(out)
    with ExitStack() as stack:
        beat = stack.enter_context(Heartbeat("reading the set"))
        if isinstance(data, Path) and data.is_file():
            if split:
                raise UsageError(f"--split {split}", f"{data} is a file of rows, not a set", "Leave --split out.")
            beat.doing("compiling the rows")
            folder = stack.enter_context(TemporaryDirectory())
            data, split = predict.compiled(data, model, Path(folder) / "set"), "train"
        opened = TrainingSet.open(str(data))
        chosen = split or next((name for name in ("test", "val") if opened.shards(name)), "train")
        asked = predict.wanted(opened.split(chosen), limit)
        found = []
        for one, on_it in [(model, adapter), *([(compare, None)] if compare else [])]:
            beat.doing(f"generating replies of {one}", len(asked), unit="replies")
            settings = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
            found.append(predict.replies(one, on_it, opened, asked, words, media_dir, beat.reached, **settings))
        predict.write(found, out)
    if as_json:
        scores = [{"model": one.model, "scores": one.scores, "stopped": _stopped(one)} for one in found]
        click.echo(json_line({"out": str(out), "split": chosen, "replies": len(asked), "models": scores}))
        return
    for line in _table(found):
        click.echo(line)
    click.echo(f"{len(asked):,} replies of {chosen}: {out}")


def _stopped(one: Predicted) -> int:
    """How many replies the model ended by itself."""
    return sum(prediction.stopped for prediction in one.predictions)


def _table(found: list[Predicted]) -> list[str]:
    """The scores, a line for each and a column for each model."""
    names = list(dict.fromkeys(name for one in found for name in one.scores))
    lines = [["", *(Path(one.model).name for one in found)]]
    lines += [[name, *(f"{one.scores[name]:.1f}" if name in one.scores else "" for one in found)] for name in names]
    lines.append(["stopped", *(f"{_stopped(one):,} of {len(one.predictions):,}" for one in found)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
