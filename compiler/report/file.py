"""The file of a report: never in the place of a file that is not one, and whole or not there."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from schemas.disk import flush
from schemas.errors import InputError, UsageError
from schemas.stores import AnyPath

MARK = b"<!doctype html><!-- finetune-data-compiler: report -->"
"""What a report begins with. A file that begins otherwise is not replaced."""


def check_place(path: AnyPath, of_set: AnyPath) -> Path:
    """The place of a report; UsageError where none can be written, before any work is done."""
    where = f"-o {path}"
    if not isinstance(path, Path):
        raise UsageError(where, "a report is a file of this machine", "Write it here, and copy it to the store.")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UsageError(where, "no such folder" if not parent.exists() else f"{parent} is not a folder")
    if isinstance(of_set, Path) and of_set.resolve() in (parent.resolve(), *parent.resolve().parents):
        raise UsageError(where, "a set's folder holds the set alone", "Write the report beside it.")
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return path
    if not stat.S_ISREG(kind):
        raise UsageError(
            where, "expected a file or nothing, found a folder, a link or a device", "Choose another name."
        )
    with path.open("rb") as file:
        if file.read(len(MARK)) != MARK:
            raise UsageError(where, "it exists and is not a report", "Remove it, or choose another name.")
    return path


def write_report(html: str, path: Path) -> int:
    """Write the file beside its place and put it there in one step; return its size."""
    data = html.encode("utf-8", "replace")
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.absolute().parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        flush(Path(name))
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise InputError(str(path), f"cannot be written: {error.strerror}") from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return len(data)
