"""The manifest, entry by entry, and the check that every row is accounted for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc

from compiler.cache.layout import Narrow
from compiler.cache.records import library_versions, own_version
from compiler.options import UnitOptions
from compiler.rows.secrets import NOTE
from compiler.sets.mix import Examples, MixPlan
from compiler.sets.readme import readme_text
from compiler.sets.rejects import rejects_jsonl
from compiler.sets.rows import CompiledRows
from compiler.templates.load import Template
from compiler.tokenizer.tokenizer import Tokenizer
from compiler.units.compiled import CompiledDataset
from schemas.arrow import ENCODERS, SPLITS, TEST
from schemas.errors import IntegrityError
from schemas.manifest import (
    BALANCE,
    CONVERTED,
    IF_ASKED,
    Balance,
    CertificateEntry,
    DatasetEntry,
    EmbeddedEntry,
    FileEntry,
    Manifest,
    MediaEntry,
    PackingEntry,
    SecretEntry,
    ShardEntry,
    SplitEntry,
    TemplateEntry,
    TokenizerEntry,
)
from schemas.places import LINES


def versions() -> dict[str, str]:
    """The versions of everything that decides bytes."""
    return library_versions() | {"finetune-data-compiler": own_version()}


def tokenizer_entry(tokenizer: Tokenizer) -> TokenizerEntry:
    """What identifies the tokenizer, and its control tokens."""
    return {
        "digest": tokenizer.digest,
        "files": sorted(tokenizer.files.tokenizer),
        "named_tokens": tokenizer.named_tokens,
        "controls": dict(sorted(tokenizer.controls.items(), key=lambda item: item[1])),
    }


def template_entry(template: Template, certificate: dict[str, Any]) -> TemplateEntry:
    """What identifies the template, where it came from, and the proof that it is rendered as published."""
    entry: TemplateEntry = {
        "name": template.name,
        "digest": template.digest,
        "provenance": template.provenance,
        "reply_start": template.reply_start,
        "certificate": cast("CertificateEntry", certificate),
    }
    if template.variables:
        entry["variables"] = template.variables
    return entry


def media_entry(
    template: Template, rows: CompiledRows, chosen: Sequence[Narrow], embedded: EmbeddedEntry | None
) -> MediaEntry | None:
    """How this model takes images and videos, how many the chosen rows have, and those of the set's own.

    None where the model takes none.
    """
    vision = template.program.rendering.vision
    if vision is None:
        return None
    numbers = np.concatenate(list(chosen))
    images, videos = (
        int(np.asarray(pc.list_value_length(rows.small.column(name)))[numbers].sum()) for name in ("images", "videos")
    )
    entry: MediaEntry = {
        "name": vision.name, "digest": vision.digest, "repeats_pad": vision.repeats_pad, "images": images,
        "videos": videos,
    }  # fmt: skip
    if embedded is not None:
        entry["embedded"] = embedded
    return entry


def _encoders_json(compiled: Iterable[CompiledDataset]) -> bytes:
    """The encoders of the units, and how many of their texts were compared with the reference.

    A file of its own, since it depends on what the cache had: the manifest is a function of the set.
    """
    found: dict[str, dict[str, int]] = {}
    for one in compiled:
        for unit in one.loaded:
            encoder = found.setdefault(unit.info["encoder"], {"units": 0, "texts_compared": 0})
            encoder["units"] += 1
            encoder["texts_compared"] += unit.info["texts_compared"]
    return (json.dumps({"encoders": found}, indent=1, sort_keys=True) + "\n").encode()


def split_entry(shards: list[ShardEntry]) -> SplitEntry:
    """The totals of a split and its shards."""
    entry: SplitEntry = {
        "rows": sum(shard["rows"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "trained_tokens": sum(shard["trained_tokens"] for shard in shards),
        "shards": shards,
    }
    if shards and "sequences" in shards[0]:
        entry["sequences"] = sum(shard["sequences"] for shard in shards)
    return entry


def packing_entry(length: int, splits: dict[str, SplitEntry]) -> PackingEntry:
    """What was packed into what."""
    packs, tokens = (sum(counts) for counts in zip(*((s["rows"], s["tokens"]) for s in splits.values()), strict=True))
    return {
        "length": length,
        "packs": packs,
        "sequences": sum(split.get("sequences", 0) for split in splits.values()),
        "efficiency": tokens / (packs * length),
    }


def secrets_entry(one: CompiledDataset) -> dict[str, SecretEntry]:
    """The kinds of secrets in the rows of a dataset."""
    notes, first = one.notes(), one.secrets()
    return {kind: {"rows": notes[NOTE + kind], "first": places} for kind, places in first.items()}


def dataset_entry(
    number: int, one: CompiledDataset, examples: Examples, plan: MixPlan, units: UnitOptions
) -> DatasetEntry:
    """One dataset: its files, what was drawn, what became of every row."""
    draw, rejected = plan.draws[number], one.rejected()
    left_out: Any = {"left_out": one.counts()["left_out"]} if one.dataset.options.where else {}
    if units.decontaminate:
        left_out["contaminated"] = one.contaminated()
    is_used = np.zeros(len(examples.tokens), np.bool_)
    is_used[draw.position] = True
    rows, used = len(draw.position), int(is_used.sum())
    mine = plan.dataset == number
    realized: Any = {
        "rows": rows,
        "tokens": int(examples.tokens[draw.position].sum()),
        "trained_tokens": int(examples.trained[draw.position].sum()),
        "val_rows": int(plan.val[mine].sum()),
    }
    some = {
        "test_rows": int((plan.split[mine] == SPLITS.index(TEST)).sum()),
        "val_repeats": int(plan.val_repeats[mine].sum()),
        "in_train": int(plan.in_train[mine].sum()),
    }
    realized |= {name: count for name, count in some.items() if count}
    some_entries: Any = {"secrets": secrets_entry(one)} if units.scan_secrets else {}
    if examples.near is not None:
        some_entries["near_duplicates"] = draw.near
    return some_entries | {
        "name": one.dataset.name,
        "format": one.dataset.options.format,
        "clean": one.dataset.options.clean,
        "weights": one.dataset.options.weights,
        "policy": one.dataset.options.policy,
        "sample": one.dataset.sample,
        "source": one.dataset.source,
        "files": file_entries(one),
        "share": one.request.share,
        "count": one.request.count,
        "target": draw.target,
        "realized": realized,
        "rejected": rejected,
        "duplicates": draw.duplicates,
        "notes": dict(sorted(one.notes().items())),
        "unread": one.unread(),
        "ignored": one.ignored(),
        "balance": left_out
        | {
            "read": one.counts()["read"],
            "expanded": one.counts()["expanded"],
            "repeats": rows - used,
            "in_shards": rows,
            "rejected": sum(rejected.values()),
            "cleaned": one.cleaned(),
            "sampled_out": len(examples.tokens) - draw.dropped - used,
            "duplicates": draw.dropped,
        },
    }


def file_entries(one: CompiledDataset) -> list[FileEntry]:
    """Each file: its rows, and a digest over the digests of its units."""
    rows: Counter[str] = Counter()
    digests: dict[str, Any] = {}
    for record, loaded in zip(one.records, one.loaded, strict=True):
        rows[record.file] += loaded.info["counts"].get("read", 0)
        digests.setdefault(record.file, hashlib.sha256()).update(record.digest.encode())
    return [{"file": file, "rows": rows[file], "digest": digest.hexdigest()} for file, digest in digests.items()]


def total_balance(datasets: Iterable[DatasetEntry]) -> Balance:
    """The balance over all datasets."""
    total: Balance = {
        "read": 0, "expanded": 0, "repeats": 0, "in_shards": 0, "rejected": 0, "cleaned": 0, "sampled_out": 0,
        "duplicates": 0,
    }  # fmt: skip
    for entry in datasets:
        for key in BALANCE:
            total[key] += entry["balance"][key]
        for some in IF_ASKED:
            if some in entry["balance"]:
                total[some] = total.get(some, 0) + entry["balance"][some]
    return total


def check_balance(manifest: Manifest) -> None:
    """IntegrityError unless every row is accounted for, in each dataset and in total.

    read + expanded + repeats = in shards + rejected + cleaned + sampled out + duplicates + left out
    + contaminated
    """
    hint = "This is a bug in the compiler; nothing was published."
    balances = [(entry["name"], entry["balance"]) for entry in manifest["datasets"]]
    for name, b in [*balances, ("all datasets", manifest["balance"])]:
        rows_in = b["read"] + b["expanded"] + b["repeats"]
        rows_out = b["in_shards"] + b["rejected"] + b["cleaned"] + b["sampled_out"] + b["duplicates"]
        rows_out += b.get("left_out", 0) + b.get("contaminated", 0)
        if rows_in != rows_out:
            raise IntegrityError(f"balance of {name}", f"{rows_in:,} rows in, {rows_out:,} rows out: {b}", hint)
    written = sum(
        shard.get("sequences", shard["rows"]) for split in manifest["splits"].values() for shard in split["shards"]
    )
    planned = manifest["balance"]["in_shards"]
    if written != planned:
        raise IntegrityError("balance of the shards", f"{planned:,} rows were planned, {written:,} written", hint)


def write_files(folder: Path, manifest: Manifest, compiled: list[CompiledDataset], tokenizer: Tokenizer) -> None:
    """Write the files beside the shards (rejects, lines, README, tokenizer); list their digests in the manifest.

    `encoders.json` has none there, for the manifest does not depend on it.
    """
    files = {"rejects.jsonl": rejects_jsonl(compiled), "README.md": readme_text(manifest).encode()}
    files[LINES] = b"".join(line for one in compiled for line in one.places().dump())
    beside = sorted((tokenizer.files.tokenizer | tokenizer.files.processor).items())
    files |= {f"tokenizer/{name}": data for name, data in beside}
    files |= {f"{CONVERTED}/{name}": data for name, data in sorted(tokenizer.files.converted().items())}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / ENCODERS).write_bytes(_encoders_json(compiled))
    manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
