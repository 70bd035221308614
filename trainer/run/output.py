"""The output folder: one run at a time, and the files of a replaced run, kept until the new one has a checkpoint.

The file `.lock` has the trainer's mark: where it has not, nothing in the folder is the trainer's to replace.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from schemas import checkpoint as files
from schemas import disk, own
from schemas.checkpoint import MADE_BY
from schemas.errors import LockedError, UsageError
from trainer.data import reference
from trainer.run import checkpoints, log

LOCK = ".lock"
_ASIDE = ".replaced"
"""Where the log, the plot and the predictions of a replaced run wait; its checkpoints stay where they are."""


def check_ours(output: Path) -> None:
    """Raise a UsageError for a checkpoint, a log or another file that the run would replace and that others made."""
    mine = own.is_ours(output, LOCK, MADE_BY)
    found = list(output.glob("checkpoint-*"))
    others = [path for path in found if not files.is_ours(path)]
    if not mine and len(others) == len(found):
        others += [path for path in (*_files(output), output / reference.FILE, output / _ASIDE) if path.exists()]
    if others:
        what = f"{min(others).name} was not made by this trainer, or by an earlier version of it"
        hint = "Choose another output_dir, or move it away; nothing was changed."
        raise UsageError(f"output_dir: {output}", what, hint)


@contextlib.contextmanager
def locked(output: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Lock the output folder: two runs in one folder would destroy each other's checkpoints."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / LOCK
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(str(path), "it is no regular file", "Choose another output_dir, or remove it.")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "r+b") as file:
        try:
            disk.lock(descriptor, output, say)
        except BlockingIOError:
            what = "another run is writing to it"
            raise LockedError(f"output_dir: {output}", what, "Wait for it, or choose another output_dir.") from None
        if not own.is_ours(output, LOCK, MADE_BY):
            if file.read(1):
                what = "it is the lock of something else"
                raise UsageError(str(path), what, "Choose another output_dir, or remove it.")
            file.write((json.dumps({"made_by": MADE_BY}) + "\n").encode())
            file.flush()
        yield


def begin(output: Path, say: Callable[[str], object], *, replaces: bool) -> None:
    """Remove what killed runs left, put back what a run left that was to replace another and had no checkpoint, then
    put the files of the replaced run aside if asked.
    """
    for path in checkpoints.clear_leftovers(output):
        say(f"note: {path} is left as it is: this trainer did not make it")
    aside = output / _ASIDE
    for path in _files(aside):
        if path.is_file():
            path.replace(output / path.name)
    _drop(aside)
    if replaces and (found := [path for path in _files(output) if path.is_file()]):
        aside.mkdir(exist_ok=True)
        for path in found:
            path.rename(aside / path.name)


def replaced(output: Path) -> None:
    """Remove what was put aside: the new run has a checkpoint."""
    for path in _files(output / _ASIDE):
        path.unlink(missing_ok=True)
    _drop(output / _ASIDE)


def _drop(aside: Path) -> None:
    """Remove the folder of files put aside, unless somebody else has put something there."""
    with contextlib.suppress(OSError):
        aside.rmdir()


def _files(output: Path) -> list[Path]:
    return [output / log.LOG, output / log.PLOT, *output.glob("predictions-*.jsonl")]
