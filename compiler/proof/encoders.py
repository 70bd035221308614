"""Which encoder a run uses, and the proof that its ids are those of the reference.

The fast encoder is used if all of this holds; otherwise the reference is:

1. There are enough units that loading it pays.
2. It is installed, and it loads the tokenizer.
3. It gave the reference's ids for the awkward texts. They are tried once for each tokenizer and version: the verdict is
   kept in the cache.
4. It gives the reference's ids for samples of every unit's texts (`agree`). A run that finds a difference starts again
   with the reference and keeps the verdict (`refuse`): no later run and no other machine uses the fast encoder for this
   tokenizer, or an object that it made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np

import registry
from compiler.cache import records
from compiler.tokenizer.encoders import FAST, REFERENCE, Ids, same, version_of
from compiler.tokenizer.tokenizer import Sample, Tokenizer

IDS_DIFFER = f"{FAST} and {REFERENCE} gave different ids for a text of the data"


@dataclass(frozen=True)
class Choice:
    """The encoder of a run; `why_not_fast` says why it is the reference where the fast one was wanted, else ""."""

    encoder: str
    why_not_fast: str = ""


@dataclass(frozen=True)
class Trial:
    """The fast encoder's ids for the awkward texts: as texts of their own, then continued where that is different.

    Where it could not be loaded there are no ids, and `why_not` says why. Picklable: a worker may try, so that the main
    process loads the reference alone.
    """

    ids: list[Ids] = field(default_factory=list)
    why_not: str = ""


def try_fast(tokenizer: Tokenizer) -> Trial:
    """Encode the awkward texts with the fast encoder, which is loaded for that."""
    if isinstance(tokenizer.fast, str):
        return Trial(why_not=tokenizer.fast)
    texts = list(awkward_texts())
    return Trial([tokenizer.fast.encode(texts, fresh=fresh) for fresh in _ways(tokenizer)])


def choose(cache: Path, tokenizer: Tokenizer, *, many: bool) -> Choice | None:
    """Choose the encoder of a run; None if the cache has no verdict on the fast one yet.

    `many`: whether there are units enough that loading the fast one pays.
    """
    if not many:
        return Choice(REFERENCE)
    try:
        verdict = records.load_record(cache, _key(tokenizer.digest, version_of(FAST)))
    except PackageNotFoundError:
        return Choice(REFERENCE, "it is not installed")
    return None if verdict is None else _choice(str(verdict["why"]))


def judge(cache: Path, tokenizer: Tokenizer, trial: Trial) -> Choice:
    """Compare a trial of the fast encoder with the reference, and keep the verdict in the cache."""
    why_not = _why_not(trial, tokenizer)
    records.store_record(cache, _key(tokenizer.digest, version_of(FAST)), {"why": why_not})
    return _choice(why_not)


def _choice(why_not: str) -> Choice:
    return Choice(REFERENCE if why_not else FAST, why_not)


def _ways(tokenizer: Tokenizer) -> list[bool]:
    """The values of `fresh` for which the ids of a text can differ."""
    return [True, False] if tokenizer.has_prefix else [True]


def _why_not(trial: Trial, tokenizer: Tokenizer) -> str:
    """Why the fast encoder must not be used after this trial; "" if it may."""
    if trial.why_not:
        return trial.why_not
    texts = list(awkward_texts())
    for ids, fresh in zip(trial.ids, _ways(tokenizer), strict=True):
        if not same(ids, tokenizer.reference.encode(texts, fresh=fresh)):
            return "its ids are not those of tokenizers on texts that were tried"
    return ""


def agree(tokenizer: Tokenizer, samples: list[Sample]) -> bool:
    """Whether the reference gives the same ids for texts that the fast encoder encoded."""
    for fresh in (True, False):
        some = [sample for sample in samples if sample.fresh is fresh]
        ids, lengths = tokenizer.reference.encode([sample.text for sample in some], fresh=fresh)
        expected = np.split(ids, np.cumsum(lengths))  # and an empty array after the last text
        if any(mine.tolist() != sample.ids for mine, sample in zip(expected, some, strict=False)):
            return False
    return True


def refuse(cache: Path, tokenizer: Tokenizer) -> None:
    """Keep in the cache that the fast encoder gave wrong ids: it is not chosen again, and no object it made is used."""
    records.store_record(cache, _key(tokenizer.digest, version_of(FAST)), {"why": IDS_DIFFER})


def is_refused(cache: Path, tokenizer_digest: str, encoder: str) -> bool:
    """Whether the encoder "NAME VERSION" gave wrong ids, in an earlier run or on another machine of this one."""
    name, version = encoder.split()
    verdict = records.load_record(cache, _key(tokenizer_digest, version)) if name == FAST else None
    return verdict is not None and verdict["why"] != ""


def _key(tokenizer_digest: str, version: str) -> str:
    return records.key_of("encoder", tokenizer_digest, version, registry.awkward_texts())


def awkward_texts() -> Iterator[str]:
    """Yield texts at which encoders are likely to differ: scripts, marks, controls, runs, and any two side by side."""
    pieces = registry.awkward_texts()
    yield ""
    for i, first in enumerate(pieces):
        yield first
        yield f" {first}"
        for step in (1, 7, 19, 37):
            second = pieces[(i + step) % len(pieces)]
            yield f"{first}{second}"
            yield f"{first} {second}{first}\n{second}"
    yield " ".join(pieces)
    yield "".join(pieces)
