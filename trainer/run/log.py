"""The output of a run: a JSON line for each step, lines on the screen, loss.png, and trackers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from schemas import disk
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
    disk.write(partial, "".join(json.dumps(record) + "\n" for record in kept).encode())
    partial.replace(path)
    return kept


def brief(logs: dict[str, float]) -> str:
    """The logs of an objective, for a line: `  rewards: chosen 0.1, rejected -0.2  kl 0.3`."""
    several = {name: f"{name.removeprefix('rewards/')} {value:.3g}" for name, value in logs.items()}
    rewards = [text for name, text in several.items() if name.startswith("rewards/")]
    others = [text for name, text in several.items() if not name.startswith("rewards/")]
    return "".join(f"  {text}" for text in (*([f"rewards: {', '.join(rewards)}"] if rewards else []), *others))


class Log:
    """The log of a run, kept by its first process."""

    def __init__(
        self, output: Path, records: list[Record], trackers: list[Any], progress: Progress, beat: Heartbeat
    ) -> None:
        self.output, self.records = output, records
        self._trackers, self._progress, self._beat = list(trackers), progress, beat
        self._plot_failed = False
        beat.write = self.say
        self._file: IO[str] = io.TextIOWrapper(disk.open_to_write(output / LOG, append=True), encoding="utf-8")
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
        self._each("log", record)

    def mean(self, name: str, steps: int) -> float:
        """The mean of a number of the last `steps` steps."""
        last = [record for record in self.records[-2 * steps :] if "loss" in record][-steps:]
        found = [record[name] for record in last if name in record]
        return sum(found) / len(found)

    def plot(self) -> None:
        """Draw loss.png from the records; where it cannot be drawn, a note says so once, and the run goes on."""
        try:
            self._draw()
        except Exception as error:  # noqa: BLE001  # drawing is no reason to lose a run
            if not self._plot_failed:
                self.say(f"note: {self.output / PLOT} cannot be drawn: {_first_line(error)}")
            self._plot_failed = True

    def _draw(self) -> None:
        os.environ.setdefault("MPLBACKEND", "Agg")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5))
        axes = figure.subplots()
        steps, losses = ([record[key] for record in self.records if "loss" in record] for key in ("step", "loss"))
        axes.plot(steps, losses, color="C0", alpha=0.3, linewidth=1, label="loss")
        axes.plot(steps, smoothed(losses), color="C0", linewidth=1.5, label="loss, smoothed")
        evaluated = [(record["step"], record["eval_loss"]) for record in self.records if "eval_loss" in record]
        if evaluated:
            axes.plot(*zip(*evaluated, strict=True), "o-", color="C1", linewidth=1, label="eval_loss")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend()
        partial = self.output / f"{PLOT}.partial"
        figure.savefig(partial, format="png", dpi=120)
        partial.replace(self.output / PLOT)

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        self._each("close")

    def _each(self, method: str, *arguments: Any) -> None:
        """Call a method of every tracker; one that fails is named and not used again, and the run goes on."""
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # noqa: BLE001  # a server that is away is no reason to lose a run
                self._trackers.remove(tracker)
                self.say(f"note: report_to: {tracker.name} failed, and gets nothing more: {_first_line(error)}")


def smoothed(losses: Sequence[float]) -> list[float]:
    """The moving average of losses whose weights fall by 1/e in a fiftieth of the run, at least in 5 steps."""
    keep = math.exp(-1 / max(5.0, len(losses) / 50))
    found, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = keep * total + loss, keep * weight + 1
        found.append(total / weight)
    return found


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


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


def check_trackers(names: list[str]) -> None:
    """Raise a UsageError for a tracker whose library is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"report_to: {name}", "is not installed", f"pip install {name}")


def open_trackers(
    names: list[str], output: Path, run_name: str | None, config: dict[str, Any], say: Callable[[str], object]
) -> list[Any]:
    """Open the trackers that report_to names; one that cannot be opened is named, and the run goes on without it."""
    found = []
    for name in names:
        try:
            found.append(_TRACKERS[name](output, run_name, config))
        except Exception as error:  # noqa: BLE001  # no network, no login: no reason not to train
            say(f"note: report_to: {name} cannot be opened, and gets nothing: {_first_line(error)}")
    return found


class _Tensorboard:
    name = "tensorboard"

    def __init__(self, output: Path, _run_name: str | None, _config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(output / "tensorboard"))

    def log(self, record: Record) -> None:
        for name, value in numbers(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    name = "wandb"

    def __init__(self, output: Path, run_name: str | None, config: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(dir=str(output), name=run_name, config=config, resume="allow")

    def log(self, record: Record) -> None:
        self.run.log(numbers(record), step=record["step"])

    def close(self) -> None:
        self.run.finish()


class _Swanlab:
    name = "swanlab"

    def __init__(self, output: Path, run_name: str | None, config: dict[str, Any]) -> None:
        import swanlab

        self.library = swanlab
        swanlab.init(logdir=str(output / "swanlog"), experiment_name=run_name, config=config)

    def log(self, record: Record) -> None:
        self.library.log(numbers(record), step=record["step"])

    def close(self) -> None:
        self.library.finish()


_TRACKERS: dict[str, Any] = {"tensorboard": _Tensorboard, "wandb": _Wandb, "swanlab": _Swanlab}


def numbers(record: Record) -> dict[str, float]:
    """The numbers of a record by name; those by dataset as `eval_loss/NAME`."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= {f"{key.removesuffix('_by_dataset')}/{name}": one for name, one in value.items()}
        elif isinstance(value, int | float) and key != "step":
            found[key] = value
    return found
