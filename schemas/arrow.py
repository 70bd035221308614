"""The Arrow schema of a shard: the contract between the compiler and the trainer, and the manifest's version.

One row = one token sequence. Shards are Arrow IPC *files*: memory-mapped by pyarrow, polars, duckdb and `datasets`.
"""

from __future__ import annotations

import pyarrow as pa

FORMAT_VERSION = 1
"""Of shards and manifest together; a reader refuses a version it does not know."""

MANIFEST = "manifest.json"
SPLITS = ("train", "val")

_MEDIA = pa.list_(
    pa.struct(
        [
            ("uri", pa.string()),
            ("sha256", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("position", pa.int32()),
            ("num_tokens", pa.int32()),
        ]
    )
)

SPANS = pa.list_(pa.struct([("role", pa.string()), ("key", pa.string()), ("num_tokens", pa.int32())]))
"""Who each token is from, as run lengths: role of the message ("template" = the template's own text), policy key."""

SHARD = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("loss_weights", pa.list_(pa.float32())),
        pa.field("seq_lens", pa.list_(pa.int32()), nullable=False),
        pa.field("images", _MEDIA, nullable=False),
        pa.field("videos", _MEDIA, nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("num_trained", pa.int32(), nullable=False),
        pa.field("spans", SPANS, nullable=False),
    ]
)

OBJECT = pa.schema(
    [
        SHARD.field("input_ids"),
        SHARD.field("labels"),
        SHARD.field("loss_weights"),
        SHARD.field("spans"),
        SHARD.field("num_trained"),
        pa.field("index", pa.int64(), nullable=False),
        SHARD.field("offset"),
        pa.field("fingerprint", pa.binary(16), nullable=False),
    ]
)
"""A unit's compiled rows in the cache. `index` and `offset` count within the unit, so that an object serves its unit
wherever that stands in a file; `fingerprint` is the conversation's, for duplicates and for the split."""
