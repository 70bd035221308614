"""What an objective is: its loss, and everything else in which objectives differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

Batch = dict[str, Tensor]
Row = dict[str, Any]


class Parts(NamedTuple):
    """One batch's share of a step's loss.

    `loss_sum` float32 scalar with grad, `weight_sum` float32 scalar without. `losses` and `weights` float32, without
    grad, are their terms: [B, T] by target token (sft, pretrain) or [B] by row (dpo, kto), for losses by dataset.
    `logs`: name to float32[2], (sum, count), to be added over ranks and batches and then divided.
    """

    loss_sum: Tensor
    weight_sum: Tensor
    losses: Tensor
    weights: Tensor
    logs: dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """An objective; the trainer asks it for everything that depends on which one it is."""

    name: str
    kind: str
    """The kind of set it is for."""
    loss: Callable[..., Parts]
    """(model, batch, **settings) -> Parts; `model` may be wrapped (DeepSpeed, DDP)."""
    weights: Callable[[Batch], Tensor]
    """The weights of a batch, as in `Parts`, without a forward pass."""
    settings: tuple[str, ...] = ()
    """The keys of the configuration that `loss` takes."""
    sides: tuple[str, ...] = ("",)
    """Prefixes of the sequences in a batch."""
    needs_reference: bool = False
    """Whether the loss compares the model with a reference: the model before training."""
    pair: Callable[[Row, Row], Row] | None = None
    """Add to a row what it needs of the row after it in the step."""
    shared: Callable[[nn.Module, Iterable[Batch]], dict[str, Any]] | None = None
    """Settings computed from all batches of a step, one by one, before its first pass; collective over ranks."""

    def defaults(self) -> dict[str, Any]:
        """The settings where a configuration has none: those of `loss`."""
        known = inspect.signature(self.loss).parameters
        return {
            name: known[name].default for name in self.settings if known[name].default is not inspect.Parameter.empty
        }
