"""Two sets compared: their manifests, and their rows by identity (dataset, file, row, part, repeat).

A row that both have can differ in its text (ids, images), in its mask (labels; the desirable of a KTO row), in its
weights, in its split, or in its place among the rows that both splits have. The first three exclude each other, in
this order. Packs are compared as the examples that they hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from compiler.inspect.rows import SplitExamples
from compiler.questions.prints import Files, Prints, prints_of
from schemas.arrow import SPLITS
from schemas.digests import content_digest
from schemas.errors import UsageError
from schemas.manifest import Manifest
from schemas.order import Ints
from schemas.reader import CompiledSet

ROWS = ("added", "removed", "text", "mask", "weights", "split", "order")
"""How rows can differ."""
_Pair = tuple[Ints, Ints]
"""Positions in A and in B of the same rows; -1 where one has no such row."""


def diff(a: CompiledSet, b: CompiledSet, limit: int) -> dict[str, Any]:
    """The keys of `--json`; at most `limit` examples of each kind of difference."""
    if a.kind != b.kind:
        what = f"expected sets of one kind, found {a.kind} and {b.kind}"
        raise UsageError(f"{a.folder} {b.folder}", what, "Rows of different kinds have nothing to compare.")
    digests = [content_digest(one.manifest) for one in (a, b)]
    found: dict[str, Any] = {
        "version": 1,
        "equal": digests[0] == digests[1],
        "content_digest": digests,
        "rows": [_rows_of(one) for one in (a, b)],
        "settings": settings(a.manifest, b.manifest),
        "datasets": datasets(a.manifest, b.manifest),
    }
    if found["equal"]:  # the shards have the same bytes
        return found | {"counts": dict.fromkeys(ROWS, 0), "by_dataset": {}, "examples": {}, "remarks": []}
    names = {
        (entry["name"], file["file"]) for one in (a, b) for entry in one.manifest["datasets"] for file in entry["files"]
    }
    files: Files = {name: number for number, name in enumerate(sorted(names))}
    with ThreadPoolExecutor(2) as threads:
        mine, other = threads.map(lambda one: prints_of(one, files), (a, b))
    pairs = compared(mine, other)
    listed = sorted(names)
    return found | {
        "counts": {kind: len(pairs[kind][0]) for kind in ROWS},
        "by_dataset": _by_dataset(pairs, mine, other, [name for name, _ in listed]),
        "examples": {
            kind: [
                _shown(kind, (a, b), (mine, other), (int(x), int(y)), listed)
                for x, y in zip(*(side[:limit] for side in pairs[kind]), strict=True)
            ]
            for kind in ROWS
            if len(pairs[kind][0])
        },
        "remarks": list(_remarks(pairs, mine, other)),
    }


def compared(a: Prints, b: Prints) -> dict[str, _Pair]:
    """The rows that differ, by how."""
    _, in_a, in_b = np.intersect1d(a.key, b.key, assume_unique=True, return_indices=True)
    order = np.argsort(in_a)
    in_a, in_b = in_a[order], in_b[order]
    only_a, only_b = np.ones(len(a), bool), np.ones(len(b), bool)
    only_a[in_a] = only_b[in_b] = False
    left, right = np.flatnonzero(only_a), np.flatnonzero(only_b)
    text = a.text[in_a] != b.text[in_b]
    mask = ~text & (a.mask[in_a] != b.mask[in_b])
    weights = ~text & ~mask & (a.weights[in_a] != b.weights[in_b])
    split = a.split[in_a] != b.split[in_b]
    moved = np.zeros(len(in_a), bool)
    for number in range(len(SPLITS)):
        both = np.flatnonzero((a.split[in_a] == number) & ~split)
        # in_a is sorted, so `both` has the order of A; a row moved if another one stands there in the order of B
        moved[both] = np.argsort(in_b[both], kind="stable") != np.arange(len(both))
    found = {"text": text, "mask": mask, "weights": weights, "split": split, "order": moved}
    pairs = {name: (in_a[which], in_b[which]) for name, which in found.items()}
    return {"added": (np.full(len(right), -1), right), "removed": (left, np.full(len(left), -1))} | pairs


def _rows_of(opened: CompiledSet) -> int:
    return sum(split.get("sequences", split["rows"]) for split in opened.manifest["splits"].values())


def settings(a: Manifest, b: Manifest) -> dict[str, list[Any]]:
    """What was asked and what made the sets, where it differs: by name, as in A and in B; null where a set has none."""
    flat = [_flat(one) for one in (a, b)]
    names = sorted({*flat[0], *flat[1]})
    return {name: [one.get(name) for one in flat] for name in names if flat[0].get(name) != flat[1].get(name)}


def _flat(manifest: Manifest) -> dict[str, Any]:
    media, packing = manifest.get("media"), manifest.get("packing")
    return {
        "format_version": manifest["format_version"],
        "seed": manifest["seed"],
        "tokenizer": manifest["tokenizer"]["digest"],
        "template": f"{manifest['template']['name']} {manifest['template']['digest']}",
        "media": None if media is None else f"{media['name']} {media['digest']}",
        "pack": None if packing is None else packing["length"],
        **{f"option {name}": value for name, value in manifest["options"].items()},
        **{f"version {name}": value for name, value in manifest["versions"].items()},
    }


def datasets(a: Manifest, b: Manifest) -> dict[str, dict[str, Any]]:
    """What differs of each dataset: by name, as in A and in B; null where a set does not have it."""
    entries = [{entry["name"]: _told(entry) for entry in one["datasets"]} for one in (a, b)]
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys([*entries[0], *entries[1]]):
        mine, other = (one.get(name, {}) for one in entries)
        keys = [key for key in dict.fromkeys([*mine, *other]) if mine.get(key) != other.get(key)]
        if keys:
            found[name] = {key: [mine.get(key), other.get(key)] for key in keys}
    return found


def _told(entry: Any) -> dict[str, Any]:
    """A dataset's entry as one level of names."""
    return {
        **{key: entry[key] for key in ("format", "weights", "share", "count")},
        **{key: value for key, value in entry["balance"].items() if value},
        **{key: entry["realized"][key] for key in ("tokens", "trained_tokens")},
        **{f"rejected {reason}": count for reason, count in entry["rejected"].items()},
        **{f"file {file['file']}": f"{file['rows']} rows, {file['digest'][:16]}" for file in entry["files"]},
    }


