"""A tokenizer as the compiler sees it: text to ids that never become control tokens, and the control tokens apart.

Three encoders are made from one `tokenizer.json`:

- `official`: unchanged; what `transformers` does with the rendered text. Only the certificate uses it.
- `fresh`: without added tokens, so that `<|im_end|>` typed in a text stays text.
- `continued`: like `fresh`, but without the space that sentencepiece-style tokenizers put in front of a text:
  for text that goes on where other text ended, as a reply does after its generation prompt.

For byte-level tokenizers `fresh` and `continued` are the same.
"""

from __future__ import annotations

import copy
import ctypes
import json
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from tokenizers import Tokenizer as HFTokenizer

import registry
from compiler.tokenizer import encoders
from compiler.tokenizer.vocabularies import to_spec
from registry import PROCESSOR_FILES, TOKENIZER_FILES
from schemas.disk import digest_of
from schemas.errors import InputError, UsageError
from schemas.stores import AnyPath

_LOADED: dict[str, Tokenizer] = {}
"""The last tokenizer loaded in this process, by its identity: loading a large one takes about a second."""

Sample = tuple[bool, str, list[int]]
"""(whether it was encoded as a text of its own, the text, its ids)."""
SAMPLE_LENGTH = 4096
"""Characters of the longest text that is compared while a run goes on."""

