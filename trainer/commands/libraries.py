"""The libraries of the [train] extra: whether they are there, and how much they print."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import warnings
from typing import Any

from schemas import install
from schemas.errors import UsageError


def need(command: str, *names: str) -> None:
    """Raise a UsageError that names every package that is not installed."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UsageError(command, f"not installed: {', '.join(missing)}", install.extra("train"))


def load(command: str, *names: str) -> None:
    """Import packages; a UsageError names one that is missing or broken."""
    need(command, *names)
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError, OSError) as error:  # torch raises RuntimeError for a broken device extension
            what = f"{name} cannot be imported: {str(error).strip().splitlines()[0]}"
            raise UsageError(command, what, "cli doctor says what is broken.") from error


def quiet(*, bars: bool = sys.stderr.isatty()) -> None:
    """Hide the libraries' warnings about their own future and, unless `bars`, their progress bars."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not bars:
        transformers_logging: Any = transformers.utils.logging  # untyped
        transformers_logging.disable_progress_bar()
