"""The libraries of the extras: whether they are there, and how much they print."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import warnings
from typing import Any

from schemas import install
from schemas.errors import UsageError


def need(command: str, *names: str, extra: str = "train") -> None:
    """Raise a UsageError that names every package that is not installed; make those that are less talkative."""
    _hush()
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UsageError(command, f"not installed: {', '.join(missing)}", install.extra(extra))


def load(command: str, *names: str, extra: str = "train") -> None:
    """Import packages; a UsageError names one that is missing, with the extra that brings it, or broken."""
    need(command, *names, extra=extra)
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # torch_npu raises any of them without CANN
            what = f"{name} cannot be imported: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
            raise UsageError(command, what, "cli doctor says what is broken.") from error


def _hush() -> None:
    """Hide the libraries' warnings about their own future, and what they say of a device; before they are imported."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device")  # trainer.device has chosen it
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of every layer that casts its input
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    logging.getLogger("transformers.configuration_utils").addFilter(_is_of_another_model)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of DeepSpeed, which goes to stdout, says more than that there is no GPU."""
    return record.levelno >= logging.WARNING and "Setting accelerator to CPU" not in record.getMessage()


def _is_of_another_model(record: logging.LogRecord) -> bool:
    """Whether a line says more than that a tokenizer lies beside a configuration that Transformers does not know."""
    return "You are using a model of type `chatglm`" not in record.getMessage()


def quiet(*, bars: bool = sys.stderr.isatty()) -> None:
    """Hide the libraries' progress bars unless `bars`."""
    import transformers

    if not bars:
        transformers_logging: Any = transformers.utils.logging  # untyped
        transformers_logging.disable_progress_bar()
