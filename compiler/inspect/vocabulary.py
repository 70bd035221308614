"""The set's own tokenizer, read as data: the bytes of every id."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from compiler.tokenizer.convert import byte_letters
from compiler.tokenizer.files import TokenizerFiles
from compiler.tokenizer.spec import decoder_kinds
from compiler.tokenizer.tokenizer import Tokenizer
from registry import PROCESSOR_FILES
from schemas.manifest import CONVERTED
from schemas.reader import CompiledSet


class TokenBytes:
    """The bytes of ids. Nothing is encoded, so the tokenizer is not built; a large one takes a second."""

    def __init__(self, opened: CompiledSet) -> None:
        self._opened = opened
        names = [
            name
            for name in opened.manifest["files"]
            if name.startswith("tokenizer/")
            and not name.startswith(f"{CONVERTED}/")
            and name.removeprefix("tokenizer/") not in PROCESSOR_FILES
        ]
        contents = {name.removeprefix("tokenizer/"): opened.read_file(name) for name in names}
        files = TokenizerFiles(opened.files / "tokenizer", contents)
        if files.family.get("file", "tokenizer.json") not in contents:
            raise opened.damage("tokenizer/tokenizer.json: not in the manifest")
        self._spec = files.spec()
        self.tokenizer = Tokenizer(files, self._spec)
        self.controls = frozenset(self.tokenizer.controls.values())

    @cached_property
    def bytes_of(self) -> pa.LargeBinaryArray:
        """The bytes of every id, large_binary[V]."""
        spell = _speller(self.tokenizer, decoder_kinds(self._spec))
        model = self._spec["model"]["vocab"]
        ids = model if isinstance(model, dict) else {entry[0]: number for number, entry in enumerate(model)}
        spelled = {number: spell(token, number) for token, number in ids.items()}
        spelled |= {number: token.encode() for token, number in self.tokenizer.controls.items()}
        return pa.array([spelled.get(number, b"") for number in range(max(spelled) + 1)], pa.large_binary())

    def pieces(self, ids: pa.Array) -> pa.LargeBinaryArray:
        """The bytes of these ids, large_binary[N]."""
        if len(ids) and pc.max(ids).as_py() >= len(self.bytes_of):
            raise self._opened.damage(f"token {pc.max(ids)} is not in its tokenizer")
        return self.bytes_of.take(ids)

    def alone(self, token_id: int) -> str | bytes:
        """One token decoded by itself; bytes if they are not whole characters."""
        data: bytes = self.bytes_of[token_id].as_py()
        try:
            data.decode()
        except UnicodeDecodeError:
            return data
        return self.tokenizer.decode([token_id])


def _speller(tokenizer: Tokenizer, kinds: set[str]) -> Callable[[str, int], bytes]:
    """A function from a vocabulary entry and its id to bytes, as the tokenizer's decoder makes them."""
    if "ByteLevel" in kinds:
        byte_of = {ord(letter): byte for byte, letter in byte_letters().items()}
        return lambda token, _: token.translate(byte_of).encode("latin-1", "ignore")
    if kinds & {"ByteFallback", "Metaspace"}:
        return lambda token, _: (
            bytes([int(token[3:5], 16)])
            if re.fullmatch("<0x[0-9A-F]{2}>", token)
            else token.replace("\u2581", " ").encode()
        )
    return lambda _, number: tokenizer.decode([number]).encode()
