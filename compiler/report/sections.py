"""What the page says of the set as a whole, taken from its manifest and from what was measured."""

from __future__ import annotations

import json
from typing import Any, Literal

from compiler.inspect.marks import visible
from compiler.report.charts import edges_of, fill_chart, length_chart, share_chart
from compiler.report.measure import Measured
from compiler.sets.readme import asked, held_out
from schemas.manifest import BALANCE, IF_ASKED, DatasetEntry, Manifest
from schemas.reader import CompiledSet

MOST_CHARTS, MOST_LINES = 24, 200
"""The most datasets with charts, and the most lines of a table or a list."""
_Share = Literal["rows", "tokens", "trained_tokens"]
_SHARES: tuple[_Share, ...] = ("rows", "tokens", "trained_tokens")
_KINDS = {
    "sft": "conversations",
    "preference": "preference pairs",
    "kto": "rows that are desirable or not (KTO)",
    "pretrain": "documents",
}


def sections(opened: CompiledSet, measured: Measured, remarks: list[str]) -> dict[str, Any]:
    """Everything about the set that the template of the page takes."""
    manifest = opened.manifest
    cut = manifest["options"].get("max_length")
    entries = manifest["datasets"][:MOST_LINES]
    drawn = [entry["name"] for entry in manifest["datasets"] if entry["name"] in measured.figures][:MOST_CHARTS]
    figures = {name: measured.figures[name] for name in drawn}
    edges = edges_of(list(figures.values()), cut)
    return {
        "title": str(opened.folder),
        "manifest": manifest,
        "facts": _facts(opened),
        "splits": [(name, split) for name, split in manifest["splits"].items()],
        "mix": _mix(manifest, entries),
        "more_datasets": len(manifest["datasets"]) - len(entries),
        "balance_keys": [key for key in (*BALANCE, *IF_ASKED) if any(key in e["balance"] for e in entries)],
        "balance": [(entry["name"], entry["balance"]) for entry in entries],
        "lengths": [length_chart(name, one, edges, cut) for name, one in figures.items()],
        "shares": [share_chart(name, one) for name, one in figures.items()],
        "more_charts": len(measured.figures) - len(drawn),
        "cut": cut,
        "fill": fill_chart(measured.fills) if "packing" in manifest else None,
        "remarks": [visible(remark).replace("\n", "") for remark in remarks[:MOST_LINES]],
        "more_remarks": max(0, len(remarks) - MOST_LINES),
        "unread": _unread(entries),
        "certificate": manifest["template"]["certificate"],
        "options": [(key, _json(value)) for key, value in manifest["options"].items()],
    }


def _facts(opened: CompiledSet) -> list[tuple[str, str]]:
    manifest = opened.manifest
    splits = manifest["splits"].values()
    tokens, trained = (sum(split[what] for split in splits) for what in ("tokens", "trained_tokens"))
    examples = sum(split.get("sequences", split["rows"]) for split in splits)
    packs = sum(split["rows"] for split in splits) if opened.is_packed else 0
    facts = [
        ("kind", f"{opened.kind}: {_KINDS.get(opened.kind, '')}"),
        ("rows", f"{examples:,}" + (f" in {packs:,} packs" if packs else "")),
        ("tokens", f"{tokens:,}"),
        ("trained tokens", f"{trained:,} ({trained / max(tokens, 1):.1%})"),
        ("datasets", f"{len(manifest['datasets']):,}"),
        ("template", manifest["template"]["name"]),
    ]
    if (media := manifest.get("media")) is not None:
        facts.append(
            ("media", f"{media['name']}: {media.get('images', 0):,} images, {media.get('videos', 0):,} videos")
        )
    return facts


def _mix(manifest: Manifest, entries: list[DatasetEntry]) -> list[dict[str, Any]]:
    """The mix: what was asked, and what came out by rows, tokens and trained tokens."""
    mixed = [entry for entry in manifest["datasets"] if not held_out(entry)]
    totals = {what: max(1, sum(entry["realized"][what] for entry in mixed)) for what in _SHARES}
    weights = sum(entry["share"] or 0 for entry in manifest["datasets"])
    lines = []
    for entry in entries:
        found = entry["realized"]
        share = entry["share"]
        lines.append(
            {
                "name": entry["name"],
                "format": entry["format"],
                "weights": entry["weights"],
                "sample": entry["sample"],
                "license": entry["source"].get("license", ""),
                "asked": asked(entry) + (f" = {share / weights:.1%}" if share and weights else ""),
                "rows": found["rows"],
                "held_out": held_out(entry),
                "shares": [
                    (what.replace("_", " "), found[what], 0.0 if held_out(entry) else found[what] / totals[what])
                    for what in _SHARES
                ],
            }
        )
    return lines


def _unread(entries: list[DatasetEntry]) -> list[tuple[str, str, int, int, str]]:
    """(dataset, key, rows with it, rows read, why it is not told of) for each key that nothing read."""
    found = []
    for entry in entries:
        read = entry["balance"]["read"]
        found += [(entry["name"], visible(k), n, read, "") for k, n in entry.get("unread", {}).items()]
        found += [(entry["name"], visible(k), n, read, "--ignore") for k, n in entry.get("ignored", {}).items()]
    return found[:MOST_LINES]


def _json(value: Any) -> str:
    text = visible(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 400 else f"{text[:400]}…"
