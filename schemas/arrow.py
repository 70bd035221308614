"""The Arrow schema of a shard: the contract between the compiler and the trainer, and the manifest's version.

One row = one token sequence. Shards are Arrow IPC *files*: memory-mapped by pyarrow, polars, duckdb and `datasets`.
"""

from __future__ import annotations

import sys
from pathlib import PurePosixPath

import pyarrow as pa

FORMAT_VERSION = 2
"""The version of shards and manifest together; a reader refuses one that it does not know."""
PACKED_VERSION = 3
"""The version of packed sets. Their rows are several examples; the columns of `OF_SEQUENCES` are lists there."""

MANIFEST = "manifest.json"
ENCODERS = "encoders.json"
"""What encoded the units of a set. It depends on what the cache had, so the manifest does not list it."""
TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")

IGNORED = -100
"""The label of a token that is not trained."""

MEDIA = pa.list_(
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
"""References to images or videos, never pixels; sizes are in pixels.

`uri` is as in the row, relative to the media folder; for a video given as frames it is the JSON list of these. An image
that its row held itself is a file of the set, `embedded_uri`.
`position` is the first placeholder in `input_ids`. `num_tokens` is how many tokens the model sees there; there are as
many placeholders if the manifest's `media.repeats_pad` is true, else one.
"""

EMBEDDED = "media"
"""The folder of a set with the images that rows held themselves, each once, named by its sha256."""


class _NoPandas:
    """An importer that says that there is no pandas."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        """Refuse pandas; of other modules the next importer is asked."""
        if name == "pandas":
            raise ModuleNotFoundError(name=name)


def leave_pandas() -> None:
    """Keep pyarrow from importing pandas, which takes about as long as all imports of a compile together.

    The first `pa.array` asks whether pandas is there, in case it is given a Series. In a process that calls this, it is
    never given one. `to_pandas` asks again, and works.
    """
    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(_NoPandas)


def embedded_uri(sha256: str, suffix: str) -> str:
    """The uri of an image that a row held itself, relative to the set."""
    return f"{EMBEDDED}/{sha256[:2]}/{sha256}.{suffix}"


def is_embedded(uri: str, sha256: str) -> bool:
    """Whether the uri of an image is one of those."""
    return uri == embedded_uri(sha256, uri.rpartition(".")[2])


def sha256_of(uri: str) -> str:
    """The digest that such a file is named by."""
    return PurePosixPath(uri).stem


SPANS = pa.list_(pa.struct([("role", pa.string()), ("key", pa.string()), ("num_tokens", pa.int32())]))
"""Where tokens come from, as run lengths: role of the message ("template" = the template's own text), policy key."""

_COLUMNS = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("loss_weights", pa.list_(pa.float32())),
        pa.field("seq_lens", pa.list_(pa.int32()), nullable=False),
        pa.field("images", MEDIA, nullable=False),
        pa.field("videos", MEDIA, nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("num_trained", pa.int32(), nullable=False),
        pa.field("spans", SPANS, nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("repairs", pa.list_(pa.string())),
    ]
)
"""`part` numbers the examples of one source row (0 if there is one); `repairs` names the repairs of the row."""

_OF_KIND = {
    "preference": [
        pa.field("rejected_input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("rejected_labels", pa.list_(pa.int32()), nullable=False),
        pa.field("rejected_loss_weights", pa.list_(pa.float32())),
        pa.field("rejected_spans", SPANS, nullable=False),
    ],
    "kto": [pa.field("desirable", pa.bool_(), nullable=False)],
}


OF_SEQUENCES = ("dataset", "file", "row", "offset", "repeat", "part", "repairs")
"""The columns with one value for each example: in packed sets lists, as long as the pack's `seq_lens`."""


def shard_schema(kind: str, *, packed: bool = False) -> pa.Schema:
    """The columns of a set of this kind.

    In preference sets `input_ids` holds the context with the chosen reply, `rejected_input_ids` the context with the
    other one; `num_trained` counts both. Media stand in the context, so their positions are the same in both.

    In packed sets a row holds several examples, one after the other. `seq_lens` are their lengths; positions and
    attention restart at each. Positions of media count from the start of the pack. `num_trained` and `spans` are those
    of the whole pack.
    """
    columns = [
        pa.field(field.name, pa.list_(field.type), nullable=False) if packed and field.name in OF_SEQUENCES else field
        for field in (*_COLUMNS, *_OF_KIND.get(kind, ()))
    ]
    return pa.schema(columns)


SHARD = shard_schema("sft")

_WORDS = ("input_ids", "trained", "loss_weights", "spans")
WORD_LISTS = (*_WORDS, *(f"rejected_{name}" for name in _WORDS))
"""The columns that hold nearly all bytes of an object: lists of four-byte numbers, null or empty where unused."""


def word_lists(schema: pa.Schema) -> list[str]:
    """The word lists of objects that a shard with this schema is made of."""
    return [name for name in WORD_LISTS if name.replace("trained", "labels") in schema.names]


OBJECT = pa.schema(
    [
        *(pa.field(name, pa.list_(pa.float32() if "weights" in name else pa.int32())) for name in WORD_LISTS),
        *(_COLUMNS.field(name) for name in ("images", "videos")),
        *(field.with_nullable(True) for field in _OF_KIND["kto"]),
        *(_COLUMNS.field(name) for name in ("num_trained", "repairs", "part", "offset")),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("fingerprint", pa.binary(16), nullable=False),
        pa.field("group", pa.binary(16), nullable=False),
    ]
)
"""A unit's compiled rows in the cache.

`trained` are the labels, which are the ids or -100, as run lengths: so many tokens that are not trained (0 if the first
one is), so many that are, and so on. That is half of the bytes.
`spans` are pairs of numbers: the owner (its place in the list of the object's record) and how many tokens.
`index` and `offset` count within the unit, so that an object serves its unit wherever that stands in a file.
`length` is how many tokens the model sees, with media and both sides of a pair.
`fingerprint` is equal for equal conversations; `group` for rows that the validation split must keep together.
"""

SHINGLES = "shingles"
OBJECT_NEAR = OBJECT.append(pa.field("signature", pa.binary())).append(pa.field(SHINGLES, pa.list_(pa.int32())))
"""The same where near duplicates are looked for. `shingles` are the hashes of what a conversation says, in order and
each once; `signature` is their MinHash, two bytes for each permutation. Only the signature is held in memory.
"""
