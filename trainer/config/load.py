"""The configuration of a run: our own YAML or another tool's file, then command-line overrides, checked together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from schemas import check_config, hub, schema, yaml
from schemas.errors import UsageError, nearest
from trainer.config import derived, dialects, forms, shell
from trainer.config.config import Expect, Lora, Prefix, TrainConfig
from trainer.config.rules import IDLE, check_together, is_here


@dataclass(frozen=True)
class Loaded:
    """A configuration, where it comes from, and remarks about it."""

    config: TrainConfig
    where: str
    dialect: str
    remarks: tuple[str, ...]
    """One line for each key that has no effect here, with the reason."""


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Load a YAML or shell file and apply `KEY=VALUE` overrides (our names, YAML values; null unsets a key)."""
    asked = shell.read(path) if shell.is_shell(path) else shell.Asked(yaml.read(path), (), {}, [])
    return of(asked, str(path), overrides)


def of(call: shell.Asked, path: str, overrides: Sequence[str] = ()) -> Loaded:
    """The configuration that a file or a call asks for; `path` is its name in messages."""
    _check_sizes(call.raw, path)
    file = dialects.translate(call.raw, path, call.tables)
    if file.dialect == dialects.OWN and call.raw and not set(call.raw) & set(schema("train_config")["properties"]):
        what = f"none of its keys is one of a training configuration; the first is {next(iter(call.raw))!r}"
        raise UsageError(path, what, "docs/train.md has examples.")
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in file.values.items()}
    overridden = {_override(values, override) for override in overrides}
    values = forms.normal(values)
    given = set(values)
    defaults = file.defaults | call.defaults
    if "hub" in defaults and (is_here(values.get("model_name_or_path", "")) or hub.of_environment() is not None):
        del defaults["hub"]  # a tool's own default: what the user says in the environment takes precedence
    _fill(values, defaults, overridden)
    made, remarks = derived.defaults(file.rule, values, file.found)
    _fill(values, made, overridden)
    if "model_name_or_path" not in values:
        raise UsageError(path, "it names no model", "Add --model DIR, or model_name_or_path: DIR to the file.")
    check_config(values, "train_config", path)
    config = _build(values)
    check_together(config, path)
    if config.tuning == "prefix" and config.gradient_checkpointing:
        config = dataclasses.replace(config, gradient_checkpointing=False)
        why = "recomputed layers would see the keys and values of the prefix twice, and PEFT refuses both together"
        remarks = [*remarks, f"gradient_checkpointing is off, as tuning is prefix: {why}"]
    idle = [(k, why) for k, when, why in IDLE if k in given and _is_set(config, k) and when(config)]
    for key, why in idle:  # a key that an override made idle is no mistake
        if key in {one.partition(".")[0] for one in overridden} or (file.dialect == dialects.OWN and not overridden):
            raise UsageError(f"{path}#/{key}", f"it has no effect: {why}", "Leave it out.")
    said = (*call.remarks, *file.remarks, *remarks, *(f"{key} has no effect: {why}" for key, why in idle))
    return Loaded(config, path, file.dialect, said)


_MOST_KEYS = 1_000


def _check_sizes(values: Mapping[str, Any], where: str) -> None:
    """Raise a UsageError for more keys than any tool has, and for a number that is none."""
    found, count = [("", values)], 0
    while found:
        name, inside = found.pop()
        for key, value in inside.items():
            count += 1
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{where}#{name}/{key}", f"expected a number, found {value}")
            if isinstance(value, dict):
                found.append((f"{name}/{key}", value))
    if count > _MOST_KEYS:
        raise UsageError(where, f"expected at most {_MOST_KEYS:,} keys, found {count:,}")


def _fill(values: dict[str, Any], defaults: dict[str, Any], overridden: set[str]) -> None:
    """Set defaults, by dotted key, where neither the file nor an override says anything."""
    for key, value in defaults.items():
        first, _, inner = key.partition(".")
        is_given = inner in (values.get(first) or {}) if inner else first in values
        if not is_given and key not in overridden and first not in overridden:
            dialects.put(values, key, value)


def _is_set(config: TrainConfig, key: str) -> bool:
    """Whether a key's value asks for something."""
    return getattr(config, key) not in (None, False, [], {})


def _override(values: dict[str, Any], override: str) -> str:
    """Apply `KEY=VALUE` to the values; return the dotted key."""
    key, sign, text = override.partition("=")
    if not sign:
        raise UsageError(f"--set {override}", "expected KEY=VALUE", "--set learning_rate=1e-4")
    known = schema("train_config")["properties"]
    first, _, inner = key.partition(".")
    inside = known.get(first, {}).get("properties", {})
    if first not in known or (inner and inner not in inside):
        names = [*known, *(f"{name}.{key}" for name, entry in known.items() for key in entry.get("properties", ()))]
        raise UsageError(f"--set {key}", "no such key", nearest(key, names))
    try:
        dialects.put(values, key, yaml.parse(text))
    except YAMLError as error:
        raise UsageError(f"--set {override}", f"not a YAML value: {error}", "--set learning_rate=1e-4") from error
    return key


def _build(given: dict[str, Any]) -> TrainConfig:
    values = {**given}
    for name, kind in (("lora", Lora), ("prefix", Prefix), ("expect", Expect)):
        values[name] = kind(**values.get(name, {}))
    if values["lora"].lora_alpha is None:
        values["lora"] = dataclasses.replace(values["lora"], lora_alpha=2 * values["lora"].r)
    return TrainConfig(**values)
