"""The head of a model a chunk of positions at a time, so that the logits of a pass are never all in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from weakref import WeakSet

from torch import Tensor, nn

from trainer.models.wrappers import transformers_model

_IN_CHUNKS: WeakSet[nn.Module] = WeakSet()


def of(model: nn.Module) -> nn.Module | None:
    """The head of a model if it is to be computed in chunks; else None."""
    inner = transformers_model(model)
    return inner.get_output_embeddings() if inner in _IN_CHUNKS else None


def in_chunks(model: nn.Module, *, wanted: bool) -> None:
    """Have the head computed in chunks from now on, or not.

    This is right for a model whose logits are those of its head and nothing more: trainer.run.probe measures it.
    """
    (_IN_CHUNKS.add if wanted else _IN_CHUNKS.discard)(transformers_model(model))


@contextlib.contextmanager
def left_out(head: nn.Module | None) -> Iterator[None]:
    """While the block runs, the head returns what it is given: logits are hidden states."""
    if head is None:
        yield
        return
    own = vars(head).get("forward")
    head.forward = _same  # its hooks, which gather what ZeRO-3 has split, stay
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def _same(hidden: Tensor) -> Tensor:
    return hidden
