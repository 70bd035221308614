"""A model's folder that a library cannot read, as one message: what is in it decides what the library raises."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from schemas.errors import Problem

_OTHER = re.compile(r"out of memory|can't allocate memory|(reset|closed) by peer", re.IGNORECASE)
"""What is no fault of the folder, and has messages of its own."""


@contextlib.contextmanager
def explained(where: str, what: str, kind: type[Problem], hint: str = "") -> Iterator[None]:
    """Raise a Problem for whatever a library raises in the block, unless memory or another process is to blame."""
    try:
        yield
    except Problem:
        raise
    except Exception as error:
        said = str(error).strip()
        if isinstance(error, MemoryError) or _OTHER.search(said):
            raise
        told = type(error).__name__ if not said or isinstance(error, KeyError | AttributeError | TypeError) else ""
        parts = [what, *filter(None, [told, said.splitlines()[0][:300] if said else ""])]
        raise kind(where, ": ".join(parts), hint) from error
