"""Real tokenizers and data, where ../shared is beside the project."""

from __future__ import annotations

from pathlib import Path

import pytest

import registry
from compiler.templates.load import Template, load_template
from compiler.tokenizer.tokenizer import Tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared"


def shared(*parts: str) -> Path:
    """A path of the shared folder. Skips the test where it does not exist."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)}, which is not beside this checkout")
    return path


_loaded: dict[tuple[str, str], tuple[Tokenizer, Template]] = {}


def tools(tokenizer: str, template: str = "auto") -> tuple[Tokenizer, Template]:
    """A tokenizer ("demo", or a folder of ../shared/tokenizers) and one of its templates, loaded once."""
    if (tokenizer, template) not in _loaded:
        folder = registry.DEMO_TOKENIZER if tokenizer == "demo" else shared("tokenizers", tokenizer)
        loaded = next((t for (name, _), (t, _) in _loaded.items() if name == tokenizer), None) or Tokenizer.load(folder)
        _loaded[tokenizer, template] = (loaded, load_template(template, loaded))
    return _loaded[tokenizer, template]
