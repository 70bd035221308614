"""What a tokenizer says of texts and ids, worked out once from its files. Nothing here encodes."""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Iterable
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.tokenizer.files import TokenizerFiles


def outline_of(spec: dict[str, Any]) -> dict[str, Any]:
    """A parsed `tokenizer.json` without its model, of which only what a vocabulary asks is there.

    `last_of_model` is the last id of the model, and `of_model` are the added tokens that it has too.
    """
    vocab, added = spec["model"]["vocab"], [token["content"] for token in spec["added_tokens"]]
    if isinstance(vocab, dict):
        _check_ids(vocab.values())
    last = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    of_model = [text for text in added if text in vocab]
    return {name: part for name, part in spec.items() if name != "model"} | {
        "last_of_model": last,
        "of_model": of_model,
    }


class Vocabulary:
    """Facts of a tokenizer. They come from the outline of its `tokenizer.json`."""

    def __init__(self, files: TokenizerFiles, outline: dict[str, Any]) -> None:
        self.outline = outline
        """Its `tokenizer.json` without the model."""
        self.digest = files.digest
        self.named_tokens = files.named_tokens()
        """bos_token, eos_token ... as text."""
        self.chat_templates = files.chat_templates()
        """The Jinja chat templates by name."""
        added = outline["added_tokens"]
        is_text = [self._is_text(token) for token in added]
        self.text_tokens: list[dict[str, Any]] = list(compress(added, is_text))
        """The added tokens that are ordinary text."""
        self.controls: dict[str, int] = {
            token["content"]: token["id"] for token, text in zip(added, is_text, strict=True) if not text
        }
        """The control tokens and their ids: every other added token. They are placed by id; no text becomes one."""
        self.control_pattern = _any_of(self.controls)
        """Matches any control token's text, the longest first as the official tokenizer does."""
        self.stops = frozenset({t["id"] for t in added if t["special"]} | self._eos())
        """The control tokens that may end a reply: those marked special (`</tool_call>`, say, is not)."""
        self.swallows = frozenset(t["id"] for t in added if t["rstrip"])
        """The control tokens that swallow the white space after them, as Phi-3's do (`rstrip`)."""
        self.is_control = _is_control(outline["last_of_model"], list(self.controls.values()))
        """bool[V]: which ids are control tokens."""
        self.has_prefix = without_prefix(outline) is not None
        """Whether a text of its own gets a leading space."""
        schemes = [step.get("prepend_scheme") for step in steps_of(outline.get("pre_tokenizer"))]
        self.prefix_every_section = "first" not in schemes
        """Whether the official tokenizer puts the leading space after every control token too, not only first."""
        self._normalizers = frozenset(step["type"] for step in steps_of(outline.get("normalizer")))

    def reads_as_is(self, text: str) -> bool:
        """Whether the tokenizer certainly encodes a text as it is, and changes at most how its spaces look."""
        changing = self._normalizers - {"Prepend", "Replace"}
        return not changing or (changing == {"NFC"} and (text.isascii() or unicodedata.is_normalized("NFC", text)))

    def _is_text(self, token: dict[str, Any]) -> bool:
        """Whether an added token is ordinary text, as Gemma's `<table>` and runs of spaces are.

        It is not special, the model's own vocabulary has it (it was there when the model was trained on text), and
        the chat template does not write it (`<tool_call>`), unless it is white space.
        """
        text = token["content"]
        if token["special"] or text not in self.outline["of_model"]:
            return False
        return not text.strip("▁ \n\t\r") or not any(text in source for source in self.chat_templates.values())

    def _eos(self) -> set[int]:
        eos = self.controls.get(self.named_tokens.get("eos_token", ""))
        return set() if eos is None else {eos}


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


MOST = 1 << 24
"""The most ids of a vocabulary; the largest have a quarter of a million."""


def _check_ids(ids: Iterable[Any]) -> None:
    some = list(ids)
    if some and (set(map(type, some)) != {int} or min(some) < 0 or max(some) >= MOST):
        raise ValueError(f"an id is not a number from 0 to {MOST:,}")


def _is_control(last: int, controls: list[int]) -> npt.NDArray[np.bool_]:
    _check_ids(controls)
    table = np.zeros(max([last, *controls]) + 1, dtype=bool)
    table[controls] = True
    return table


def byte_lengths_of(spec: dict[str, Any], size: int) -> npt.NDArray[np.int32] | None:
    """How many bytes of text each of `size` ids stands for; None where that is not known. Takes the whole spec."""
    vocab, kinds = spec["model"]["vocab"], decoder_kinds(spec)
    if not isinstance(vocab, dict) or not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
        return None
    table = np.zeros(size, np.int32)
    if "ByteLevel" in kinds:  # a letter a byte
        table[np.fromiter(vocab.values(), np.int64, len(vocab))] = np.fromiter(map(len, vocab), np.int32, len(vocab))
    else:
        for token, number in vocab.items():
            fallback = re.fullmatch("<0x[0-9A-F]{2}>", token)
            table[number] = 1 if fallback else len(token.replace("\u2581", " ").encode())
    return table


# -- parts of a tokenizer.json --


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
