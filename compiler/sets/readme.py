"""The README.md of a set: for people, and for the `datasets` library, whose front matter names the splits."""

from __future__ import annotations

from typing import Literal

from schemas.arrow import EMBEDDED
from schemas.manifest import DatasetEntry, Manifest, embedded_of

Share = Literal["rows", "tokens", "trained_tokens"]


def mix_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    """The realized mix as a table: a header, a line for each dataset, a total."""
    by_tokens = manifest["options"]["mix_unit"] == "tokens"
    shares: tuple[Share, ...] = ("rows", "tokens", "trained_tokens") if by_tokens else ("rows", "trained_tokens")
    titles = (f"share of {what.replace('_', ' ')}" for what in shares)
    header = ("dataset", "asked for", "rows", *titles, "repeats", "rejected", "sampled out", "duplicates")
    mixed = [entry for entry in manifest["datasets"] if not held_out(entry)]
    total = {what: sum(entry["realized"][what] for entry in mixed) for what in shares}
    rows = sum(entry["realized"]["rows"] for entry in manifest["datasets"])
    lines: list[tuple[str, ...]] = [header]
    for entry in manifest["datasets"]:
        realized, balance = entry["realized"], entry["balance"]
        lines.append(
            (
                entry["name"],
                asked(entry),
                f"{realized['rows']:,}",
                *("" if held_out(entry) else f"{realized[what] / max(total[what], 1):.1%}" for what in shares),
                f"{balance['repeats']:,}",
                f"{balance['rejected']:,}",
                f"{balance['sampled_out']:,}",
                f"{entry['duplicates']:,}" + (" dropped" if balance["duplicates"] else ""),
            )
        )
    balance = manifest["balance"]
    duplicates = sum(d["duplicates"] for d in manifest["datasets"])
    lines.append(
        ("total", "", f"{rows:,}", *["100.0%"] * len(shares), f"{balance['repeats']:,}",
         f"{balance['rejected']:,}", f"{balance['sampled_out']:,}", f"{duplicates:,}")
    )  # fmt: skip
    return lines


def asked(entry: DatasetEntry) -> str:
    """What was asked of a dataset, in words."""
    if entry["share"] is not None:
        return f"share {entry['share']:g}"
    if entry["count"] is not None:
        return f"{entry['count']:,} rows"
    return f"all, for {split}" if (split := held_out(entry)) else "all rows"


def held_out(entry: DatasetEntry) -> str:
    """The split that all rows of a dataset are for, "" if it has some for training."""
    realized = entry["realized"]
    others = {"val": realized["val_rows"], "test": realized.get("test_rows", 0)}
    return next((name for name, rows in others.items() if rows == realized["rows"] > 0), "")


def not_read(unread: dict[str, int], rows: int, most: int = 8) -> str:
    """A sentence on keys that nothing reads, and in how many of the rows they are."""
    named = [f"{key} ({count:,} of {rows:,} row{'' if rows == 1 else 's'})" for key, count in unread.items()]
    rest = [f"and {len(named) - most:,} more keys (see manifest.json)"] if len(named) > most else []
    return "not read: " + ", ".join([*named[:most], *rest])


def secrets_found(entry: DatasetEntry, *, redacted: bool) -> list[str]:
    """A sentence on each kind of secret that was looked for and found in a dataset, or that there is none."""
    if entry.get("secrets") == {}:
        return ["no secrets were found"]
    lines = []
    for kind, found in entry.get("secrets", {}).items():
        rows, places = found["rows"], ", ".join(found["first"])
        what = f"was replaced by [REDACTED:{kind}]" if redacted else "was found"
        more = ", ..." if rows > len(found["first"]) else ""
        lines.append(f"in {rows:,} row{'' if rows == 1 else 's'}, {kind} {what} ({places}{more})")
    return lines


def readme_text(manifest: Manifest) -> str:
    """The Markdown of the file. It holds no date and no path: equal inputs give equal bytes."""
    splits = {name: split for name, split in manifest["splits"].items() if split["rows"]}
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for name in splits:
        lines += [f"  - split: {'validation' if name == 'val' else name}", f"    path: {name}/*.arrow"]
    lines += ["---", "", "# Compiled dataset", ""]
    if any(entry["sample"] for entry in manifest["datasets"]):
        lines += [
            "**Made from embedded samples**: good for trying things out, too small to train a model.",
            "",
        ]
    packing = manifest.get("packing")
    if packing:
        lines += [
            f"One row is a pack: {packing['sequences']:,} examples in {packing['packs']:,} packs of at most "
            f"{packing['length']:,} tokens; `seq_lens` are",
            "their lengths, and positions and attention restart at each.",
            "",
        ]
    what = "example" if packing else "row"
    lines += [
        f"One {what} is one token sequence: `input_ids`, unshifted `labels` (-100 = context), `loss_weights`",
        "where they are not all 1, `spans` (who each token is from) and where the row came from.",
        "",
    ]
    lines += [_table(mix_rows(manifest)), ""]
    table: list[tuple[str, ...]] = [("split", "rows", "tokens", "trained tokens", "shards")]
    for name, split in splits.items():
        rows, tokens, trained = split["rows"], split["tokens"], split["trained_tokens"]
        table.append((name, f"{rows:,}", f"{tokens:,}", f"{trained:,}", str(len(split["shards"]))))
    lines += [_table(table), ""]
    template, tokenizer = manifest["template"], manifest["tokenizer"]
    lines += [
        f"- Template: {template['name']} ({template['provenance']}), certificate {template['certificate']['checks']}",
        f"- Tokenizer: sha256 {tokenizer['digest']}",
        f"- Seed: {manifest['seed']}; mix by {manifest['options']['mix_unit']}",
        "",
    ]
    if embedded := embedded_of(manifest):
        lines.insert(-1, f"- Images that rows held: {embedded['files']:,} files in `{EMBEDDED}`, named by their sha256")
    for entry in manifest["datasets"]:
        licence = f", licence {entry['source']['license']}" if "license" in entry["source"] else ""
        lines.append(f"- `{entry['name']}`: format {entry['format']}, weights {entry['weights']}{licence}")
        if unread := entry.get("unread"):
            lines.append(f"  - {not_read(unread, entry['balance']['read'])}")
        lines += [f"  - {line}" for line in secrets_found(entry, redacted="redact" in manifest["options"])]
    return "\n".join(lines) + "\n"


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(["", *row, ""]).strip() for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
