"""The words of a text, and the shingles of a conversation, by which near duplicates are found.

A word is a run of letters and digits, without regard to case (NFKC, then casefold). Scripts that put no spaces between
words (Chinese, Japanese, Thai, ...) have none to split at: each of their characters is a word. So punctuation, spaces,
case and full width make no difference.

A shingle is three words in a row. Documents are compared by five (Lee et al. 2022, FineWeb) or more; rows of chats are
short, and an edit of one word changes as many shingles as a shingle has words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from compiler.conversation import Conversation, Message, Role, to_json
from schemas import install
from schemas.errors import UsageError
from schemas.order import mix64

SHINGLE = 3
"""Words of a shingle."""
PERMUTATIONS = 128
"""Of a signature. A similarity s that is estimated by it has the standard error sqrt(s(1 - s) / 128)."""
_SEED = 0x6E656172
_NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Myanmar, Khmer
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Han
)
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W_{_NO_SPACES}]+")
_BETWEEN = re.compile(rf"(?<=[{_NO_SPACES}]) (?=[{_NO_SPACES}])")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]
Shingles = npt.NDArray[np.uint32]


def words(text: str) -> list[str]:
    """The words of a text."""
    if text.isascii():
        return _WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def joined(found: Sequence[str]) -> str:
    """Words as a text: spaces between them, but not between characters that are words."""
    return _BETWEEN.sub("", " ".join(found))


def grams(found: Sequence[str], size: int) -> Hashes:
    """The hash of each run of `size` words, uint64[N - size + 1]."""
    hashes = np.fromiter(map(_hash, found), np.uint64, len(found))
    count = max(0, len(found) - size + 1)
    total = np.zeros(count, np.uint64)
    for i in range(size):
        total = total * _MULTIPLIER + hashes[i : i + count]
    return mix64(total)


@lru_cache(maxsize=200_000)
def _hash(word: str) -> int:
    return xxhash.xxh3_64_intdigest(word.encode())


def said_in(messages: Sequence[Message]) -> str:
    """What messages say: their texts, thoughts, and calls."""
    return "\n".join(chain.from_iterable(map(_texts, messages)))


def _texts(message: Message) -> list[str]:
    calls = [f"{call.name} {to_json(call.arguments)}" for call in message.calls]
    return [*([message.reasoning] if message.reasoning else []), message.content, *calls]


def shingles_of(conversation: Conversation, piece: int = 0) -> Shingles:
    """The shingles of a conversation, hashed to 32 bits, in order and each once; at least one.

    1. The text is that of all messages but the system's, and of both replies of a pair. System texts and tools are
       left out, for many rows share long ones: they would make unlike conversations alike.
    2. A text of fewer words than a shingle is a shingle by itself.
    3. Conversations that differ in what no text shows have no shingle in common: in their images and videos, in whether
       the reply is desired, in how many replies are history, in which piece of a document they are.
    """
    text = said_in([message for message in conversation.said if message.role is not Role.SYSTEM])
    return shingles_of_text(text, _apart(conversation, piece))


def shingles_of_text(text: str, apart: bytes = b"") -> Shingles:
    """The shingles of a text. Those with another `apart` are others."""
    found = words(text)
    whole = [xxhash.xxh3_64_intdigest(text.encode())]
    hashes = grams(found, min(SHINGLE, len(found))) if found else np.array(whole, np.uint64)
    if apart:
        hashes = mix64(hashes ^ np.uint64(xxhash.xxh3_64_intdigest(apart)))
    return np.unique(hashes.astype(np.uint32))


def _apart(conversation: Conversation, piece: int) -> bytes:
    """What tells conversations apart whatever they say; empty for most."""
    history = sum(message.role is Role.ASSISTANT for message in conversation.messages[: conversation.context])
    media = [(one.kind, one.facts.sha256 if one.facts else one.uri) for one in conversation.media()]
    if not (history or media or piece or conversation.desirable is not None):
        return b""
    return orjson.dumps([history, media, piece, conversation.desirable])


def signatures(sets: Sequence[Shingles]) -> list[bytes]:
    """The MinHash of each set of shingles: the low 16 bits of the least hash under each permutation.

    16 bits of each are enough to estimate by (b-bit minwise hashing: Li and König 2010).
    """
    minhash = require()
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in sets])]).astype(np.uint64)
    tokens = mix64(np.concatenate(sets).astype(np.uint64))
    rows = minhash.digest_matrix_from_flat_token_hashes(tokens, offsets, PERMUTATIONS, _SEED).to_rows()
    matrix = np.array(rows, np.uint32).astype("<u2")
    return [row.tobytes() for row in matrix]


def require(where: str = "--dedup near") -> Any:
    """What computes signatures; UsageError where it is not installed."""
    try:
        from rensa import RMinHash  # an extra
    except ImportError:
        raise UsageError(where, "near duplicates are found with rensa", install.extra("near")) from None
    return RMinHash


def minhash_version() -> str:
    """The version of what computes signatures: they are compared only with those of the same one."""
    require()
    return f"rensa {version('rensa')}"
