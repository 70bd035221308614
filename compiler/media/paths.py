"""From a reference in a row to a file: never outside the media folder, never over the network."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compiler.read import stamp_of
from schemas.errors import Reason, RowError

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://|data:|file:", re.IGNORECASE)
_SHOWN = 120
"""The characters of a reference that a message quotes; a `data:` reference holds a whole picture."""


def resolve(root: Path, uri: str, pointer: str = "") -> Path:
    """The real path of the file that `uri` names under `root`; a RowError where it names anything else.

    1. A reference with a scheme (`http://`, `s3://`, `data:`, `file:`) is refused.
    2. No part of it is `..`. An absolute path must lie under the root.
    3. With all links followed, also those of the root, it is a regular file under the root.

    The same `uri` means the same file for every row: the working directory and `~` do not matter.
    """

    def wrong(what: str, hint: str) -> RowError:
        quoted = repr(uri if len(uri) <= _SHOWN else uri[:_SHOWN] + "...")
        return RowError(Reason.MEDIA, f"expected a file under --media-dir, found {quoted}: {what}; {hint}", pointer)

    if not uri:
        raise wrong("it is empty", "give a path relative to --media-dir")
    if _REMOTE.match(uri):
        raise wrong("references with a scheme are not followed", "download the file and give its path")
    if "\0" in uri:
        raise wrong("it holds a NUL character", "give a path relative to --media-dir")
    if ".." in re.split(r"[/\\]", uri):
        raise wrong("it contains '..'", "--media-dir must name a folder that contains all the files")
    try:
        top, path = root.resolve(), (root / uri).resolve()
        if not path.is_relative_to(top):
            outside = "an absolute path outside" if Path(uri).is_absolute() else "a link that leads outside"
            raise wrong(f"it is {outside}", "--media-dir must name a folder that contains all the files")
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise wrong("no such file", "--media-dir names the folder that references are relative to") from None
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a name too long, circular links, a file name that is impossible here
        raise wrong(f"it cannot be opened ({_why(error)})", "--media-dir names the folder of the files") from error
    if not stat.S_ISREG(mode):
        raise wrong(f"it is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}", "name the file itself")
    return path


@contextmanager
def located(pointer: str) -> Iterator[None]:
    """Add a pointer to the row errors raised inside that have none."""
    try:
        yield
    except RowError as error:
        if not pointer or error.reject.pointer:
            raise
        raise RowError(error.reject.reason, error.reject.message, pointer) from error


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else "circular links, or not a file name"


def state_of(path: Path) -> list[Any] | None:
    """[the real path, size, time of change] of a file; None where there is none."""
    try:
        return [str(path.resolve()), *stamp_of(path)]
    except (OSError, RuntimeError, ValueError):  # missing, circular links, not a file name
        return None
