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


class Vocabulary:
    """Facts of a tokenizer. The parsed `tokenizer.json` they come from is large, and is not kept."""

    def __init__(self, files: TokenizerFiles, spec: dict[str, Any]) -> None:
        self.digest = files.digest
        self.named_tokens = files.named_tokens()
        """bos_token, eos_token ... as text."""
        self.chat_templates = files.chat_templates()
        """The Jinja chat templates by name."""
        added = spec["added_tokens"]
        is_text = [self._is_text(token, spec) for token in added]
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
        self.is_control = _is_control(spec, self.controls)
        """bool[V]: which ids are control tokens."""
        self.byte_lengths = _byte_lengths(spec, len(self.is_control))
        """int32[V]: how many bytes of text each entry of the vocabulary stands for; None where that is not known."""
        self.has_prefix = without_prefix(spec) is not None
        """Whether a text of its own gets a leading space."""
        schemes = [step.get("prepend_scheme") for step in steps_of(spec.get("pre_tokenizer"))]
        self.prefix_every_section = "first" not in schemes
        """Whether the official tokenizer puts the leading space after every control token too, not only first."""
        self._normalizers = frozenset(step["type"] for step in steps_of(spec.get("normalizer")))

    def reads_as_is(self, text: str) -> bool:
        """Whether the tokenizer certainly encodes a text as it is, and changes at most how its spaces look."""
        changing = self._normalizers - {"Prepend", "Replace"}
        return not changing or (changing == {"NFC"} and (text.isascii() or unicodedata.is_normalized("NFC", text)))

    def _is_text(self, token: dict[str, Any], spec: dict[str, Any]) -> bool:
        """Whether an added token is ordinary text, as Gemma's `<table>` and runs of spaces are.

        It is not special, the model's own vocabulary has it (it was there when the model was trained on text), and
        the chat template does not write it (`<tool_call>`), unless it is white space.
        """
        text = token["content"]
        if token["special"] or text not in spec["model"]["vocab"]:
            return False
        return not text.strip("▁ \n\t\r") or not any(text in source for source in self.chat_templates.values())

    def _eos(self) -> set[int]:
        eos = self.controls.get(self.named_tokens.get("eos_token", ""))
        return set() if eos is None else {eos}


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


MOST = 1 << 24
"""The most ids of a vocabulary; the largest have a quarter of a million."""


def _is_control(spec: dict[str, Any], controls: dict[str, int]) -> npt.NDArray[np.bool_]:
    vocab = spec["model"]["vocab"]
    ids = [*(vocab.values() if isinstance(vocab, dict) else ()), *controls.values()]
    if not all(isinstance(number, int) and 0 <= number < MOST for number in ids):
        raise ValueError(f"an id is not a number from 0 to {MOST:,}")
    last = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    table = np.zeros(max([last, *controls.values()]) + 1, dtype=bool)
    table[list(controls.values())] = True
    return table


def _byte_lengths(spec: dict[str, Any], size: int) -> npt.NDArray[np.int32] | None:
    vocab, kinds = spec["model"]["vocab"], decoder_kinds(spec)
    if not isinstance(vocab, dict) or not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
        return None
    table = np.zeros(size, np.int32)
    if "ByteLevel" in kinds:  # a letter a byte
        for token, number in vocab.items():
            table[number] = len(token)
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
