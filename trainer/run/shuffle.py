"""How many shards of a set are shuffled together: all, or a window of some, so that a cache of the set is enough."""

from __future__ import annotations

from schemas.errors import UsageError
from schemas.steps import ALL, Order, Together
from trainer.config.config import TrainConfig
from trainer.data.store import GIB
from trainer.data.stream import SplitRows, TrainingSet
from trainer.run.checkpoints import Checkpoint

PART = 4
"""A window takes this part of the cache: the windows of lanes begin one after the other, while others go on."""


def limit_cache(opened: TrainingSet, config: TrainConfig, where: str) -> None:
    """Give the cache of a set in an object store the size that the configuration says."""
    if opened.cache is not None:
        opened.cache.limit = int(config.store_cache_gib * GIB)
    elif config.store_cache_gib != TrainConfig.store_cache_gib:
        what = "it has no effect: the set is in a folder, and nothing is copied from there"
        raise UsageError(f"{where}#/store_cache_gib", what, "Leave it out.")


def together(split: SplitRows, asked: str | int, checkpoint: Checkpoint | None, remarks: list[str]) -> Together:
    """The shards of a split that are shuffled together; a resumed run goes on with those that it began with."""
    cache, count = split.opened.cache, len(split.shards)
    found: Together = ALL
    if isinstance(asked, int):
        found = asked if asked < count else ALL
        if found == ALL:
            remarks.append(f"shuffle_shards: {asked} is the same as all: the split has {count:,}")
    elif asked == "auto" and checkpoint:
        found = checkpoint.run.get("shuffle_shards", ALL)  # earlier versions had no windows
    elif asked == "auto" and cache and split.size > cache.limit:
        found = max(1, cache.limit * count // (PART * split.size))
    taken = split.size if found == ALL else split.size * found // count
    if cache and taken > cache.limit:
        remarks.append(
            f"store_cache_gib: {_gib(cache.limit)} GiB are less than the {_gib(taken)} GiB that rows are shuffled in "
            f"(shuffle_shards: {found}), so that batches are fetched several times"
        )
    return found


def in_words(split: SplitRows, order: Order, found: Together) -> str:
    """How rows are shuffled, for people."""
    if order.windows is not None:
        return (
            f"shards in a seeded order, and the rows of {found:,} of the {len(split.shards):,} shuffled together, "
            f"{order.windows.window:,} at a time (shuffle_shards)"
        )
    return f"all {order.rows:,} rows shuffled together (shuffle_shards: all)"


def _gib(size: int) -> str:
    return f"{size / GIB:.3g}"
