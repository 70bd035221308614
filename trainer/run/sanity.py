"""The first sequence to be trained, token by token, as `cli inspect --format sanity` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.manifest import CONVERTED
from schemas.reader import CompiledSet
from trainer.data.stream import Row

MOST = 400
"""Tokens shown of a long sequence: half from its start, half from its end."""


def lines(one: Row, opened: CompiledSet) -> Iterator[str]:
    """Yield `'text': id -> label` for every token, then the text; ids alone where the set has no tokenizer.json."""
    from tokenizers import Tokenizer

    ids, labels = one["input_ids"].tolist(), one["labels"].tolist()
    known = (f"{folder}/tokenizer.json" for folder in ("tokenizer", CONVERTED))
    name = next((name for name in known if name in opened.manifest["files"]), None)
    tokenizer = Tokenizer.from_buffer(opened.read_file(name)) if name else None
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
