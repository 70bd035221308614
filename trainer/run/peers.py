"""The end of another process of the run, as a message in those that were waiting for it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from schemas.errors import InputError

_SAID = re.compile(r"connection (reset|closed) by peer", re.IGNORECASE)
"""What Gloo says; with NCCL and HCCL processes wait until the launcher ends them."""


@contextlib.contextmanager
def explained(rank: int) -> Iterator[None]:
    """Raise an InputError where a collective operation fails because another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if not _SAID.search(str(error)):
            raise
        what = "it cannot go on: another process of the run has ended"
        raise InputError(f"process {rank}", what, "The message of that process says why.") from error
