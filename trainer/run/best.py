"""The best evaluation so far, and whether it is long ago: both follow from the log, so a resume needs no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from schemas.errors import UsageError, nearest
from trainer.config.config import TrainConfig
from trainer.run.log import Record, numbers


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's step and its value of the metric."""

    step: int
    value: float


@dataclass
class History:
    """The evaluations of a run, the same in all processes."""

    config: TrainConfig
    where: str
    found: list[Evaluation]

    @classmethod
    def make(cls, config: TrainConfig, where: str, records: Sequence[Record]) -> History:
        """The history of a run's records, which the first process has. All processes call it."""
        shared: list[Any] = [[record for record in records if "eval_loss" in record]]
        torch.distributed.broadcast_object_list(shared)
        history = cls(config, where, [])
        for record in shared[0]:
            history.add(record)
        return history

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self.config.metric_for_best_model or "eval_loss"

    def add(self, record: Record) -> None:
        """Add an evaluation; UsageError if it has no such metric."""
        known = {_name(key): value for key, value in numbers(record).items()}
        if _name(self.metric) not in known:
            what = f"no evaluation has {self.metric!r}"
            raise UsageError(f"{self.where}#/metric_for_best_model", what, nearest(self.metric, known))
        self.found.append(Evaluation(record["step"], known[_name(self.metric)]))

    def best(self) -> Evaluation | None:
        """The best evaluation, the first of equals; None if there is none."""
        best = None
        for one in self.found:
            if best is None or self._gain(one, best) > 0:
                best = one
        return best

    def stalled(self) -> bool:
        """Whether none of the last `early_stopping_patience` evaluations was better by more than the threshold."""
        patience = self.config.early_stopping_patience
        if patience is None:
            return False
        best, waited = None, 0
        for one in self.found:
            if best is None or self._gain(one, best) > self.config.early_stopping_threshold:
                best, waited = one, 0
            else:
                waited += 1
        return waited >= patience

    def _gain(self, one: Evaluation, best: Evaluation) -> float:
        greater = self.config.greater_is_better
        if greater is None:
            greater = not _name(self.metric).partition("/")[0].endswith("loss")
        return one.value - best.value if greater else best.value - one.value


def _name(key: str) -> str:
    """A metric's name without `eval_` and `scores/`: `loss`, `loss/DATASET`, `bleu-4`."""
    return key.removeprefix("eval_").removeprefix("scores/")
