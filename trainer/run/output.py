"""The output folder: one run at a time, and the files of a replaced run, kept until the new one has a checkpoint."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from schemas import disk
from schemas.errors import LockedError
from trainer.run import log

_ASIDE = ".replaced"
"""Where the log, the plot and the predictions of a replaced run wait; its checkpoints stay where they are."""


@contextlib.contextmanager
def locked(output: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Lock the output folder: two runs in one folder would destroy each other's checkpoints."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as file:
        try:
            disk.lock(file.fileno(), output, say)
        except BlockingIOError:
            what = "another run is writing to it"
            raise LockedError(f"output_dir: {output}", what, "Wait for it, or choose another output_dir.") from None
        yield


def begin(output: Path, *, replaces: bool) -> None:
    """Put back what a run left that was to replace another one and had no checkpoint; then put it aside if asked."""
    aside = output / _ASIDE
    if aside.is_dir():
        for path in aside.iterdir():
            path.replace(output / path.name)
        aside.rmdir()
    if replaces and (found := [path for path in _files(output) if path.is_file()]):
        aside.mkdir()
        for path in found:
            path.rename(aside / path.name)


def replaced(output: Path) -> None:
    """Remove what was put aside: the new run has a checkpoint."""
    shutil.rmtree(output / _ASIDE, ignore_errors=True)


def _files(output: Path) -> list[Path]:
    return [output / log.LOG, output / log.PLOT, *output.glob("predictions-*.jsonl")]
