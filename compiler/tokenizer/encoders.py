"""The encoders, which turn text into ids: the reference (`tokenizers`) and a fast one (`fastokens`).

What the reference says is right. The fast one gives the same ids about forty times as fast, for the tokenizers that it
loads; a run uses it once that is proven (`compiler/proof/encoders.py`), so ids never depend on the encoder.

Both encode a text in one of two ways:

- fresh: as a text of its own. Control tokens spelled in it, as `<|im_end|>`, stay text.
- continued: the same, without the space that sentencepiece-style tokenizers put in front of a text. It is for text
  that goes on where other text ended, as a reply does after its generation prompt. Byte-level tokenizers put no space
  there, so for them the two are the same.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson
from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE, Model

from compiler.tokenizer.ahead import Tables, tables_of
from compiler.tokenizer.spec import Forms, Specs

Ids = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""(ids int32[T], lengths int64[N]) of N texts, one after the other."""

REFERENCE, FAST = "tokenizers", "fastokens"
LONG = 1024
"""The fewest characters of a text that is looked for among others: to look takes time too."""


class Encoder(Protocol):
    """Turns texts into ids; no text becomes a control token."""

    def encode(self, texts: Sequence[str], *, fresh: bool) -> Ids:
        """Encode the texts, each as one of its own (`fresh`) or as one that goes on."""


class ReferenceEncoder:
    """The encoder of `tokenizers`.

    `official` is the tokenizer as it was published, control tokens and all: it decodes, and the certificate compares
    with it.
    """

    def __init__(self, forms: Forms, official: HFTokenizer) -> None:
        self.official = official
        self._fresh = _around(official.model, forms.fresh)
        self._continued = _around(official.model, forms.continued) if forms.continued else self._fresh

    @classmethod
    def of(cls, specs: Specs) -> ReferenceEncoder:
        """Build it."""
        return cls(specs.forms, official_of(specs.parsed()))

    def encode(self, texts: Sequence[str], *, fresh: bool) -> Ids:
        """Encode the texts, those that several rows have once: system prompts with their tools are long."""
        plain = self._fresh if fresh else self._continued
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        lists = [encoding.ids for encoding in plain.encode_batch_fast(list(number), add_special_tokens=False)]
        return _flatten([lists[number[text]] for text in texts])

    def encode_with_offsets(self, text: str, *, fresh: bool) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """(ids int32[T], offsets int64[T, 2] in characters of `text`)."""
        encoding = (self._fresh if fresh else self._continued).encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)

    def normalize(self, text: str) -> str:
        """A text as it is normalized before it is encoded (NFC for Qwen)."""
        normalizer = self._fresh.normalizer
        return normalizer.normalize_str(text) if normalizer else text


def official_of(spec: dict[str, Any]) -> HFTokenizer:
    """The tokenizer of a parsed `tokenizer.json`.

    A common model of merges is built from what was parsed: `tokenizers` would parse the JSON again, which takes as long
    as building it.
    """
    official = _of_merges(spec["model"], spec) or HFTokenizer.from_str(orjson.dumps(spec).decode())
    official.no_truncation()
    official.no_padding()
    return official


def _of_merges(model: dict[str, Any], spec: dict[str, Any]) -> HFTokenizer | None:
    """The tokenizer of a model with merges; None where it is another one, or wrong, which `from_str` says better."""
    if model.get("type") != "BPE" or not model.keys() <= {"type", "vocab", "merges", *_OF_BPE}:
        return None
    try:
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        built = BPE(model["vocab"], merges, **{name: model.get(name) for name in _OF_BPE if name in model})
        return _around(built, spec)
    except Exception:  # noqa: BLE001  # tokenizers raises bare Exception
        return None


_OF_BPE = (
    "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
    "ignore_merges",
)  # fmt: skip


def _around(model: Model, spec: dict[str, Any]) -> HFTokenizer:
    """Build a tokenizer around a model, since building a model takes most of the time."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    found = HFTokenizer.from_str(orjson.dumps(spec | {"added_tokens": [], "model": empty}).decode())
    found.model = model
    found.add_tokens([_added_token(token) for token in spec["added_tokens"]])
    return found


class FastEncoder:
    """The encoder of `fastokens`, with one thread: the worker processes are the parallelism."""

    def __init__(self, tables: Tables) -> None:
        self._fresh, self._continued = tables

    def encode(self, texts: Sequence[str], *, fresh: bool) -> Ids:
        """Encode the texts, those that several rows have once: system prompts with their tools are long."""
        plain = self._fresh if fresh else self._continued
        again = _repeated(texts)
        once = [text for n, text in enumerate(texts) if n not in again] if again else list(texts)
        found, offsets = plain.encode_batch_flat(once)
        ids, edges = np.frombuffer(found, np.int32), np.frombuffer(offsets, np.int64)
        return _with_repeated(ids, edges, again, len(texts)) if again else (ids, np.diff(edges))


def _repeated(texts: Sequence[str]) -> dict[int, int]:
    """The texts that are the same as earlier ones, by number, where encoding them but once saves a good part."""
    first: dict[str, int] = {}
    again = {n: same for n, text in enumerate(texts) if len(text) >= LONG and (same := first.setdefault(text, n)) < n}
    return again if again and 8 * sum(len(texts[n]) for n in again) > sum(map(len, texts)) else {}


def _with_repeated(ids: npt.NDArray[np.int32], edges: npt.NDArray[np.int64], again: dict[int, int], count: int) -> Ids:
    """The ids of `count` texts, of which those of `again` were not encoded: each is the same as an earlier one."""
    same = np.arange(count)
    same[list(again)] = list(again.values())
    place = np.cumsum(same == np.arange(count)) - 1  # of a text among those encoded, or of the last one before it
    source = place[same]
    numbers, at = list(again), 0
    pieces = []
    for begin, end, stop in zip(
        edges[source[numbers]].tolist(), edges[source[numbers] + 1].tolist(), edges[place[numbers] + 1].tolist(),
        strict=True,
    ):  # fmt: skip
        pieces += [ids[at:stop], ids[begin:end]]
        at = stop
    return np.concatenate([*pieces, ids[at:]]), np.diff(edges)[source]


def load_fast(specs: Specs) -> FastEncoder | str:
    """Load the fast encoder; return why there is none where it is not installed or does not take the tokenizer."""
    tables = tables_of(specs)
    return tables if isinstance(tables, str) else FastEncoder(tables)


def version_of(name: str) -> str:
    """The installed version of an encoder."""
    return importlib.metadata.version(name)


def same(mine: Ids, theirs: Ids) -> bool:
    """Whether two encoders gave the same ids."""
    return np.array_equal(mine[0], theirs[0]) and np.array_equal(mine[1], theirs[1])


def _added_token(token: dict[str, Any]) -> AddedToken:
    flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return AddedToken(token["content"], **flags)


def _flatten(lists: list[list[int]]) -> Ids:
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    ids = np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(lengths.sum()))
    return ids, lengths