_OF_ROWS = (
    "byte_lengths", "controls", "control_pattern", "is_control", "has_prefix", "prefix_every_section", "stops",
    "swallows", "_normalizers",
)  # fmt: skip
"""The properties that compiling a row asks for."""

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass
class Tokenizer:
    """One model's tokenizer files, loaded without running any code of theirs."""

    folder: AnyPath
    files: dict[str, bytes]
    """The files found, by name: they are copied beside the shards so that a dataset explains itself."""
    family: dict[str, Any] = field(default_factory=dict)
    """Where there is no tokenizer.json: how its vocabulary file is read (registry/tokenizers/families.json)."""
    processor_files: dict[str, bytes] = field(default_factory=dict)
    """The processor's files beside it, by name; none for most models."""
    samples: list[Sample] = field(default_factory=list)
    """Texts that it encoded fast, for who compares them with the reference; `unit` takes them away."""

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Return the tokenizer in `folder`, which needs a `tokenizer.json`; what encodes is loaded when it is used."""
        if not folder.is_dir():
            raise UsageError(f"--tokenizer {folder}", "no such folder", "Give a folder that holds a tokenizer.json.")
        files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
        family = family_of(files)
        if family and (folder / family["file"]).is_file():
            files[family["file"]] = (folder / family["file"]).read_bytes()
        elif "tokenizer.json" not in files:
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
            raise UsageError(
                f"--tokenizer {folder}", f"expected a tokenizer.json, found {found}",
                "Point at the model's folder; AutoTokenizer(...).save_pretrained writes a tokenizer.json.",
            )  # fmt: skip
        processor = {name: (folder / name).read_bytes() for name in PROCESSOR_FILES if (folder / name).is_file()}
        tokenizer = cls(folder, files, family, processor)
        if tokenizer.identity not in _LOADED:
            try:
                _ = tokenizer.config, tokenizer.controls
            except (ValueError, KeyError, TypeError) as error:
                raise tokenizer._broken(error) from error
            _LOADED.clear()  # one is enough, and each holds tens of megabytes
            _LOADED[tokenizer.identity] = tokenizer
        return _LOADED[tokenizer.identity]

    @cached_property
    def digest(self) -> str:
        """sha256 over the names and bytes of all tokenizer files."""
        return digest_of([*sorted(self.files.items()), ("family", orjson.dumps(self.family))])

    @property
    def identity(self) -> str:
        """The digest, and that of the processor's files beside it."""
        return self.digest + digest_of(sorted(self.processor_files.items()))

    @cached_property
    def config(self) -> dict[str, Any]:
        """`tokenizer_config.json`, parsed."""
        return json.loads(self.files.get("tokenizer_config.json", b"{}"))

    @cached_property
    def spec(self) -> dict[str, Any]:
        """`tokenizer.json`, parsed; or what the vocabulary file is as one."""
        if not self.family:
            return orjson.loads(self.files["tokenizer.json"])
        file = self.family["file"]
        return to_spec(self.family, self.files[file], self.config, str(self.folder / file))

    @cached_property
    def official(self) -> HFTokenizer:
        """The tokenizer as published."""
        return self._built(self.spec)

    def _built(self, spec: dict[str, Any]) -> HFTokenizer:
        try:
            return HFTokenizer.from_str(orjson.dumps(spec).decode())
        except Exception as error:  # tokenizers raises bare Exception for what it cannot read
            raise self._broken(error) from error

    def _without_added(self, spec: dict[str, Any]) -> HFTokenizer:
        """Return the tokenizer of a spec with the published one's model, which takes most of the time to build."""
        if spec["added_tokens"]:
            return self._built(spec)
        bare = self._built(spec | {"model": {"type": "BPE", "vocab": {}, "merges": []}})
        bare.model = self.official.model
        return bare

    def _broken(self, error: Exception) -> InputError:
        return InputError(str(self.folder / "tokenizer.json"), f"not a tokenizer: {error}")

    @cached_property
    def _plain_specs(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What encodes texts by themselves, and texts that go on; None where that is the same."""
        text = [token for token in self.spec["added_tokens"] if self._is_text(token)]
        bare: dict[str, Any] = {"added_tokens": text, "post_processor": None, "truncation": None, "padding": None}
        spec = self.spec | bare
        return spec, _without_prefix(spec)

    @cached_property
    def _plain(self) -> tuple[HFTokenizer, HFTokenizer]:
        fresh, continued = self._plain_specs
        first = self._without_added(fresh)
        return first, self._without_added(continued) if continued else first

    @cached_property
    def reference(self) -> tuple[encoders.Reference, encoders.Reference]:
        """The encoders of `tokenizers`, for texts by themselves and for those that go on."""
        fresh, continued = self._plain
        return encoders.Reference(fresh), encoders.Reference(continued)

    @cached_property
    def fast(self) -> list[encoders.Fast] | str:
        """As `reference`, or one for both; or why there is none."""
        return encoders.fast_or_why(self._plain_texts())

    def _plain_texts(self) -> list[str]:
        """Return what encodes texts as JSON, twice where those that go on are encoded in another way.

        The parsed file is let go of: it takes as much memory as the encoder that is built next.
        """
        texts = [orjson.dumps(spec).decode() for spec in self._plain_specs if spec is not None]
        self.keep_small()
        return texts

    def load_fast(self) -> None:
        """Load the fast encoder where it takes this tokenizer: whether it is right is another question."""
        _ = self.fast

    def drop_fast(self) -> None:
        """Let go of the fast encoder: others encode."""
        self.__dict__.pop("fast", None)
        self.keep_small()

    def keep_small(self) -> None:
        """Let go of the parsed file. What rows need of it is worked out before; else it is parsed again."""
        for name in _OF_ROWS:
            getattr(self, name)
        for name in ("spec", "_plain_specs"):
            self.__dict__.pop(name, None)
        with suppress(OSError, AttributeError):  # of glibc alone
            ctypes.CDLL("libc.so.6").malloc_trim(0)

    @cached_property
    def has_prefix(self) -> bool:
        """True where a text of its own gets a leading space."""
        return self._plain_specs[1] is not None

    @cached_property
    def prefix_every_section(self) -> bool:
        """True where the published tokenizer puts its prefix space after every control token, not only first."""
        return not any(node.get("prepend_scheme") == "first" for node in _nodes(self.spec.get("pre_tokenizer")))

    @cached_property
    def controls(self) -> dict[str, int]:
        """Every added token by its text, but for texts: what must be placed by id and never come out of a text."""
        return {t["content"]: t["id"] for t in self.spec["added_tokens"] if not self._is_text(t)}

    def _is_text(self, token: dict[str, Any]) -> bool:
        """Return whether an added token is a piece of ordinary text, as Gemma's `<table>` and runs of spaces are.

        It is not special, the model's own vocabulary has it (it was there when the model was trained on text), and
        the chat template does not write it (`<tool_call>`), unless it is white space.
        """
        text = token["content"]
        if token["special"] or text not in self.spec["model"]["vocab"]:
            return False
        return not text.strip("▁ \n\t\r") or not any(text in source for source in self.chat_templates.values())

    @cached_property
    def swallows(self) -> frozenset[int]:
        """The control tokens that swallow the white space after them, as Phi-3's do (`rstrip`)."""
        return frozenset(t["id"] for t in self.spec["added_tokens"] if t["rstrip"])

    @cached_property
    def stops(self) -> frozenset[int]:
        """The control tokens marked special: one of them must end a reply (`</tool_call>`, say, must not)."""
        special = {t["id"] for t in self.spec["added_tokens"] if t["special"]}
        eos = self.controls.get(self.named_tokens.get("eos_token", ""))
        return frozenset(special | ({eos} if eos is not None else set()))

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches any control token's text, the longest first as the published tokenizer does."""
        texts = sorted(self.controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    @cached_property
    def is_control(self) -> npt.NDArray[np.bool_]:
        """bool[V]: which ids are control tokens."""
        vocab = self.spec["model"]["vocab"]
        last = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
        table = np.zeros(max([last, *self.controls.values()]) + 1, dtype=bool)
        table[list(self.controls.values())] = True
        return table

    @cached_property
    def named_tokens(self) -> dict[str, str]:
        """bos_token, eos_token ... as text, as chat templates expect them."""
        special = json.loads(self.files.get("special_tokens_map.json", b"{}")) | self.config
        special = self.family.get("named_tokens", {}) | special
        found = {name: special.get(name) for name in NAMED_TOKENS}
        return {k: v["content"] if isinstance(v, dict) else v for k, v in found.items() if v}

    @cached_property
    def chat_templates(self) -> dict[str, str]:
        """The Jinja chat templates by name; most tokenizers have one, "default", or none."""
        if "chat_template.jinja" in self.files:
            return {"default": self.files["chat_template.jinja"].decode()}
        template = json.loads(self.files.get("chat_template.json", b"{}")).get("chat_template")
        template = template or self.config.get("chat_template")
        if isinstance(template, list):
            return {entry["name"]: entry["template"] for entry in template}
        return {"default": template} if template else {}

    @cached_property
    def document_start(self) -> list[int]:
        """The control tokens that the published tokenizer puts before any text, such as `<s>`; most have none."""
        ids = self.official.encode("", add_special_tokens=True).ids
        with_text = self.official.encode("a", add_special_tokens=True).ids
        return [token for token, same in zip(ids, with_text, strict=False) if token == same and self.is_control[token]]

    def encode(self, texts: Sequence[str], *, fresh: bool, encoder: str = encoders.REFERENCE) -> encoders.Ids:
        """Return (ids int32[T], lengths int64[len(texts)]) of the texts, one after the other.

        Ids do not depend on the encoder. No control token comes out of a text, whatever it spells: that is checked,
        not assumed.
        """
        chosen: Sequence[encoders.Encoder] | str = self.fast if encoder == encoders.FAST else self.reference
        assert not isinstance(chosen, str), chosen
        ids, lengths = chosen[0 if fresh else -1].encode(texts)
        self._check_plain(ids)
        if encoder == encoders.FAST:
            self._keep_samples(texts, ids, lengths, fresh)
        return ids, lengths

    def _keep_samples(
        self, texts: Sequence[str], ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], fresh: bool
    ) -> None:
        """Keep a few texts of a call with their ids; which ones is no question of chance."""
        for i in {0, len(texts) // 3, len(texts) * 2 // 3} if texts else ():
            if len(texts[i]) <= SAMPLE_LENGTH:
                start = int(lengths[:i].sum())
                self.samples.append((fresh, texts[i], ids[start : start + int(lengths[i])].tolist()))

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """int64[V]: how many bytes of text each entry of the vocabulary stands for; None where that is not known."""
        decoder = self.spec.get("decoder") or {}
        kinds = {part.get("type") for part in (decoder, *decoder.get("decoders", []))}
        vocab = self.spec["model"]["vocab"]
        if not isinstance(vocab, dict) or not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
            return None
        table = np.zeros(len(self.is_control), np.int64)
        if "ByteLevel" in kinds:  # a letter a byte
            for token, number in vocab.items():
                table[number] = len(token)
        else:
            for token, number in vocab.items():
                fallback = re.fullmatch("<0x[0-9A-F]{2}>", token)
                table[number] = 1 if fallback else len(token.replace("\u2581", " ").encode())
        return table

    @cached_property
    def _normalizers(self) -> list[str]:
        return [node["type"] for node in _nodes(self.spec.get("normalizer"))]

    def reads_as_is(self, text: str) -> bool:
        """Return whether the tokenizer certainly changes nothing of a text, but for spaces made visible."""
        kinds = set(self._normalizers) - {"Prepend", "Replace"}
        return not kinds or (kinds == {"NFC"} and (text.isascii() or unicodedata.is_normalized("NFC", text)))

    def encode_with_offsets(self, text: str, *, fresh: bool) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return (ids int32[T], offsets int64[T, 2] in characters of `text`)."""
        encoding = self._plain[0 if fresh else 1].encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int32)
        self._check_plain(ids)
        return ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)

    def _check_plain(self, ids: npt.NDArray[np.int32]) -> None:
        if len(ids) and self.is_control[ids].any():
            found = int(ids[self.is_control[ids]][0])
            # Some vocabularies can spell <unk> or a control token from ordinary pieces; an honest refusal
            # is better than a token that the template did not emit.
            raise InputError(
                str(self.folder),
                f"ordinary text was encoded to the control token {self.token(found)!r} ({found})",
            )

    def token(self, token_id: int) -> str:
        """Return the vocabulary entry of an id, as the tokenizer spells it."""
        return self.official.id_to_token(token_id) or f"<id {token_id}>"

    def normalize(self, text: str) -> str:
        """Return `text` as the tokenizer normalizes it before it encodes (NFC for Qwen)."""
        normalizer = self._plain[0].normalizer
        return normalizer.normalize_str(text) if normalizer else text

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, control tokens included."""
        return self.official.decode(list(ids), skip_special_tokens=False)


def family_of(files: dict[str, bytes]) -> dict[str, Any]:
    """Return how files without a tokenizer.json are read, by the class their configuration names; {} if there is no
    need, or no knowing."""
    if "tokenizer.json" in files:
        return {}
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    return registry.tokenizer_families().get(config.get("tokenizer_class", ""), {})


def _nodes(spec: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return a normalizer's or pre-tokenizer's parts, with sequences opened."""
    if not spec:
        return []
    parts = spec.get("normalizers") or spec.get("pretokenizers")
    return [spec] if parts is None else [node for part in parts for node in _nodes(part)]


def _without_prefix(spec: dict[str, Any]) -> dict[str, Any] | None:
    """Return a tokenizer.json without its leading-space rules; None if it has none."""
    pre_tokenizer = copy.deepcopy(spec.get("pre_tokenizer"))
    found = False
    for node in _nodes(pre_tokenizer):
        if node["type"] == "Metaspace" and node.get("prepend_scheme", "always") != "never":
            node["prepend_scheme"], found = "never", True
            node.pop("add_prefix_space", None)
        elif node.get("add_prefix_space"):
            node["add_prefix_space"], found = False, True
    normalizer = spec.get("normalizer")
    kept = [node for node in _nodes(normalizer) if node["type"] != "Prepend"]
    if len(kept) < len(_nodes(normalizer)):
        normalizer, found = {"type": "Sequence", "normalizers": kept}, True
    return spec | {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer} if found else None
