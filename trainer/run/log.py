"""The output of a run: a JSON line for each step, lines on the screen, loss.png, and trackers."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from schemas.errors import UsageError
from trainer.progress import Heartbeat

LOG, PLOT = "log.jsonl", "loss.png"
Record = dict[str, Any]


def keep_until(path: Path, step: int) -> list[Record]:
    """Cut the log after a step and return the records that are kept: a resumed run writes the rest again."""
    try:
        raw = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    kept = []
    for line in raw:
        with contextlib.suppress(ValueError):  # a killed run leaves a partial line
            record = json.loads(line)
            if record["step"] <= step:
                kept.append(record)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    partial.replace(path)
    return kept


class Log:
    """The log of a run, kept by its first process."""

    def __init__(
        self, output: Path, records: list[Record], trackers: list[Any], progress: Progress, beat: Heartbeat
    ) -> None:
        self.output, self.records = output, records
        self._trackers, self._progress, self._beat = trackers, progress, beat
        beat.write = self.say
        self._file: IO[str] = (output / LOG).open("a", encoding="utf-8")
        self._task: Any = None

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._beat.spoke()

    def start(self, done: int, total: int) -> None:
        """Start the progress bar."""
        self._task = self._progress.add_task("training", total=total, completed=done)

    def write(self, record: Record) -> None:
        """Add a record of a step or of an evaluation."""
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def advance(self, step: int, text: str) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=step, description=text)
        self._beat.reached(step)
        if not self._progress.disable:
            self._beat.spoke()

    def left(self) -> str:
        """The time left, "" if unknown."""
        return self._beat.left()

    def report(self, record: Record) -> None:
        """Send a record to the trackers of report_to."""
        for tracker in self._trackers:
            tracker.log(record)

    def mean_loss(self, steps: int) -> float:
        """The mean loss of the last `steps` steps."""
        losses = [record["loss"] for record in self.records if "loss" in record][-steps:]
        return sum(losses) / len(losses)

    def plot(self) -> None:
        """Draw loss.png from the records."""
        os.environ.setdefault("MPLBACKEND", "Agg")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5))
        axes = figure.subplots()
        for key, style in (("loss", "-"), ("eval_loss", "o-")):
            points = [(record["step"], record[key]) for record in self.records if key in record]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=key, linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend()
        partial = self.output / f"{PLOT}.partial"
        figure.savefig(partial, format="png", dpi=120)
        partial.replace(self.output / PLOT)

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


@contextlib.contextmanager
def watch(output: Path, start: int, trackers: list[Any], beat: Heartbeat) -> Iterator[Log]:
    """The log of a run that continues after `start` steps, with a progress bar on terminals; all of it on stderr."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    output.mkdir(parents=True, exist_ok=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        log = Log(output, keep_until(output / LOG, start), trackers, progress, beat)
        try:
            yield log
        finally:
            log.close()


# -- trackers --


def open_trackers(names: list[str], output: Path, run_name: str | None, config: dict[str, Any]) -> list[Any]:
    """Open the trackers that report_to names; UsageError if a library is not installed."""
    found = []
    for name in names:
        try:
            found.append(_TRACKERS[name](output, run_name, config))
        except ImportError as error:
            raise UsageError(f"report_to: {name}", f"cannot be imported: {error}", f"pip install {name}") from error
    return found


class _Tensorboard:
    def __init__(self, output: Path, _run_name: str | None, _config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(output / "tensorboard"))

    def log(self, record: Record) -> None:
        for name, value in _numbers(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, output: Path, run_name: str | None, config: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(dir=str(output), name=run_name, config=config, resume="allow")

    def log(self, record: Record) -> None:
        self.run.log(_numbers(record), step=record["step"])

    def close(self) -> None:
        self.run.finish()


class _Swanlab:
    def __init__(self, output: Path, run_name: str | None, config: dict[str, Any]) -> None:
        import swanlab

        self.library = swanlab
        swanlab.init(logdir=str(output / "swanlog"), experiment_name=run_name, config=config)

    def log(self, record: Record) -> None:
        self.library.log(_numbers(record), step=record["step"])

    def close(self) -> None:
        self.library.finish()


_TRACKERS: dict[str, Any] = {"tensorboard": _Tensorboard, "wandb": _Wandb, "swanlab": _Swanlab}


def _numbers(record: Record) -> dict[str, float]:
    """The numbers of a record by name; those by dataset as `eval_loss/NAME`."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            numbers |= {f"{key.removesuffix('_by_dataset')}/{name}": one for name, one in value.items()}
        elif isinstance(value, int | float) and key != "step":
            numbers[key] = value
    return numbers
