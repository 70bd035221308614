"""Rows that upstream projects encoded, and the same rows compiled."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from functools import cache
from typing import Any

import registry
from compiler import formats
from compiler.conversation import Conversation
from compiler.encode.batch import Encoded
from compiler.encode.weigh import Policy
from compiler.formats.turns import check_turns
from tests.support.encoded import encode_segments
from tests.support.shared import shared, tools


@cache
def goldens(name: str) -> list[dict[str, Any]]:
    with gzip.open(shared("golden", f"{name}.jsonl.gz")) as file:
        return [json.loads(line) for line in file]


def lifted(row: dict[str, Any], format_name: str, columns: Any = None, tags: Any = None) -> Conversation:
    format_ = formats.FORMATS[format_name]
    names = {key: columns.get(key) for key in format_.columns} if columns is not None else dict(format_.columns)
    roles = {key: tags.get(key) for key in format_.tags} if tags is not None else dict(format_.tags)
    conversation = format_.lift(row, names, roles)
    check_turns(conversation, None)
    return conversation


def compiled(conversation: Conversation, tokenizer: str, template: str, weights: str = "none") -> Encoded:
    loaded, chosen = tools(tokenizer, template)
    policy = Policy.from_card(registry.weights(weights))
    return encode_segments(conversation, chosen.program.joined(conversation), loaded, policy)


def differing(golden: dict[str, Any], newline_after: str | None) -> dict[int, int]:
    """{position: decision} for the label differences of this row that a decision declares.

    Worked out from the upstream's own output: it trains a newline that follows the stop (decision 3).
    """
    if newline_after is None:
        return {}
    tokenizer, _ = tools("qwen2.5")
    stop, newline = tokenizer.controls[newline_after], tokenizer.official.token_to_id("Ċ")
    ids, labels = golden["input_ids"], golden["labels"]
    return {
        i: 3
        for i in range(1, len(ids))
        if ids[i] == newline and ids[i - 1] == stop and labels[i] != -100 and labels[i - 1] != -100
    }


def check_labels(ours: Encoded, golden: dict[str, Any], newline_after: str | None) -> Counter[int]:
    expected = differing(golden, newline_after)
    found = {i: -100 for i, (a, b) in enumerate(zip(ours.labels.tolist(), golden["labels"], strict=True)) if a != b}
    assert sorted(found) == sorted(expected), golden["id"]
    assert all(ours.labels[i] == -100 for i in found)
    return Counter(expected.values())


def text_of(ids: list[int], tokenizer: str) -> str:
    return tools(tokenizer)[0].decode(ids)


def by_character(ids: list[int], weights: list[float], labels: list[int]) -> list[tuple[str, float]]:
    """Each byte of the decoded tokens with its weight (0 where it is not trained)."""
    tokenizer, _ = tools("qwen2.5")
    out: list[tuple[str, float]] = []
    for i, weight, label in zip(ids, weights, labels, strict=True):
        out += [(character, weight if label != -100 else 0.0) for character in tokenizer.token(i)]
    return out


def at_line_start(characters: list[tuple[str, float]], i: int) -> bool:
    """Return whether the stretch of equal weight that holds i begins a line."""
    while i > 0 and characters[i - 1][1] == characters[i][1]:
        i -= 1
    return i == 0 or characters[i - 1][0] == "Ċ"
