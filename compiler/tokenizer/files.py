"""A model's tokenizer files: found in a folder and parsed as data. No code of theirs is run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

import registry
from compiler.tokenizer.convert import to_spec
from registry import PROCESSOR_FILES, TOKENIZER_FILES
from schemas.disk import digest_of
from schemas.errors import InputError, UsageError
from schemas.stores import AnyPath

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """The files by name. They are copied beside the shards, so a set explains itself."""

    folder: AnyPath
    """Where they were found, for messages."""
    tokenizer: dict[str, bytes]
    processor: dict[str, bytes] = field(default_factory=dict)
    """The files of the model's image processor; most models have none."""

    @classmethod
    def find(cls, folder: Path) -> TokenizerFiles:
        """Read the files of a folder: a `tokenizer.json`, or the vocabulary file of a family that has none."""
        if not folder.is_dir():
            raise UsageError(f"--tokenizer {folder}", "no such folder", "Give a folder that holds a tokenizer.json.")
        found = cls(folder, _read(folder, TOKENIZER_FILES), _read(folder, PROCESSOR_FILES))
        if "tokenizer.json" in found.tokenizer:
            return found
        vocabulary = _read(folder, [found.family["file"]] if found.family else [])
        if vocabulary:
            return replace(found, tokenizer=found.tokenizer | vocabulary)
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise UsageError(
            f"--tokenizer {folder}", f"expected a tokenizer.json, found {names}",
            "Point at the model's folder; AutoTokenizer(...).save_pretrained writes a tokenizer.json.",
        )  # fmt: skip

    @cached_property
    def family(self) -> dict[str, Any]:
        """How a vocabulary file without a tokenizer.json is read (registry/tokenizers/families.json), by the class that
        the configuration names; {} where there is a tokenizer.json, or no such class."""
        if "tokenizer.json" in self.tokenizer:
            return {}
        return registry.tokenizer_families().get(self.config.get("tokenizer_class", ""), {})

    @cached_property
    def config(self) -> dict[str, Any]:
        """`tokenizer_config.json`, parsed."""
        return self._json("tokenizer_config.json")

    @cached_property
    def digest(self) -> str:
        """sha256 over the names and bytes of the tokenizer's files."""
        return digest_of([*sorted(self.tokenizer.items()), ("family", orjson.dumps(self.family))])

    @property
    def identity(self) -> str:
        """The digest, and that of the processor's files."""
        return self.digest + digest_of(sorted(self.processor.items()))

    def spec(self) -> dict[str, Any]:
        """Parse `tokenizer.json`, or convert the vocabulary file. The result is large: let go of it soon."""
        if not self.family:
            return orjson.loads(self.tokenizer["tokenizer.json"])
        file = self.family["file"]
        return to_spec(self.family, self.tokenizer[file], self.config, str(self.folder / file))

    def converted(self) -> dict[str, bytes]:
        """A vocabulary file without a tokenizer.json as files that Transformers loads; {} where there is one.

        The compiler decides ids alone. This is for what reads and writes text after it: generation, a served model.
        """
        if not self.family:
            return {}
        kept = {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.named_tokens(), **kept}
        return {"tokenizer.json": orjson.dumps(self.spec()), "tokenizer_config.json": orjson.dumps(config)}

    def named_tokens(self) -> dict[str, str]:
        """bos_token, eos_token ... as text, as chat templates expect them."""
        special = self.family.get("named_tokens", {}) | self._json("special_tokens_map.json") | self.config
        found = {name: special.get(name) for name in NAMED_TOKENS}
        return {k: v["content"] if isinstance(v, dict) else v for k, v in found.items() if v}

    def chat_templates(self) -> dict[str, str]:
        """The Jinja chat templates by name; most tokenizers have one, "default", or none."""
        if "chat_template.jinja" in self.tokenizer:
            return {"default": self.tokenizer["chat_template.jinja"].decode()}
        template = self._json("chat_template.json").get("chat_template") or self.config.get("chat_template")
        if isinstance(template, list):
            return {entry["name"]: entry["template"] for entry in template}
        return {"default": template} if template else {}

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = orjson.loads(self.tokenizer.get(name, b"{}"))  # it refuses halves of characters, which json takes
        except orjson.JSONDecodeError as error:
            raise InputError(str(self.folder / name), f"not JSON: {error}", "Get the file again.") from error
        if not isinstance(found, dict):
            raise InputError(str(self.folder / name), "expected a JSON object", "Get the file again.")
        return found


def _read(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
