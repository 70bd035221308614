"""The forms in which people write values: one of them for each, before the schema checks them."""

from __future__ import annotations

from typing import Any

from schemas import schema

_ALL = {"all-linear": "all"}
"""PEFT's name for what is `all` here."""
_OPTIM = {"adamw_hf": "adamw_torch", "adamw_bnb_8bit": "adamw_8bit", "paged_adamw": "paged_adamw_32bit"}
"""Other names that TrainingArguments has for an optimizer."""


def normal(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a configuration in our names, in the form that the schema describes.

    Texts with commas become lists, 4.0 and 1e3 become 4 and 1000 where the schema wants integers, `none` reports to
    nothing, `attn_implementation: null` is `auto`, and `warmup_steps` below 1 is a ratio, as in TrainingArguments.
    """
    made = _object(values, schema("train_config"))
    if made.get("report_to") == ["none"]:
        made["report_to"] = []
    if made.get("attn_implementation", "") is None:
        made["attn_implementation"] = "auto"
    if isinstance(optim := made.get("optim"), str):
        made["optim"] = _OPTIM.get(optim, optim)
    if 0 < _number(made.get("warmup_steps")) < 1 and "warmup_ratio" not in made:
        made["warmup_ratio"] = made.pop("warmup_steps")
    lora = made.get("lora")
    if isinstance(lora, dict) and "target_modules" in lora:
        named = lora["target_modules"]
        lora["target_modules"] = (
            [_ALL.get(one, one) if isinstance(one, str) else one for one in named]
            if isinstance(named, list)
            else _ALL.get(named, named)
        )
    return made


def _object(values: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    known = described["properties"]
    return {key: _value(value, known[key]) if key in known else value for key, value in values.items()}


def _value(value: Any, described: dict[str, Any]) -> Any:
    if "properties" in described and isinstance(value, dict):
        return _object(value, described)
    kinds = _kinds(described)
    if isinstance(value, str) and "array" in kinds and ("string" not in kinds or "," in value):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, float) and "integer" in kinds and value.is_integer():
        return int(value)
    return value


def _kinds(described: dict[str, Any]) -> set[str]:
    """The types that a value may have."""
    own = described.get("type", [])
    found = {own} if isinstance(own, str) else set(own)
    for one in described.get("anyOf", ()):
        found |= _kinds(one)
    if "enum" in described and any(type(one) is int for one in described["enum"]):
        found.add("integer")
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
