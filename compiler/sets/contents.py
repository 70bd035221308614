"""What a manifest says of a set, compared with the rows of the shards: counts, tokens, balance and provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compiler.sets.manifest import check_balance, total_balance
from schemas.arrow import IGNORED, SPLITS, TEST, VAL
from schemas.errors import IntegrityError
from schemas.manifest import Manifest, ShardEntry
from schemas.order import Ints, mix64
from schemas.packs import unpacked
from schemas.reader import CompiledSet

_COUNTS = ("rows", "tokens", "trained_tokens")


def wrong_counts(manifest: Manifest) -> Iterator[str]:
    """Yield what does not add up within a manifest."""
    try:
        check_balance(manifest)
    except IntegrityError as error:
        yield f"manifest.json: {error.where}: {error.what}"
    if manifest["balance"] != total_balance(manifest["datasets"]):
        yield "manifest.json: the balance is not the sum of those of the datasets"
    names = [entry["name"] for entry in manifest["datasets"]]
    if len(names) != len(set(names)):
        yield "manifest.json: two datasets have one name"
    for name, split in manifest["splits"].items():
        files = [shard["file"] for shard in split["shards"]]
        if files != [f"{name}/shard-{number:05d}.arrow" for number in range(len(files))]:
            yield f"manifest.json: the shards of {name} are not numbered from 0 on, each once"
        yield from (f"manifest.json: {problem}" for problem in _wrong_sums(name, split, split["shards"], _COUNTS))
        for shard in split["shards"]:
            yield from (
                f"manifest.json: {problem}"
                for problem in _wrong_sums(shard["file"], shard, shard["batches"], ("rows", "sequences"))
            )
            yield from _wrong_places(shard)


def _wrong_sums(where: str, total: Any, parts: Iterable[Any], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name in total and (found := sum(part.get(name, 0) for part in parts)) != total[name]:
            yield f"{where}: {name} is {total[name]:,}, and its parts have {found:,}"


def _wrong_places(shard: ShardEntry) -> Iterator[str]:
    """Yield where batches overlap, or stand outside of the file."""
    end = 0
    for number, batch in enumerate(shard["batches"]):
        if batch["offset"] < end:
            yield f"manifest.json: {shard['file']}: batch {number} begins within the one before it"
        end = batch["offset"] + batch["length"]
    if end > shard["bytes"]:
        yield f"manifest.json: {shard['file']}: its batches end after the file"


class Rows:
    """The rows of the shards, counted shard by shard; what they are is kept as a number each."""

    def __init__(self, opened: CompiledSet) -> None:
        self.opened, self.manifest = opened, opened.manifest
        self.counts: Counter[tuple[str, str]] = Counter()
        self.tokens: Counter[str] = Counter()
        self.trained: Counter[str] = Counter()
        self._prints: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
        self._files = {
            (dataset["name"], file["file"]): (number, file["rows"])
            for number, (dataset, file) in enumerate(
                (dataset, file) for dataset in self.manifest["datasets"] for file in dataset["files"]
            )
        }
        media = self.manifest.get("media")
        self._single = media is not None and not media["repeats_pad"]

    def count(self, split: str, shard: ShardEntry, batches: Iterable[pa.RecordBatch]) -> Iterator[str]:
        """Count the rows of a shard; yield what is wrong with them."""
        tokens = trained = 0
        for number, found in enumerate(batches):
            where = f"{shard['file']}: batch {number}"
            if "sequences" in shard["batches"][number] and (
                len(found.column("seq_lens").flatten()) != shard["batches"][number].get("sequences")
            ):
                yield f"{where} has {len(found.column('seq_lens').flatten())} examples, unlike the manifest"
            wrong = _trained(found) != found.column("num_trained").to_numpy()
            if wrong.any():
                yield f"{where}: num_trained is not the number of labels in {int(wrong.sum())} rows"
            batch = unpacked(found, self.opened.kind) if self.opened.is_packed else found
            lengths, labelled = self._lengths(batch), _trained(batch)
            tokens, trained = tokens + int(lengths.sum()), trained + int(labelled.sum())
            yield from self._of(split, where, batch, lengths, labelled)
        for name, counted in (("tokens", tokens), ("trained_tokens", trained)):
            if shard[name] != counted:  # type: ignore[literal-required]
                yield f"{shard['file']}: {name} is {shard[name]:,} in the manifest, and {counted:,} here"  # type: ignore[literal-required]

    def _of(self, split: str, where: str, batch: pa.RecordBatch, lengths: Ints, labelled: Ints) -> Iterator[str]:
        pairs = pa.StructArray.from_arrays([batch.column("dataset"), batch.column("file")], ["dataset", "file"])
        kinds, inverse = np.unique(
            np.array([f"{one['dataset']}\0{one['file']}" for one in pairs.to_pylist()], dtype=object),
            return_inverse=True,
        )
        known = [self._files.get(tuple(kind.split("\0", 1))) for kind in kinds]
        for kind, place in zip(kinds, known, strict=True):
            if place is None:
                yield f"{where}: a row is of {kind.replace(chr(0), ', file ')}, which the manifest does not have"
        rows = batch.column("row").to_numpy()
        limits = np.array([0 if place is None else place[1] for place in known])[inverse]
        if np.any((rows < 0) | (rows >= np.maximum(limits, 1))):
            yield f"{where}: the number of a row is not one of its file"
        part, repeat = (batch.column(name).to_numpy().astype(np.int64) for name in ("part", "repeat"))
        offset = batch.column("offset").drop_null().to_numpy()
        if any(np.any(numbers < 0) for numbers in (part, repeat, offset)):
            yield f"{where}: a part, repeat or offset is below 0"
        files = np.array([-1 if place is None else place[0] for place in known], np.int64)[inverse]
        prints = np.zeros(len(rows), np.uint64)
        for numbers in (files, rows, part, repeat):
            prints = mix64(prints ^ numbers.astype(np.uint64))
        self._prints.append(prints)
        for number, kind in enumerate(kinds):
            name, mine = kind.split("\0")[0], inverse == number
            self.counts[split, name] += int(mine.sum())
            self.tokens[name] += int(lengths[mine].sum())
            self.trained[name] += int(labelled[mine].sum())

    def wrong_totals(self) -> Iterator[str]:
        """Yield what the rows of all shards have together, and the manifest says otherwise."""
        prints = np.concatenate(self._prints) if self._prints else np.zeros(0, np.uint64)
        if twice := len(prints) - len(np.unique(prints)):
            yield f"{twice:,} rows are there twice: the same row of a file, with the same part and repeat"
        for dataset in self.manifest["datasets"]:
            name, says = dataset["name"], dataset["realized"]
            held = {"val_rows": self.counts[VAL, name], "test_rows": self.counts[TEST, name]}
            found = {
                "rows": sum(self.counts[split, name] for split in SPLITS), "tokens": self.tokens[name],
                "trained_tokens": self.trained[name], **held,
            }  # fmt: skip
            for key, number in found.items():
                if says.get(key, 0) != number:
                    yield f"dataset {name}: {key} is {says.get(key, 0):,} in the manifest, the shards have {number:,}"
            if (planned := dataset["balance"]["in_shards"]) != found["rows"]:
                yield f"dataset {name}: its balance has {planned:,} rows in shards, not {found['rows']:,}"

    def _lengths(self, batch: pa.RecordBatch) -> Ints:
        """The tokens that the model sees of each row, both sides of a pair."""
        total = np.asarray(pc.list_value_length(batch.column("input_ids")), dtype=np.int64)
        sides = 1
        if "rejected_input_ids" in batch.schema.names:
            total, sides = total + np.asarray(pc.list_value_length(batch.column("rejected_input_ids"))), 2
        if self._single:  # one placeholder stands for all tokens of an image
            for name in ("images", "videos"):
                media = batch.column(name)
                row = np.repeat(np.arange(len(media)), np.asarray(pc.list_value_length(media)))
                seen = media.flatten().field("num_tokens").to_numpy(zero_copy_only=False)
                np.add.at(total, row, sides * (seen.astype(np.int64) - 1))
        return total


def _trained(batch: pa.RecordBatch) -> Ints:
    """The labels of each row that are trained, both sides of a pair."""
    total = np.zeros(batch.num_rows, np.int64)
    for name in ("labels", "rejected_labels"):
        if name in batch.schema.names:
            column = batch.column(name)
            ends = np.cumsum([0, *np.asarray(pc.list_value_length(column))])
            counts = np.concatenate([[0], np.cumsum(column.flatten().to_numpy() != IGNORED)])
            total += counts[ends[1:]] - counts[ends[:-1]]
    return total
