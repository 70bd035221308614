"""Facts as data: cards of datasets, templates, weights and vision, samples, the self-cognition pool, a tokenizer.

One file per fact. This loader reads them; importing a module registers nothing.
"""
# finetune-data-compiler: by this name cli.py knows its own packages.

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from schemas import check_config
from schemas.errors import UsageError, nearest

ROOT = Path(__file__).parent
DEMO_TOKENIZER = ROOT / "tokenizers" / "demo"
DEMO_MODEL = ROOT / "models" / "demo"
SAMPLES = ROOT / "samples"
OTHER_MODELS = ROOT / "self_cognition" / "other_models.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""The files of a model's folder that can decide an id or a rendering."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""The files of a model's folder that can decide the number of tokens of a picture or video."""
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
    """The names of the template cards."""
    return _names("templates")


def template(name: str) -> dict[str, Any]:
    """A template card; an unknown name is a UsageError with the nearest one."""
    return _load("templates", name, "template_card", "--template")


def template_source(file: str) -> str:
    """The Jinja text that a template card names."""
    return (ROOT / "templates" / file).read_text(encoding="utf-8")


@cache
def tokenizer_families() -> dict[str, dict[str, Any]]:
    """How vocabulary files without a tokenizer.json are read, by tokenizer class."""
    loaded: dict[str, dict[str, Any]] = json.loads((ROOT / "tokenizers" / "families.json").read_text(encoding="utf-8"))
    return loaded


@cache
def keys() -> dict[str, Any]:
    """What is known of the keys of rows that a format does not read (`schemas/keys.schema.json`)."""
    path = ROOT / "keys.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    check_config(table, "keys", str(path))
    return table


@cache
def awkward_texts() -> list[str]:
    """Pieces of text at which encoders are known to differ."""
    loaded: list[str] = json.loads((ROOT / "tokenizers" / "awkward_texts.json").read_text(encoding="utf-8"))
    return loaded


@cache
def document_ends() -> dict[str, str]:
    """The token that ends a document, by eos, for tokenizers whose eos is the stop of a chat turn."""
    loaded = json.loads((ROOT / "tokenizers" / "document_ends.json").read_text(encoding="utf-8"))
    ends: dict[str, str] = loaded["by_eos"]
    return ends


@cache
def devices() -> list[dict[str, Any]]:
    """The dense peaks of devices in half precision, the more special names first."""
    loaded: list[dict[str, Any]] = json.loads((ROOT / "devices.json").read_text(encoding="utf-8"))["peaks"]
    return loaded


@cache
def other_models() -> dict[str, list[str]]:
    """The names of other models: "words" match whole words, "texts" match anywhere."""
    loaded: dict[str, list[str]] = json.loads(OTHER_MODELS.read_text(encoding="utf-8"))
    return loaded


@cache
def secrets() -> tuple[dict[str, Any], dict[str, Any]]:
    """The rules for secrets: those of gitleaks as published, and our own, which say what the former are."""
    published, own = ((ROOT / "secrets" / name).read_text(encoding="utf-8") for name in ("gitleaks.toml", "own.toml"))
    return tomllib.loads(published), tomllib.loads(own)


@cache
def secrets_digest() -> str:
    """The sha256 of the rules for secrets."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted((ROOT / "secrets").glob("*.toml")))).hexdigest()


def weights_names() -> list[str]:
    """The names of the weights policies."""
    return _names("weights")


def weights(name: str) -> dict[str, Any]:
    """A weights policy, shipped or in a file of the user's (`FILE.json`); an unknown name is a UsageError.

    `A+B` is A with B after it: their weights multiply. A file is called by the name in it.
    """
    parts = name.split("+")
    cards = [_own_weights(part) if part.endswith(".json") else _load_weights(part) for part in parts]
    first, *others = cards
    return first | {"name": "+".join(card["name"] for card in cards), "then": others} if others else first


def _load_weights(name: str) -> dict[str, Any]:
    return _load("weights", name, "weights", "--weights")


def _own_weights(file: str) -> dict[str, Any]:
    """The weights policy in a file of the user's."""
    try:
        card: dict[str, Any] = orjson.loads(Path(file).read_bytes())  # it refuses halves of characters
    except OSError as error:
        hint = "Give a JSON file that describes a policy, or the name of a shipped one."
        raise UsageError(f"--weights {file}", f"cannot be read: {error.strerror}", hint) from error
    except ValueError as error:
        raise UsageError(f"--weights {file}", f"not JSON in UTF-8: {error}") from error
    check_config(card, "weights", file)
    if card["name"] in weights_names():
        raise UsageError(f"{file}#/name", f"a shipped policy is called {card['name']!r}", "Choose another name.")
    patterns = {f"patterns/{key}/pattern": entry["pattern"] for key, entry in card.get("patterns", {}).items()}
    patterns |= {f"errors/{key}": pattern for key, pattern in card.get("errors", {}).items()}
    for place, pattern in patterns.items():
        try:
            re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UsageError(f"{file}#/{place}", f"not a regular expression of Python: {error}") from error
    return card


def thinking_switches() -> list[dict[str, Any]]:
    """The variables by which chat templates keep the thinking of earlier replies: name, value that keeps, source."""
    switches: list[dict[str, Any]] = json.loads((ROOT / "thinking.json").read_text(encoding="utf-8"))
    return switches


def vision_names() -> list[str]:
    """The names of the vision cards."""
    return _names("vision")


def vision(name: str) -> dict[str, Any]:
    """A vision card; an unknown name is a UsageError with the nearest one."""
    return _load("vision", name, "vision", "vision card")


def action_space(name: str) -> dict[str, Any]:
    """What the actions of recorded screen trajectories are in CogAgent's operations."""
    return _load("action_spaces", name, "action_space", "action space")


@cache
def shapes() -> list[dict[str, Any]]:
    """The cards of shapes: what people call a layout of rows, and the format that reads it with other names.

    They are checked by the tests, not here: every command loads them.
    """
    folder = ROOT / "shapes"
    return [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in _names("shapes")]


def datasets() -> dict[str, dict[str, Any]]:
    """The shipped dataset cards by name."""
    return {name: _load("datasets", name, "dataset_card", "--mix") for name in _names("datasets")}


def train_config_names() -> list[str]:
    """The names of the tables for training configurations of other tools."""
    return _names("train_configs")


def train_config(name: str) -> dict[str, Any]:
    """How the keys of another tool's training configuration become ours, with the included tables."""
    table = _load("train_configs", name, "train_dialect", "train config")
    keys, defaults = dict(table["keys"]), dict(table.get("defaults", {}))
    for other, prefix in table.get("include", {}).items():
        included = train_config(other)
        keys = {prefix + key: entry for key, entry in included["keys"].items()} | keys
        defaults = included["defaults"] | defaults
    return table | {"keys": keys, "defaults": defaults}
