"""The first sequence to be trained, token by token, as `cli inspect --format sanity` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.stream import Row

MOST = 400
"""Tokens shown of a long sequence: half from its start, half from its end."""


def lines(one: Row, model: Path) -> Iterator[str]:
    """Yield `'text': id -> label` for every token, then the text; ids alone where the model has no tokenizer.json."""
    from tokenizers import Tokenizer

    ids, labels = one["input_ids"].tolist(), one["labels"].tolist()
    path = model / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else None
    yield "Sanity Check >>>>>>>>>>>>>"
    for i, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if len(ids) > MOST and MOST // 2 <= i < len(ids) - MOST // 2:
            if i == MOST // 2:
                yield f"... {len(ids) - MOST} more tokens ..."
            continue
        text = repr(tokenizer.decode([token], skip_special_tokens=False)) if tokenizer else ""
        yield f"{text:>20}: {token:>6} -> {label:>6}"
    yield "<<<<<<<<<<<<< Sanity Check"
    if tokenizer:
        yield f"trained: {tokenizer.decode([t for t in labels if t != -100], skip_special_tokens=False)!r}"
