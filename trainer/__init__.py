"""The trainer: a set becomes a checkpoint. It tokenizes nothing, and knows of the compiler only what `schemas/` says.

set   -> data    batches          --+
                                    +-> objectives  -> run                -> use
model -> models  what is trained  --+   losses         steps, checkpoints    export, chat

train.py     a run, from its plan to its last checkpoint: start reading here
device.py    cuda, npu or cpu, alone or as one of several processes: the only file that knows devices
doctor/      what a machine has and lacks for training
progress.py  a line now and then while nothing else is printed
config/      what a run is asked to do
data/        rows of a set to batches
models/      a model loaded, and what of it is trained
objectives/  losses, one file each
run/         a run: plan, steps, checkpoints, logs
predict/     what a model writes, and its scores
use/         export and chat
commands/    the command line
api.py       `trainer.dataset`: rows of a set for loops of others; docs/python.md
"""
# finetune-data-compiler: by this name cli.py knows its own packages.

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.stores import AnyPath
    from trainer.api import TrainingData


def dataset(
    out: str | AnyPath, split: str = "train", *, rank: int = 0, world: int = 1, seed: int = 42, step: int = 0,
    batch_size: int = 1, accumulation: int = 1, threads: int = 0, drop_weights: bool = False,
    shuffle_shards: str | int = "auto",
) -> TrainingData:  # fmt: skip
    """The rows of a compiled set for training with torch, in the order that `cli train` has with the same numbers.

    `rank` of `world`: the process whose batches `steps` yields. `step`: the position, counted in steps of
    batch_size * accumulation * world rows over all epochs. `threads` prepare batches ahead. `drop_weights`: weights of
    tokens may be lost where the model computes the loss itself. `shuffle_shards`: as in a training configuration.
    Errors are those of `schemas.errors`.
    """
    from trainer.api import open_data  # torch is imported when it is called

    return open_data(
        out, split, rank=rank, world=world, seed=seed, step=step, batch_size=batch_size,
        accumulation=accumulation, threads=threads, drop_weights=drop_weights,
        shuffle_shards=shuffle_shards,
    )  # fmt: skip
