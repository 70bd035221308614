"""The packed Parquet of Megatron-Bridge: input_ids, loss_mask, seq_start_id.

Its reader takes all but the last token of an example as input, and all but the first as targets. So the mask belongs to
the predicting position: it is 1 where the next token of the example is trained.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compiler.convert.base import Columns, Job, Target
from compiler.convert.columns import edges, like, predicted_labels, sequence_starts
from schemas.arrow import IGNORED


def _columns(rows: pa.RecordBatch, after: pa.RecordBatch, job: Job) -> Columns:  # noqa: ARG001  # as of every target
    ids, seq_lens = rows.column("input_ids"), rows.column("seq_lens")
    trained = predicted_labels(rows) != IGNORED  # not at the first token of an example: so never across two
    counts = pc.list_value_length(seq_lens).to_numpy()
    starts = sequence_starts(rows) - np.repeat(edges(ids)[:-1], counts)
    return {
        "input_ids": ids,
        "loss_mask": like(ids, np.append(trained[1:], False).astype(np.int8)),
        "seq_start_id": like(seq_lens, starts.astype(np.int32)),
    }


MEGATRON_BRIDGE = Target(
    name="megatron-bridge",
    readers="Megatron-Bridge",
    kinds=("sft", "pretrain"),
    takes_packs=True,
    columns=_columns,
    file="{split}/shard-{number:05d}.idx.parquet",
    splits={"train": "training", "val": "validation", "test": "test"},
    use="packed_train_data_path: FOLDER/training and packed_val_data_path: FOLDER/validation, with micro_batch_size 1",
)
