"""What a tokenizer says of texts and ids, worked out once from its files. Nothing here encodes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.tokenizer.files import TokenizerFiles
from compiler.tokenizer.spec import check_ids, decoder_kinds, split_added, steps_of, without_prefix


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
        self.text_tokens, controls = split_added(outline, self.chat_templates.values())
        """The added tokens that are ordinary text."""
        self.controls: dict[str, int] = {token["content"]: token["id"] for token in controls}
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

    def _eos(self) -> set[int]:
        eos = self.controls.get(self.named_tokens.get("eos_token", ""))
        return set() if eos is None else {eos}


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _is_control(last: int, controls: list[int]) -> npt.NDArray[np.bool_]:
    check_ids(controls)
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
