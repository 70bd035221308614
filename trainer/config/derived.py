"""Defaults of other tools that depend on other keys, as their code computes them. Constant ones are in the tables."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

Values = Mapping[str, Any]
"""A configuration in our names, with the constant defaults of its tool."""


def defaults(rule: str | None, values: Values, found: Values) -> tuple[dict[str, Any], list[str]]:
    """(defaults by our dotted keys, remarks) for a file that says `found` in the names of its tool."""
    return RULES[rule](values, found) if rule else ({}, [])


def _seq2seq(values: Values, found: Values) -> tuple[dict[str, Any], list[str]]:
    if {"combine", "freezeV"} & set(found):
        return {}, []  # CogAgent's code recomputes nothing
    return _chatglm3(values, found)


def _chatglm3(values: Values, found: Values) -> tuple[dict[str, Any], list[str]]:
    del values, found
    return {"gradient_checkpointing": True}, []


def _ms_swift(values: Values, found: Values) -> tuple[dict[str, Any], list[str]]:
    made = _of_both(values)
    made["output_dir"] = f"output/{str(values.get('model_name_or_path', 'model')).rstrip('/').rpartition('/')[2]}"
    if values.get("objective") == "simpo":  # of theirs it is CPO with the margin of SimPO
        made |= {"beta": 2.0, "simpo_gamma": 1.0, "rpo_alpha": 1.0}
    has_val = bool(found.get("split_dataset_ratio") or found.get("val_dataset") or found.get("cached_val_dataset"))
    save = values.get("save_strategy", "steps")
    remarks = []
    if has_val:
        made["eval_strategy"] = save
    elif values.get("eval_strategy", "no") != "no":
        remarks.append(
            "eval_strategy has an effect here: the set's own split val is evaluated, though the file names none"
        )
    if made.get("eval_strategy", values.get("eval_strategy")) == "steps":
        made["eval_steps"] = values.get("save_steps", 500)
    if values.get("tuning") == "full" or "all" in _list(values.get("lora", {}).get("target_modules")):
        made |= {"freeze_vision": "auto", "freeze_projector": "auto"}
    return made, remarks


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _ms_swift_1(values: Values, found: Values) -> tuple[dict[str, Any], list[str]]:
    made = _of_both(values)
    if found.get("dataset_test_ratio", 0.01) > 0:
        made["eval_strategy"] = "steps"
    if values.get("eval_strategy", made.get("eval_strategy")) == "steps":
        made["eval_steps"] = 50
    made["save_steps"] = values.get("eval_steps", 50)
    return made, []


def _of_both(values: Values) -> dict[str, Any]:
    """Their learning rate, and as many accumulated batches as 16 rows in a step take."""
    rows = values.get("per_device_train_batch_size", 1) * int(os.environ.get("WORLD_SIZE", "1"))
    rate = 1e-5 if values.get("tuning") == "full" else 1e-4
    return {"learning_rate": rate, "gradient_accumulation_steps": max(1, math.ceil(16 / rows))}


RULES: dict[str, Callable[[Values, Values], tuple[dict[str, Any], list[str]]]] = {
    "seq2seq": _seq2seq, "chatglm3": _chatglm3, "ms_swift": _ms_swift, "ms_swift_1": _ms_swift_1,
}  # fmt: skip
"""By the name that a table has under `derived`."""
