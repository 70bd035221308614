"""A model's folder that a library cannot read, as one message: what is in it decides what the library raises."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.errors import IntegrityError, Problem

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


def complete(kind: Any, folder: Path, **settings: Any) -> Any:
    """The model of a class of Transformers, which gives new random weights, and a warning, to what a folder lacks."""
    model, found = kind.from_pretrained(folder, output_loading_info=True, **settings)
    if missing := sorted(found["missing_keys"]):
        more = f" ({len(missing) - 1} more)" if len(missing) > 1 else ""
        what = f"the weights of {missing[0]} are missing{more}"
        raise IntegrityError(str(folder), what, "Download it again. Is config.json the one of these weights?")
    return model


def in_parts() -> bool:
    """Whether Transformers gives each process its part of every weight as it is read, as with ZeRO-3."""
    import transformers.integrations.deepspeed as integration

    known: Any = integration  # untyped
    return bool(known.is_deepspeed_zero3_enabled())
