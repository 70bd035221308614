"""Evaluation on a split that is not trained: the loss, overall and by dataset, and scores of generated replies."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.config import zero
from trainer.data import stream
from trainer.data.collate import Collator, tensors
from trainer.data.order import following
from trainer.models.pretrained import tokenizer_of
from trainer.predict.generate import predict_with_generate
from trainer.progress import Heartbeat
from trainer.run.plan import RunPlan
from trainer.run.step import means


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on a split. Packs are split, so that each sequence counts for its dataset."""

    plan: RunPlan
    split: stream.SplitRows
    collate: Collator
    batches: list[list[tuple[int, int]]]
    """The (row, sequence in it) pairs of each batch: all of one dataset and of similar length."""
    beat: Heartbeat

    @classmethod
    def make(cls, plan: RunPlan, split: stream.SplitRows, collate: Collator, beat: Heartbeat) -> Evaluator:
        """The evaluator of a split."""
        found: dict[str, list[tuple[int, tuple[int, int]]]] = {}
        number = 0
        for batch in split.batches():
            columns = (batch.column(name).to_pylist() for name in ("dataset", "seq_lens"))
            for names, lengths in zip(*columns, strict=True):
                several = names if plan.set.is_packed else [names]
                for place, (name, length) in enumerate(zip(several, lengths, strict=True)):
                    found.setdefault(name, []).append((length, (number, place)))
                number += 1
        size = plan.config.per_device_eval_batch_size or plan.micro
        batches = []
        for name in sorted(found):
            places = [place for _, place in sorted(found[name], reverse=True)]
            batches += [places[i : i + size] for i in range(0, len(places), size)]
        whole = dataclasses.replace(collate, packed=False)
        return cls(plan, split, whole, batches, beat)

    def loss(self, wrapped: Any) -> tuple[float, dict[str, float], dict[str, float]]:
        """(loss, loss by dataset, logs of the objective): weighted means over all processes."""
        objective, device = self.plan.objective, self.plan.device.torch
        rank, world = self.plan.device.rank, self.plan.device.world
        names = [one["name"] for one in self.plan.set.manifest["datasets"]]
        sums = torch.zeros(len(names), 2, dtype=torch.float32, device=device)
        logs: dict[str, torch.Tensor] = {}
        self.beat.doing("evaluating", len(self.batches), unit="batches")
        wrapped.eval()
        with torch.no_grad():
            for start in range(0, len(self.batches), world):
                mine = start + rank
                self.beat.reached(start)
                rows = self._rows(min(mine, len(self.batches) - 1))
                batch = self.collate(rows) if mine < len(self.batches) else self.collate.nothing(rows[0])
                parts = objective.loss(wrapped, tensors(batch, device), **self.plan.objective_settings)
                sums[names.index(rows[0]["dataset"])] += torch.stack([parts.loss_sum.float(), parts.weight_sum])
                for name, value in parts.logs.items():
                    logs[name] = logs.get(name, 0) + value
        wrapped.train()
        torch.distributed.all_reduce(sums)
        total = float(sums[:, 0].sum() / sums[:, 1].sum())
        by_dataset = {n: float(s[0] / s[1]) for n, s in zip(names, sums, strict=True) if s[1] > 0}
        return total, by_dataset, means(logs)

    def scores(self, wrapped: Any, path: Path) -> dict[str, float]:
        """Generate replies to the rows of the split, write them to `path`, and return their scores."""
        self.beat.doing("generating replies", unit="replies")
        return predict_with_generate(
            wrapped.module,
            tokenizer_of(self.plan.set, self.plan.source.folder),
            (self.split.row(number) for number in range(len(self.split))),
            self.plan.set.manifest,
            path,
            max_new_tokens=self.plan.config.generation_max_new_tokens,
            batch_size=self.plan.config.per_device_eval_batch_size or self.plan.micro,
            progress=self.beat.reached,
            synced_gpus=zero.stage(self.plan.deepspeed) == 3,
            eyes=self.collate.images,
        )

    def _rows(self, number: int) -> list[stream.Row]:
        places, pair = self.batches[number], self.plan.objective.pair
        rows = [self.split.sequences(row)[place] for row, place in places]
        if pair is None:
            return rows
        after = following(np.array([row for row, _ in places]), len(self.split))
        return [pair(row, self.split.row(int(other))) for row, other in zip(rows, after, strict=True)]
