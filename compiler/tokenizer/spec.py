"""A parsed `tokenizer.json`: its parts, and the forms in which encoders take it.

This module imports little, since the slowest encoder is begun before the rest is imported (ahead.py).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import orjson


def outline_of(spec: dict[str, Any]) -> dict[str, Any]:
    """A parsed `tokenizer.json` without its model, of which only what a vocabulary asks is there.

    `last_of_model` is the last id of the model, and `of_model` are the added tokens that it has too.
    """
    vocab, added = spec["model"]["vocab"], [token["content"] for token in spec["added_tokens"]]
    if isinstance(vocab, dict):
        check_ids(vocab.values())
    last = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    of_model = [text for text in added if text in vocab]
    return {name: part for name, part in spec.items() if name != "model"} | {
        "last_of_model": last,
        "of_model": of_model,
    }


def split_added(
    outline: dict[str, Any], templates: Collection[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The added tokens that are ordinary text, as Gemma's `<table>` and runs of spaces are, and the control tokens.

    A token of text is not special, the model's own vocabulary has it (it was there when the model was trained on
    text), and no chat template writes it (`<tool_call>`), unless it is white space.
    """

    def is_text(token: dict[str, Any]) -> bool:
        text = token["content"]
        if token["special"] or text not in outline["of_model"]:
            return False
        return not text.strip("▁ \n\t\r") or not any(text in source for source in templates)

    text, control = list[dict[str, Any]](), list[dict[str, Any]]()
    for token in outline["added_tokens"]:
        (text if is_text(token) else control).append(token)
    return text, control


MOST = 1 << 24
"""The most ids of a vocabulary; the largest have a quarter of a million."""


def check_ids(ids: Iterable[Any]) -> None:
    """Raise ValueError unless all are ids."""
    some = list(ids)
    if some and (set(map(type, some)) != {int} or min(some) < 0 or max(some) >= MOST):
        raise ValueError(f"an id is not a number from 0 to {MOST:,}")


@dataclass(frozen=True)
class Forms:
    """A `tokenizer.json` in the forms that encoders are built of, each without its model, which they share."""

    official: dict[str, Any]
    fresh: dict[str, Any]
    continued: dict[str, Any] | None
    """None where continued texts are encoded as fresh ones are."""

    @classmethod
    def of(cls, spec: dict[str, Any], text_tokens: list[dict[str, Any]]) -> Forms:
        """Take them from a parsed `tokenizer.json`; of its added tokens only those of text take part in encoding."""
        official = {name: part for name, part in spec.items() if name != "model"}
        official |= dict.fromkeys(("truncation", "padding"))  # of texts in a batch, and possibly of any length
        fresh = official | {"added_tokens": text_tokens, "post_processor": None}
        return cls(official, fresh, without_prefix(fresh))


@dataclass(frozen=True)
class Specs:
    """What encoders are built of: the forms, and the model, which is by far the largest part.

    The model is kept as JSON, which takes a tenth of the memory.
    """

    forms: Forms
    model: bytes

    @classmethod
    def of(cls, spec: dict[str, Any], text_tokens: list[dict[str, Any]]) -> Specs:
        """Split a parsed `tokenizer.json`."""
        return cls(Forms.of(spec, text_tokens), orjson.dumps(_short(spec["model"])))

    def parsed(self) -> dict[str, Any]:
        """The official form with its model."""
        return self.forms.official | {"model": orjson.loads(self.model)}

    def json(self, form: dict[str, Any]) -> str:
        """One of the forms with the model, as JSON."""
        return orjson.dumps(form | {"model": orjson.Fragment(self.model)}).decode()


def _short(model: dict[str, Any]) -> dict[str, Any]:
    """The model with merges as texts, "a b" for ["a", "b"], of which the fast encoder is built faster."""
    merges = model.get("merges")
    if not isinstance(merges, list) or not all(type(pair) is list and len(pair) == 2 for pair in merges):
        return model
    try:
        texts = list(map(" ".join, merges))
    except TypeError:  # something in it is no text, which whoever builds it will say
        return model
    return model if sum(text.count(" ") for text in texts) > len(texts) else model | {"merges": texts}


def decoder_kinds(spec: dict[str, Any]) -> set[str]:
    """The types of a spec's decoder and of its parts."""
    decoder = spec.get("decoder") or {}
    return {part.get("type") for part in (decoder, *decoder.get("decoders", []))}


def steps_of(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, with sequences opened."""
    if not part:
        return []
    parts = part.get("normalizers") or part.get("pretokenizers")
    return [part] if parts is None else [step for one in parts for step in steps_of(one)]


def without_prefix(spec: dict[str, Any]) -> dict[str, Any] | None:
    """The spec without its rules for a leading space; None if it has none."""
    pre_tokenizer = copy.deepcopy(spec.get("pre_tokenizer"))
    found = False
    for step in steps_of(pre_tokenizer):
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            step["prepend_scheme"], found = "never", True
            step.pop("add_prefix_space", None)
        elif step.get("add_prefix_space"):
            step["add_prefix_space"], found = False, True
    normalizer = spec.get("normalizer")
    kept = [step for step in steps_of(normalizer) if step["type"] != "Prepend"]
    if len(kept) < len(steps_of(normalizer)):
        normalizer, found = {"type": "Sequence", "normalizers": kept}, True
    return spec | {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer} if found else None
