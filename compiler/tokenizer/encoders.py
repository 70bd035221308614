"""The encoders that turn text into ids, and the choice of the fastest one that is exact.

`tokenizers` is the reference: what it says is right. `fastokens` gives the same ids about forty times as fast where it
loads the tokenizer. It is used only after it agreed on a corpus of awkward texts, and while it runs a sample of the
real texts is compared too (`compiler/proof/encoders.py`). So ids never depend on the encoder.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from tokenizers import Tokenizer as HFTokenizer

Ids = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""(ids int32[T], lengths int64[N]) of N texts, one after the other."""

REFERENCE, FAST = "tokenizers", "fastokens"
REFUSALS = (ValueError, RuntimeError, NotImplementedError)
"""What the fast encoder raises for a tokenizer that it cannot do."""


class Encoder(Protocol):
    """Encodes texts of which none becomes a control token."""

    def encode(self, texts: Sequence[str]) -> Ids:
        """Return the ids of the texts."""


class Reference:
    """The encoder of `tokenizers`."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> Ids:
        """Return the ids of the texts."""
        return _flatten(self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))


class Fast:
    """The encoder of `fastokens`, one thread a process: the workers are the parallelism."""

    def __init__(self, spec: str) -> None:
        os.environ["FASTOKENS_BPE_THREADS"] = "1"
        import fastokens  # only where it is wanted: it is not there on every platform

        self._tokenizer = fastokens.Tokenizer.from_json_str(spec)

    def encode(self, texts: Sequence[str]) -> Ids:
        """Return the ids of the texts."""
        ids, offsets = self._tokenizer.encode_batch_flat(list(texts))
        edges = np.frombuffer(offsets, np.uint64)
        return np.frombuffer(ids, np.uint32).astype(np.int32), (edges[1:] - edges[:-1]).astype(np.int64)


def version_of(name: str) -> str:
    """Return the version of an encoder that is installed."""
    return importlib.metadata.version(name)


def fast_or_why(specs: Sequence[str]) -> list[Fast] | str:
    """Return the fast encoders for some tokenizer.json, or why there are none; whether they are right is not asked."""
    try:
        return [Fast(spec) for spec in specs]
    except ImportError:
        return "it is not installed"
    except REFUSALS as error:
        return f"it does not take this tokenizer: {str(error)[:200]}"


def same(mine: Ids, theirs: Ids) -> bool:
    """Return whether two encoders gave the same ids."""
    return np.array_equal(mine[0], theirs[0]) and np.array_equal(mine[1], theirs[1])


def _flatten(encodings: list[Encoding]) -> Ids:
    lists = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    ids = np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(lengths.sum()))
    return ids, lengths
