"""The Python API: a set's rows for a training loop of one's own, or for transformers' Trainer. docs/python.md.

    data = trainer.dataset("shards", batch_size=2, accumulation=4, rank=0, world=1, seed=42, step=0)
    for step in data.steps():            # a loop: the batches of this process, step by step
    Trainer(train_dataset=data, data_collator=data.inputs, ...)

Position, order and batches are those of `cli train`: see trainer/data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from schemas.errors import UsageError
from schemas.steps import ALL, Order
from schemas.stores import AnyPath
from trainer import objectives
from trainer.data.collate import Batch, Collator, pad_id, tensors
from trainer.data.loader import Loader, StepBatches
from trainer.data.stream import Row, SplitRows, TrainingSet, from_where
from trainer.objectives.objective import Objective, Parts
from trainer.run import shuffle


@dataclass
class TrainingData(torch.utils.data.Dataset[Row]):
    """The rows of a split in their order of training: a map-style dataset, and the steps of one process.

    As a dataset it holds the rows of all processes from the position on to the end of its epoch; who splits them among
    processes is the caller (a sampler, or accelerate in transformers' Trainer). `steps` is for one process alone.
    """

    rows: SplitRows
    order: Order
    collate: Collator
    """Makes the batch of some rows, with loss weights: see trainer/data/collate.py."""
    objective: Objective
    loader: Loader
    step: int
    """The position: how many steps of the run were done before."""
    drop_weights: bool = False
    epoch: int = 0
    """Epochs since the one that the position is in."""

    def __len__(self) -> int:
        return len(self.rows) - self._done

    def __getitem__(self, place: int) -> Row:
        if not 0 <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        first = self.step // self.order.steps_per_epoch + self.epoch
        step, inside = divmod(place + self._done, self.order.step_rows)
        number = int(self.order.step(first * self.order.steps_per_epoch + step)[inside])
        return self.rows.row(number) | {"number": number}

    @property
    def _done(self) -> int:
        """Rows of the epoch that were trained before the position."""
        return 0 if self.epoch else self.step % self.order.steps_per_epoch * self.order.step_rows

    def set_epoch(self, epoch: int) -> None:
        """Turn to another epoch, counted from that of the position; Trainer calls it."""
        self.epoch = epoch

    def steps(self, stop: int | None = None) -> Iterator[StepBatches]:
        """Yield this process's batches of each step from the position on, to `stop` or the end of the epoch.

        After the step `one.number`, the position is `one.number + 1`.
        """
        each = self.order.steps_per_epoch
        yield from self.loader.steps(self.step, (self.step // each + 1) * each if stop is None else stop)

    def loss(self, model: torch.nn.Module, batch: Batch, **settings: object) -> Parts:
        """The loss of `cli train`: `loss_sum` over `weight_sum`, both summed over the batches of a step."""
        return self.objective.loss(model, tensors(batch, next(model.parameters()).device), **settings)

    def inputs(self, rows: Sequence[Row]) -> Batch:
        """Collate rows into what a model of Transformers takes; its own loss is then the mean of trained tokens.

        UsageError for rows whose weights that loss would ignore, unless the weights are to be dropped.
        """
        if self.objective.sides != ("",):
            what = f"a model of Transformers has no loss for {self.objective.kind} rows"
            raise UsageError(
                str(self.rows.opened.folder), what, "Compute it with data.loss, or hand the set on: cli convert."
            )
        if not self.drop_weights:
            self._check_weights(rows)
        batch = self.collate(rows)
        found: Batch = {name: batch[name] for name in ("input_ids", "labels", "attention_mask") if name in batch}
        if self.collate.packed:
            found["position_ids"] = batch["position_ids"]
            found["labels"] = batch["labels"].masked_fill(batch["position_ids"] == 0, -100)  # nothing predicts those
            found["use_cache"] = False  # with a cache, Transformers does not look for packs
        return found

    def _check_weights(self, rows: Sequence[Row]) -> None:
        for row in rows:
            given = row["loss_weights"]
            if given is not None and ((given != 1) & (row["labels"] != -100)).any():
                where = from_where(row, self.rows.opened.places)
                what = "it has loss weights other than 1, which the model's own loss ignores"
                hint = "Compute the loss with data.loss (docs/python.md), or give dataset(..., drop_weights=True)."
                raise UsageError(where, what, hint)


def open_data(
    out: str | AnyPath, split: str, *, rank: int, world: int, seed: int, step: int, batch_size: int,
    accumulation: int, threads: int, drop_weights: bool, shuffle_shards: str | int,
) -> TrainingData:  # fmt: skip
    """Open a split for training; see `trainer.dataset`."""
    least = {"world": (world, 1), "batch_size": (batch_size, 1), "accumulation": (accumulation, 1), "step": (step, 0)}
    for name, (value, low) in (least | {"threads": (threads, 0)}).items():
        if value < low:
            raise UsageError(f"dataset({name}={value})", f"expected at least {low}")
    if not 0 <= rank < world:
        raise UsageError(f"dataset(rank={rank})", f"expected 0 to {world - 1}, as world is {world}")
    opened = TrainingSet.open(out)
    if opened.has_media:
        what = "its rows have images or videos, which this API does not read"
        raise UsageError(str(out), what, "Train it with cli train, or use data of texts alone.")
    rows, objective = opened.split(split), objectives.default(opened.kind)
    if not (shuffle_shards in ("auto", ALL) or (isinstance(shuffle_shards, int) and shuffle_shards >= 1)):
        raise UsageError(f"dataset(shuffle_shards={shuffle_shards!r})", "expected auto, all, or a number above 0")
    together = shuffle.together(rows, shuffle_shards, None, [])
    shards = [shard["rows"] for shard in rows.shards]
    order = Order.of(shards, batch_size * accumulation * world, seed, None, together)
    if objective.pair and order.step_rows < 2:
        raise UsageError("dataset(batch_size=1)", f"a step has 1 row, and {opened.kind} pairs each with the next one")
    collate = Collator(opened.is_packed, pad_id(opened.manifest), objective.sides)
    loader = Loader(rows, order, collate, rank, world, batch_size, accumulation, threads, objective.pair)
    return TrainingData(rows, order, collate, objective, loader, step, drop_weights)