def _by_dataset(pairs: dict[str, _Pair], a: Prints, b: Prints, names: list[str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for kind, (left, right) in pairs.items():
        files = b.file[right] if kind == "added" else a.file[left]
        for number, count in zip(*np.unique(files, return_counts=True), strict=True):
            of = found.setdefault(names[number], dict.fromkeys(ROWS, 0))
            of[kind] += int(count)
    return dict(sorted(found.items()))


def _shown(
    kind: str,
    sets: tuple[CompiledSet, CompiledSet],
    prints: tuple[Prints, Prints],
    at: tuple[int, int],
    names: list[tuple[str, str]],
) -> dict[str, Any]:
    """One row that differs: its place, where it stands in A and in B, and for changed rows the first difference."""
    side = 1 if at[0] < 0 else 0
    mine, i = prints[side], at[side]
    dataset, file = names[mine.file[i]]
    found: dict[str, Any] = {
        "place": sets[side].places.place(dataset, file, int(mine.row[i])),
        "dataset": dataset,
        "part": int(mine.part[i]),
        "repeat": int(mine.repeat[i]),
    }
    for name, one, number in zip("ab", prints, at, strict=True):
        where = None if number < 0 else {"split": SPLITS[one.split[number]], "row": int(one.place[number])}
        found[name] = where
    if kind in ("text", "mask", "weights"):
        found["first_difference"] = _first(kind, sets, found)
    return found


_COLUMNS = {"text": ("input_ids", "rejected_input_ids"), "mask": ("labels", "rejected_labels"),
            "weights": ("loss_weights", "rejected_loss_weights")}  # fmt: skip


def _first(kind: str, sets: tuple[CompiledSet, CompiledSet], found: dict[str, Any]) -> dict[str, Any] | None:
    """The first token that differs; None where the difference is in the images or in `desirable`."""
    rows = [
        SplitExamples(one, found[name]["split"]).row(found[name]["row"]) for name, one in zip("ab", sets, strict=True)
    ]
    for column in _COLUMNS[kind]:
        left, right = (row.get(column) for row in rows)
        if left == right:
            continue
        if left is None or right is None:
            return {"column": column, "token": 0}
        same = (i for i, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1])
        return {"column": column, "token": next(same, min(len(left), len(right)))}
    return None


def _remarks(pairs: dict[str, _Pair], a: Prints, b: Prints) -> Iterator[str]:
    """What looks like something else than rows that were edited."""
    left = np.concatenate([pairs["text"][0], pairs["removed"][0]])
    right = np.concatenate([pairs["text"][1], pairs["added"][1]])
    again = int(np.isin(a.text[left], b.text[right]).sum())
    if again:
        yield (
            f"{again:,} of the rows that A has otherwise have the text of a row that B has otherwise: files with "
            "another name, or rows with another number, as after a line was put in or taken out"
        )


_SAID = {
    "added": "only in B", "removed": "only in A", "text": "other text", "mask": "same text, other labels",
    "weights": "same labels, other weights", "split": "in another split", "order": "in another place of the order",
}  # fmt: skip


def said(found: dict[str, Any], a: str, b: str) -> Iterator[str]:
    """The comparison as lines of text."""
    digests = [digest[:16] for digest in found["content_digest"]]
    if found["equal"]:
        yield f"equal: content_digest {digests[0]}, {found['rows'][0]:,} rows"
    else:
        mine, other = found["rows"]
        yield f"different: content_digest {digests[0]} and {digests[1]}, {mine:,} and {other:,} rows"
    yield f"A {a}"
    yield f"B {b}"
    if not found["equal"] and not any(found["counts"].values()):
        yield "the rows are the same"
    for kind, count in found["counts"].items():
        if not count:
            continue
        yield f"{_SAID[kind]}: {count:,}"
        for one in found["examples"][kind]:
            yield f"  {_example(one)}"
        if count > len(found["examples"][kind]):
            yield f"  ... {count - len(found['examples'][kind]):,} more"
    for name, counts in found["by_dataset"].items():
        yield f"{name}: " + ", ".join(f"{_SAID[kind]} {count:,}" for kind, count in counts.items() if count)
    yield from found["remarks"]
    for name, left, right in changed_values(found):
        yield f"{name}: {left} -> {right}"


def changed_values(found: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the settings and numbers that differ: name, value of A, value of B."""
    for name, (left, right) in found["settings"].items():
        yield name, _value(left), _value(right)
    for dataset, keys in found["datasets"].items():
        for key, (left, right) in keys.items():
            yield f"{dataset}, {key}", _value(left), _value(right)


def changed_rows(found: dict[str, Any]) -> Iterator[tuple[str, int, list[str], dict[str, int]]]:
    """Yield what became of rows: the kind in words, how many, the first of them in words, and how many by dataset."""
    for kind, count in found["counts"].items():
        if count:
            by = {name: counts[kind] for name, counts in found["by_dataset"].items() if counts[kind]}
            yield _SAID[kind], count, [_example(one) for one in found["examples"][kind]], by


def _value(value: Any) -> str:
    return "none" if value is None else f"{value:,}" if isinstance(value, int) and value is not True else str(value)


def _example(one: dict[str, Any]) -> str:
    where = [f"{side.upper()} {one[side]['split']} row {one[side]['row']:,}" for side in "ab" if one[side]]
    number = f" part {one['part']}" * (one["part"] > 0) + f" repeat {one['repeat']}" * (one["repeat"] > 0)
    first = one.get("first_difference")
    at = f"; {first['column']} differ from token {first['token']:,} on" if first else ""
    return f"{one['place']}{number} ({', '.join(where)}){at}"
