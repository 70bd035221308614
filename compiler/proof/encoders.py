"""Whether what encoded is trusted, and what it made: a fast one is, until it once gave other ids than the reference.

What was found is kept in the cache, so that no later run and no other machine trusts it again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np

import registry
from compiler.cache import objects
from compiler.media.paths import state_of
from compiler.tokenizer.encoders import FAST, REFERENCE, version_of
from compiler.tokenizer.tokenizer import Sample, Tokenizer, Tried

ENCODERS_DIFFER = f"{FAST} and {REFERENCE} gave different ids for a text of the data"


def why_not_fast(cache: Path, tokenizer: Tokenizer, tried: Callable[[], Tried | None]) -> str:
    """Return why the fast encoder is not to be used, "" if it is; found out once for a tokenizer and versions.

    `tried` returns what the fast encoder gave in a process that has loaded it; where there is none, this one loads it.
    """
    try:
        key = _key(tokenizer.digest, version_of(FAST))
    except PackageNotFoundError:
        return "it is not installed"
    kept = objects.load_record(cache, key)
    if kept is None:
        ids = tried()
        kept = {"why": tokenizer.why_not(tokenizer.tried() if ids is None else ids)}
        objects.store_record(cache, key, kept)
    return str(kept["why"])


def agree(tokenizer: Tokenizer, samples: list[Sample]) -> bool:
    """Return whether the reference gives the ids that a fast encoder gave."""
    for fresh in (True, False):
        some = [(text, ids) for is_fresh, text, ids in samples if is_fresh is fresh]
        ids, lengths = tokenizer.reference[0 if fresh else 1].encode([text for text, _ in some])
        expected = np.split(ids, np.cumsum(lengths))  # with what follows the last text, which is nothing
        if any(a.tolist() != b for a, (_, b) in zip(expected, some, strict=False)):
            return False
    return True


def refuse_fast(cache: Path, tokenizer: Tokenizer) -> None:
    """Keep in the cache that the fast encoder errs: it is not chosen again, and no object that it made is used."""
    objects.store_record(cache, _key(tokenizer.digest, version_of(FAST)), {"why": ENCODERS_DIFFER})
    is_refused.cache_clear()


def usable(kept: objects.Object, cache: Path, tokenizer: Tokenizer) -> bool:
    """Return whether an object is still good: no doubt of what encoded it, every image and video as it was."""
    return not is_refused(cache, tokenizer.digest, kept.info["encoder"]) and media_as_they_were(kept)


@lru_cache(maxsize=16)
def is_refused(cache: Path, tokenizer_digest: str, encoder: str) -> bool:
    """Return whether what made an object was found to err: by an earlier run, or by another machine of this one."""
    name, version = encoder.split()
    kept = objects.load_record(cache, _key(tokenizer_digest, version)) if name == FAST else None
    return kept is not None and kept["why"] != ""


def _key(tokenizer_digest: str, version: str) -> str:
    return objects.key_of("encoder", tokenizer_digest, version, registry.awkward_texts())


def media_as_they_were(kept: objects.Object) -> bool:
    """Return whether every image and video an object was made from is as it was then, or still not there."""
    return all(state_of(Path(path)) == was for path, was in kept.info["files"].items())
