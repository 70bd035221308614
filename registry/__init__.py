"""What is known, as data: cards of datasets, templates and weights, samples, the self-cognition pool, a tokenizer.

One file per thing; this loader reads them, and nothing is registered by being imported.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from schemas import check_config
from schemas.errors import UsageError, nearest

ROOT = Path(__file__).parent
DEMO_TOKENIZER = ROOT / "tokenizers" / "demo"
SAMPLES = ROOT / "samples"
SELF_COGNITION = ROOT / "self_cognition" / "pool.jsonl"


@cache
def _load(folder: str, name: str, schema: str, option: str) -> dict[str, Any]:
    path = ROOT / folder / f"{name}.json"
    names = _names(folder)
    if name not in names:
        raise UsageError(f"{option} {name}", "no such name", nearest(name, names))
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    check_config(card, schema, str(path))
    return card


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob("*.json"))


def template_names() -> list[str]:
    """Return the names of the template cards."""
    return _names("templates")


def template(name: str) -> dict[str, Any]:
    """Return a template card; an unknown name is a UsageError with the nearest one."""
    return _load("templates", name, "template_card", "--template")


def template_source(file: str) -> str:
    """Return the Jinja text a template card names."""
    return (ROOT / "templates" / file).read_text(encoding="utf-8")


@cache
def tokenizer_families() -> dict[str, dict[str, Any]]:
    """Return how vocabulary files without a tokenizer.json are read, by tokenizer class."""
    loaded: dict[str, dict[str, Any]] = json.loads((ROOT / "tokenizers" / "families.json").read_text(encoding="utf-8"))
    return loaded


def weights_names() -> list[str]:
    """Return the names of the weights policies."""
    return _names("weights")


def weights(name: str) -> dict[str, Any]:
    """Return a weights policy; an unknown name is a UsageError with the nearest one."""
    return _load("weights", name, "weights", "--weights")


def datasets() -> dict[str, dict[str, Any]]:
    """Return the shipped dataset cards by name."""
    return {name: _load("datasets", name, "dataset_card", "--mix") for name in _names("datasets")}
