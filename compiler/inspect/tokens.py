"""One row of a split, token by token.

The text of a token holds the characters that its last byte completes, so the joined texts are the decoded row. Bytes
that never become a character are written as `\\xe4`.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left, bisect_right
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, chain, repeat
from typing import Any

import pyarrow as pa

from compiler.inspect.rows import SplitExamples
from compiler.inspect.vocabulary import TokenBytes
from schemas.arrow import IGNORED

_OTHER_MODELS = re.compile(r"<\|[^|<>\s]{1,40}\|>")
_BETWEEN = "\uffff"
"""Stands for each character of a control token while text is searched, so that no match crosses it."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a row. Its label is -100 if it is context; `key` is a key of the weights policy, or "".

    `looks_like_control` is true for text that spells a control token, or any model's `<|name|>`, but is plain text.
    """

    id: int
    text: str
    label: int
    weight: float
    role: str
    key: str
    control: bool
    looks_like_control: bool


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One row of a split, decoded. The fields are the keys of its JSON, except `lookalikes`.

    `row` is its number in the split, from 0. `place` says where it is from, as `--row` takes it. `source_row` counts
    the rows of `file` from 0, `line` its lines from 1 (None in arrays and tables), `offset` its bytes. `part` says
    which example of that source row it is. `repeat` is 0 the first time a source row is used, 1 the second time.
    `num_trained` of its `length` tokens are trained. `repairs` names the repairs that were made. KTO sets have
    `desirable`; preference sets have `rejected_tokens`, the same context with the rejected reply. `lookalikes` are
    (start, end) in characters of `text`.
    """

    row: int
    split: str
    dataset: str
    file: str
    source_row: int
    line: int | None
    place: str
    part: int
    offset: int | None
    repeat: int
    repairs: list[str]
    images: list[dict[str, Any]]
    videos: list[dict[str, Any]]
    length: int
    num_trained: int
    tokens: list[Token]
    lookalikes: list[tuple[int, int]]
    desirable: bool | None = None
    rejected_tokens: list[Token] | None = None
    rejected_lookalikes: list[tuple[int, int]] | None = None

    @property
    def text(self) -> str:
        """The decoded row, with control tokens."""
        return "".join(token.text for token in self.tokens)

    def as_json(self) -> dict[str, Any]:
        """The row as `--json` prints it."""
        return {
            k: v
            for k, v in asdict(self).items()
            if not k.endswith("lookalikes") and (k not in _MAY_BE or v is not None)
        }

    @property
    def rejected(self) -> ShownRow | None:
        """The rejected side of a preference pair as a row of its own."""
        if self.rejected_tokens is None or self.rejected_lookalikes is None:
            return None
        return replace(self, tokens=self.rejected_tokens, lookalikes=self.rejected_lookalikes, rejected_tokens=None)


_MAY_BE = ("desirable", "rejected_tokens")


def decode_row(split: SplitExamples, number: int, vocabulary: TokenBytes) -> ShownRow:
    """Decode one row of a split."""
    columns = split.row(number)
    weights = columns["loss_weights"] or [float(label != IGNORED) for label in columns["labels"]]
    tokens, lookalikes = _decoded(columns["input_ids"], columns["labels"], weights, columns["spans"], vocabulary)
    names = ("dataset", "file", "part", "offset", "repeat", "num_trained", "images", "videos")
    places, source = split.opened.places, (columns["dataset"], columns["file"], columns["row"])
    row = ShownRow(
        row=number,
        split=split.name,
        source_row=columns["row"],
        line=places.line(*source),
        place=places.place(*source),
        length=len(tokens),
        **{key: columns[key] for key in names},
        repairs=columns["repairs"] or [],
        tokens=tokens,
        lookalikes=lookalikes,
        desirable=columns.get("desirable"),
    )
    if "rejected_input_ids" not in columns:
        return row
    labels = columns["rejected_labels"]
    weights = columns["rejected_loss_weights"] or [float(label != IGNORED) for label in labels]
    other = _decoded(columns["rejected_input_ids"], labels, weights, columns["rejected_spans"], vocabulary)
    return replace(row, rejected_tokens=other[0], rejected_lookalikes=other[1])


def _decoded(
    ids: list[int], labels: list[int], weights: list[float], spans: list[dict[str, Any]], vocabulary: TokenBytes
) -> tuple[list[Token], list[tuple[int, int]]]:
    """Decode one sequence; return its tokens, and where its text looks like a control token."""
    controls = [token_id in vocabulary.controls for token_id in ids]
    texts = _texts(vocabulary.pieces(pa.array(ids, pa.int32())).to_pylist(), controls)
    lookalikes = _lookalikes(texts, controls, vocabulary.tokenizer.control_pattern)
    owners = chain.from_iterable(repeat((s["role"], s["key"]), s["num_tokens"]) for s in spans)
    tokens = [
        Token(token_id, text, label, weight, role, key, control, flag)
        for token_id, text, label, weight, (role, key), control, flag in zip(
            ids, texts, labels, weights, owners, controls, _touched(lookalikes, texts), strict=True
        )
    ]
    return tokens, lookalikes


def _texts(pieces: list[bytes], controls: list[bool]) -> list[str]:
    """The text of each token: the characters that its last byte completes. Joined, they are the whole text."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    texts: list[str] = []
    for piece, control in zip(pieces, controls, strict=True):
        if control and texts:
            texts[-1] += decoder.decode(b"", True)
        texts.append(piece.decode() if control else decoder.decode(piece))
    texts[-1] += decoder.decode(b"", True)
    return texts


def _lookalikes(texts: list[str], controls: list[bool], own: re.Pattern[str]) -> list[tuple[int, int]]:
    """Where plain text spells a control token, of this tokenizer or of any model."""
    searched = "".join(_BETWEEN * len(t) if control else t for t, control in zip(texts, controls, strict=True))
    return sorted({match.span() for pattern in (own, _OTHER_MODELS) for match in pattern.finditer(searched)})


def _touched(spans: list[tuple[int, int]], texts: list[str]) -> list[bool]:
    """Which tokens overlap one of the spans of text: bool per token."""
    ends = list(accumulate(map(len, texts)))
    touched = [False] * len(texts)
    for start, end in spans:
        first, last = bisect_right(ends, start), bisect_left(ends, end)
        touched[first : last + 1] = [True] * (last + 1 - first)
    return touched
