"""Converts the vocabulary files of sentencepiece and tiktoken to a tokenizer.json, without running any of their code.

What the model's own Python code would add (the split pattern, control tokens numbered on from the vocabulary) is data
in `registry/tokenizers/families.json`. The result is encoded like every other tokenizer; tests compare its ids with
those of the `sentencepiece` and `tiktoken` libraries.

Both kinds of file give every entry a rank, and encoding merges the adjacent pair whose union has the best rank. BPE in
`tokenizers` takes a list of pairs instead: every way to split an entry into two entries, in the order of the entry's
rank.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.errors import InputError

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
"""The types of sentencepiece entries (sentencepiece_model.proto)."""

_CONTROL_LIKE = re.compile(r"▁?(<.*>|\[.*\])", re.DOTALL)
"""The user-defined entries that are control tokens. The others (runs of spaces, say) are text that is never split."""


def to_spec(family: dict[str, Any], data: bytes, config: dict[str, Any], where: str) -> dict[str, Any]:
    """Convert a family's vocabulary file to a parsed tokenizer.json; `config` is the parsed tokenizer_config.json."""
    declared = {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    try:
        if family["kind"] == "sentencepiece":
            spec = _sentencepiece(data, declared, _prefix_of(family, config))
        else:
            spec = _tiktoken(data, family)
        _add_controls(spec, declared, _appended_controls(family))
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputError(where, f"not a {family['kind']} vocabulary: {error}") from error
    spec["post_processor"] = _bos_processor(spec, family, config)
    return spec


def _add_controls(spec: dict[str, Any], declared: Mapping[int, dict[str, Any]], appended: list[str]) -> None:
    """Add the control tokens that the file lacks: `declared` ones, else `appended` ones with ids after its last."""
    vocab: dict[str, int] = spec["model"]["vocab"]
    if not vocab:
        raise ValueError("it has no entries")
    added = {token["id"]: token for token in spec["added_tokens"]}
    end = max(*vocab.values(), *added, 0) + 1
    more = declared or {end + i: {"content": text} for i, text in enumerate(appended)}
    for i, token in more.items():
        text = token["content"]
        if vocab.get(text, i) != i:
            raise ValueError(f"{text!r} has the id {vocab[text]} in it, and {i} in tokenizer_config.json")
        added[i] = _added(i, text, **{flag: token[flag] for flag in _FLAGS if flag in token})
    gaps = {*range(end, max(added, default=end))} - set(added)
    if gaps:
        raise ValueError(f"no token has the id {min(gaps)}, but some have higher ones")
    spec["added_tokens"] = [token for _, token in sorted(added.items())]


def _appended_controls(family: dict[str, Any]) -> list[str]:
    numbered = family.get("appended_numbered", {"count": 0})
    more = [f"{numbered['prefix']}{i}{numbered['suffix']}" for i in range(numbered["count"])]
    return [*family["appended"], *more]


_FLAGS = ("single_word", "lstrip", "rstrip", "special")


def _added(token_id: int, text: str, *, special: bool = True, normalized: bool = False, **more: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False) | more
    return {"id": token_id, "content": text, "special": special, "normalized": normalized} | flags


def _bos_processor(spec: dict[str, Any], family: dict[str, Any], config: dict[str, Any]) -> dict[str, Any] | None:
    """The post-processor that puts the bos token before a text; None where the tokenizer adds none."""
    if not config.get("add_bos_token", family.get("add_bos_token", False)):
        return None
    named = config.get("bos_token") or family["named_tokens"]["bos_token"]
    bos = named["content"] if isinstance(named, dict) else named
    number = next((token["id"] for token in spec["added_tokens"] if token["content"] == bos), None)
    if number is None:
        return None
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    single = [first, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    tokens = {bos: {"id": bos, "ids": [number], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def _bpe_spec(model: dict[str, Any], **parts: Any) -> dict[str, Any]:
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
    """Convert lines of "BASE64 RANK"."""
    ranks: dict[bytes, int] = {}
    for line in data.splitlines():
        if line:
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    letters = byte_letters()
    vocab = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    split = {"type": "Split", "pattern": {"Regex": family["pattern"]}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return _bpe_spec(
        # As in tiktoken, a piece of text that is an entry becomes that entry, whether or not merges lead to it.
        {"vocab": vocab, "merges": _merges(vocab, vocab), "ignore_merges": True},
        normalizer={"type": family["normalizer"]} if "normalizer" in family else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]},
        decoder=byte_level | {"add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    )


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in byte-level BPE (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(printable))
    return letters


# -- sentencepiece --


def _prefix_of(family: dict[str, Any], config: dict[str, Any]) -> str | None:
    """Where a text gets a leading space: "always", "first" or "never"; None = as the vocabulary file says.

    With `legacy: false`, transformers' Llama tokenizers put it only at the beginning of the whole text.
    """
    if "legacy" not in family or config.get("legacy", family["legacy"]):
        return None
    return "first" if config.get("add_prefix_space", True) else "never"


def _sentencepiece(data: bytes, declared: Mapping[int, dict[str, Any]], prefix: str | None) -> dict[str, Any]:
    """Convert a sentencepiece BPE model that has byte fallback and no character table of its own."""
    pieces: list[tuple[str, float, int]] = []
    settings: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    for number, value in _protobuf_fields(data):
        if number == 1:
            entry = dict(_protobuf_fields(value))
            if 1 not in entry:
                raise ValueError("an entry has no text")
            pieces.append((entry[1].decode(), _float(entry.get(2, b"\0\0\0\0")), entry.get(3, _NORMAL)))
        elif number in settings:
            settings[number] = dict(_protobuf_fields(value))
    trainer, normalizer = settings[2], settings[3]
    if trainer.get(3) != 2 or not trainer.get(35) or normalizer.get(2):
        raise ValueError("only BPE models with byte fallback and without their own normalization are read")
    if trainer.get(24) or not normalizer.get(5, 1) or any(kind == _UNUSED for _, _, kind in pieces):
        raise ValueError("models with spaces after words, unescaped spaces or unused entries are not read")
    for i, token in declared.items():
        if i < len(pieces):  # spare entries that the configuration names, as InternLM2's does
            pieces[i] = (token["content"], 0.0, _CONTROL)
    if prefix is None:
        prefix = "always" if normalizer.get(3, 1) else "never"
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    unknown = next((piece for piece, _, kind in pieces if kind == _UNKNOWN), None)
    merges = _merges({piece: -score for piece, score, kind in pieces if kind == _NORMAL}, vocab)
    model = {"vocab": vocab, "merges": merges, "unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    spec = _bpe_spec(model, **_space_rules(prefix, squeeze=bool(normalizer.get(4, 1))))
    apart = [(piece, kind) for piece, _, kind in pieces if kind in (_UNKNOWN, _CONTROL, _USER)]
    # A user-defined entry with a space is never found in a text: spaces have become ▁ by then.
    spec["added_tokens"] = [
        _whole_entry(vocab[piece], piece, kind, prefix) for piece, kind in apart if " " not in piece
    ]
    return spec


def _whole_entry(number: int, piece: str, kind: int, prefix: str) -> dict[str, Any]:
    """An added token for a control token, or for text that sentencepiece looks for first and never splits."""
    if kind != _USER or _CONTROL_LIKE.fullmatch(piece):
        return _added(number, piece)
    if prefix != "never":
        raise ValueError(f"the user-defined entry {piece!r} is plain text, and texts get a leading space")
    return _added(number, piece, special=False, normalized=True)


def _space_rules(prefix: str, *, squeeze: bool) -> dict[str, Any]:
    """The normalizer, pre-tokenizer and decoder that treat spaces as sentencepiece does.

    `squeeze` (remove_extra_whitespaces) drops spaces at both ends and turns several into one; only U+0020 counts.
    """
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    before = [_replace(r"\A +", ""), _replace(" +", " ")] if squeeze else []
    prepend = [{"type": "Prepend", "prepend": "▁"}] if prefix == "always" else []
    after = [_replace(r"▁+\z", "")] if squeeze else []
    normalizers = [*before, *prepend, escape, *after]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": first if prefix == "first" else None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _protobuf_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a protobuf message; values are integers, or bytes for every other type."""
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


def _merges(ranks: Mapping[str, float], ids: Mapping[str, int]) -> list[list[str]]:
    """Every split of an entry into two entries, ordered by the rank of the entry.

    Among unions of one score, sentencepiece takes the leftmost (runs of spaces in Mistral's model have one score). A
    list cannot express that. Ordering by id, as transformers does, has the same result for such runs.
    """
    found: list[tuple[float, int, int, int, str, str]] = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                found.append((rank, ids[token], ids[left], ids[right], left, right))
    found.sort()
    return [[left, right] for *_, left, right in found]
