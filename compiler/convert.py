"""Tokenizers without a tokenizer.json: sentencepiece and tiktoken files written as one, without running their code.

What the model's own Python would add (the split pattern, control tokens that follow the vocabulary) is data in
`registry/tokenizers/families.json`. The result goes through the same engine as every other tokenizer; tests compare
it with the `sentencepiece` and `tiktoken` libraries.

Both kinds merge the adjacent pair whose union has the best rank. BPE in `tokenizers` wants a list of pairs instead:
every way to split an entry into two entries, in the order of the entry's rank.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

from schemas.errors import InputError

_BYTE, _NORMAL = 6, 1
"""Types of sentencepiece entries (sentencepiece_model.proto); 2, 3 and 4 are unknown, control and user-defined."""


def to_spec(family: dict[str, Any], data: bytes, config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a tokenizer.json (parsed) for a family's vocabulary file; control tokens from config where it has them."""
    try:
        spec = _sentencepiece(data) if family["kind"] == "sentencepiece" else _tiktoken(data, family)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputError(where, f"not a {family['kind']} vocabulary: {error}") from error
    if not spec["model"]["vocab"]:
        raise InputError(where, f"not a {family['kind']} vocabulary: it holds no entry")
    declared = {int(i): token["content"] for i, token in config.get("added_tokens_decoder", {}).items()}
    known = {token["id"] for token in spec["added_tokens"]}
    next_id = max([*spec["model"]["vocab"].values(), *known]) + 1
    appended = declared or {next_id + i: text for i, text in enumerate(_appended(family))}
    spec["added_tokens"] += [_added(i, text) for i, text in sorted(appended.items()) if i not in known]
    return spec


def _appended(family: dict[str, Any]) -> list[str]:
    numbered = family.get("appended_numbered", {"count": 0})
    more = [f"{numbered['prefix']}{i}{numbered['suffix']}" for i in range(numbered["count"])]
    return [*family["appended"], *more]


def _added(token_id: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, "special": True} | flags


def _spec(model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", "added_tokens": []} | empty | parts | {"model": bpe | model}


# -- tiktoken --


def _tiktoken(data: bytes, family: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of lines "BASE64 RANK"."""
    ranks: dict[bytes, int] = {}
    for line in data.splitlines():
        if line:
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    letters = byte_letters()
    vocab = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    split = {"type": "Split", "pattern": {"Regex": family["pattern"]}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return _spec(
        # An entry that is a whole piece is taken as it is, merges or not, as tiktoken does.
        {"vocab": vocab, "merges": _merges(vocab), "ignore_merges": True},
        normalizer={"type": family["normalizer"]} if "normalizer" in family else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]},
        decoder=byte_level | {"add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    )


def byte_letters() -> dict[int, str]:
    """Return the printable letter that stands for each byte in byte-level BPE (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(printable))
    return letters


# -- sentencepiece --


def _sentencepiece(data: bytes) -> dict[str, Any]:
    """Return the spec of a sentencepiece BPE model with byte fallback and no normalization of its own."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            entry = dict(_fields(value))
            pieces.append((entry[1].decode(), _float(entry.get(2, b"\0\0\0\0")), entry.get(3, _NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if trainer.get(3) != 2 or not trainer.get(35) or normalizer.get(2):
        raise ValueError("only BPE models with byte fallback and without their own normalization are read")
    if not normalizer.get(3, 1) or normalizer.get(4, 1):
        raise ValueError("only models that add a leading space and keep extra white space are read")
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    normal = {piece: -score for piece, score, kind in pieces if kind == _NORMAL}
    unknown = next((piece for piece, _, kind in pieces if kind == 2), None)
    spec = _spec(
        {
            "vocab": vocab,
            "merges": _merges(normal, vocab),
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
        },
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    )
    spec["added_tokens"] = [_added(vocab[piece], piece) for piece, _, kind in pieces if kind in (2, 3)]
    return spec


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a protobuf message: integers, and bytes for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown protobuf wire type {kind}")
        if at + size > len(data):
            raise ValueError("the file ends in the middle of a field")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _float(data: bytes) -> float:
    return float(struct.unpack("<f", data)[0])


def _merges(ranks: dict[str, float] | dict[str, int], ids: dict[str, int] | None = None) -> list[list[str]]:
    """Return every split of an entry into two entries, best rank of the union first."""
    order = ids or ranks
    found: list[tuple[float, float, float, str, str]] = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                found.append((rank, order[left], order[right], left, right))
    found.sort()
    return [[left, right] for _, _, _, left, right in found]
